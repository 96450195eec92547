"""Two runs in one folder, the second at a random instant: does each end in words, and is no model lost?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from fault_campaign import (
    FLAGS,
    KILLED,
    RESUME,
    SEED,
    Place,
    assert_in_words,
    assert_kept,
    faulty_disk,
    in_memory,
    output_of,
)  # fmt: skip
from killed_runs import Trainers

pytestmark = pytest.mark.slow

OTHER = "--lr=0.02"

COMBINATIONS: dict[str, tuple[bool, bool, tuple[str, ...], tuple[str, ...]]] = {
    # whether the first is a run that was stopped, whether it is killed before the second starts, flags of both
    "fresh, fresh": (False, False, (), (OTHER,)),
    "fresh, restart": (False, False, (), (RESUME,)),
    "restart, restart": (True, False, (RESUME,), (RESUME,)),
    "restart, fresh": (True, False, (RESUME,), (OTHER,)),
    "killed, restart": (False, True, (), (RESUME,)),
    "killed, fresh": (False, True, (), (OTHER,)),
    "another seed": (False, False, (), ("--seed=8",)),
}
STARTS = 3
"""Of each combination, so that there are 21 on each kind of disk."""


@pytest.fixture(scope="module", params=["normal disk", "tmpfs", "without locks and links"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Trainers]]:
    """A folder on each kind of disk, with two programs."""
    memory = in_memory()
    if request.param == "tmpfs" and memory is None:
        pytest.skip("there is no tmpfs on this machine")
    normal = tmp_path_factory.mktemp("owners")
    locks = {"LD_PRELOAD": str(faulty_disk(normal)), "WITHOUT_LOCKS": "1"} if "without" in request.param else {}
    with TemporaryDirectory(dir=memory if request.param == "tmpfs" else normal) as folder:
        with Trainers(locks) as first, Trainers(locks) as second:
            yield Place(Path(folder), first), second


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_two_runs(place: tuple[Place, Trainers], combination: str) -> None:
    here, others = place
    resumes, kills, first, second = COMBINATIONS[combination]
    rng = np.random.default_rng([SEED, list(COMBINATIONS).index(combination)])
    expected = [{}, here.straight(*(flag for flag in second if flag != RESUME))]
    expected[0] = here.straight()
    refused = 0
    for start in range(STARTS):
        folder = here.folder / f"{combination}-{start}".replace(", ", "-").replace(" ", "-")
        if resumes:
            status = here._trainers.run(folder, FLAGS, after=float(rng.uniform(0.3, 0.8)))
            assert status in (0, KILLED)
        wait = float(rng.uniform(0.05, 1.0))
        kill = {"after": wait} if kills else {}
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(here._trainers.run, folder, [*FLAGS, *first], **kill)
            time.sleep(wait + 0.05 * kills)
            (folder / "second").mkdir(parents=True, exist_ok=True)
            moved = [flag.replace("../", "../../") for flag in FLAGS]
            statuses = [0, others.run(folder / "second", [*moved, "--work_dir=..", *second])]
            statuses[0] = running.result()
        context = f"{combination}, start {start}, {folder}"
        if statuses[0] != KILLED:
            assert_in_words(statuses[0], output_of(folder), context)
        sentence = assert_in_words(statuses[1], output_of(folder / "second"), context)
        refused += statuses[1] == 2
        if statuses[1] == 2:
            assert "writes the files of this run; let it end, or choose another --name" in sentence, context
            assert statuses[0] == 0, context
        if combination == "another seed":
            assert statuses == [0, 0], context
        for status, models in zip(statuses, expected, strict=True):
            if status == 0:
                assert_kept(models, folder, context)
        assert 0 in statuses and not list(folder.rglob("*.lock*")), context
    print(f"{combination}: {refused} of {STARTS} second runs were refused")
