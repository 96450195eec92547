"""Is the page of a run whole: nothing is loaded, text from files stays text, it stays small, and never ends a run?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from training_runs import Run, copper, isolated_atoms, labeled, train, water, write_water

from mace.errors import UserError
from mace.pages.html import embedded
from mace.reporting.history import RunHistory
from mace.runs import run_report
from mace.runs.run_report import RunReport
from mace.training.batch_step import BatchStep
from mace.training.evaluation import Evaluation
from mace.training.loop import EpochReport
from mace.training.state import Progression

HOSTILE = "</script><img_src=x_onerror=alert(1)>&<!--"
LOADING = r"https?://(?!www\.w3\.org/2000/svg)|<link|<img|<iframe|@import|url\(|\ssrc="


def page_of(run: Run) -> str:
    return (run.folder / "results" / f"{run.tag}.html").read_text(encoding="utf-8")


def errors_in(page: str) -> Any:
    """What the page knows of predictions."""
    return json.loads(re.search('id="errors-data">(.*?)</script>', page)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two stages, a test set, and a name of a type that would like to be a script."""
    folder = tmp_path_factory.mktemp("page")
    write(folder / "train.xyz", isolated_atoms() + water(10) + water(3, 5, config_type=HOSTILE), format="extxyz")
    write(folder / "test.xyz", water(4, 9, config_type=HOSTILE) + water(3, 8, config_type="warm"), format="extxyz")
    flags = (f"--test_file={folder / 'test.xyz'}", "--max_num_epochs=4", "--swa", "--start_swa=2", "--plot=True")
    return train(folder, folder / "train.xyz", *flags)


def test_the_page_loads_nothing_and_runs_its_own_script_alone(run: Run) -> None:
    page = page_of(run)
    assert not re.search(LOADING, page)
    assert len(re.findall("<script>", page)) == 1 and len(page.split("</script>")) == page.count("<script") + 1
    assert re.search(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]+'; base-uri", page)
    assert not re.search(r"\son\w+=\"", page)


def test_text_from_files_stays_text(run: Run) -> None:
    page = page_of(run)
    assert "onerror" in page
    assert not re.search(r"<img", page)
    assert HOSTILE not in page


def test_embedded_data_cannot_end_their_element() -> None:
    text = embedded("x", {"a": "</script><script>&"})
    assert text.count("<") == 2 and "&" not in text


def test_the_page_says_what_became_of_the_run(run: Run) -> None:
    page = page_of(run)
    words = "finished,Training is complete,stage two,--start_swa,IsolatedAtom,mace_eval_configs,--restart_latest"
    words += ",MACECalculator,waiting for data,torch,tiny_run-7_data.html"
    for said in words.split(","):
        assert said in page, said
    assert len(page) < 5_000_000


def test_the_commands_reproduce_the_settings(run: Run) -> None:
    from html import unescape
    from shlex import split

    from mace.settings import parse_training_settings

    command = unescape(re.search(r"<pre>cd .*?\n(mace_run_train .*?)</pre>", page_of(run), re.S)[1])  # type: ignore[index]
    assert parse_training_settings(split(command.replace("\\\n", " "))[1:]) == run.settings


def test_no_page_if_none_is_wanted(tmp_path: Path) -> None:
    run = train(tmp_path, write_water(tmp_path / "train.xyz"), "--no_report")
    assert not list((tmp_path / "results").glob("tiny_run-7.html"))
    assert not run.said("report on the run")


def test_a_report_that_fails_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(run_report, "write_run_page", broken)
    run = train(tmp_path, write_water(tmp_path / "train.xyz"))
    assert (tmp_path / "tiny.model").exists()
    assert len(re.findall("WARNING.*html: left out, because it failed", run.log)) == 1


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_report, "write_durably", full)
    monkeypatch.setattr(run_report, "SHARE", 1e9)
    run = train(tmp_path, write_water(tmp_path / "train.xyz"))
    assert (tmp_path / "tiny.model").exists()
    assert len(re.findall("WARNING.*html: left out, because it failed .No space left", run.log)) == 1


def test_a_run_that_ends_early_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, count = BatchStep.take, [0]

    def fail(self: BatchStep, *arguments: Any) -> Any:
        count[0] += 1
        if count[0] > 4:
            raise UserError("train.xyz: the disk <b>burns</b>.")
        return take(self, *arguments)

    monkeypatch.setattr(BatchStep, "take", fail)
    with pytest.raises(UserError):
        train(tmp_path, write_water(tmp_path / "train.xyz"))
    page = (tmp_path / "results" / "tiny_run-7.html").read_text(encoding="utf-8")
    assert "failed" in page and "the disk &lt;b&gt;burns&lt;/b&gt;" in page
    assert "Predictions for the validation set after epoch 0" in page
    (stage,) = errors_in(page)["stages"]
    assert stage["sets"] == [["valid", "valid"]] and stage["epoch"] == 0
    assert {name: len(found) for name, found in stage["worst"].items()} == {"energy": 1, "forces": 1}


def test_the_curves_go_on_after_a_restart(tmp_path: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    train(tmp_path, data)
    page = page_of(train(tmp_path, data, "--max_num_epochs=4", "--restart_latest"))
    assert "4 of 4 epochs" in page


def test_the_page_is_written_within_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that takes half a second is not written after each of a thousand epochs of one second."""
    now, written = [0.0], list[float]()

    def write(*_: Any) -> str:
        written.append(now[0])
        now[0] += 0.5
        return ""

    monkeypatch.setattr(run_report, "write_run_page", write)
    report = RunReport(tmp_path / "x.html", clock=lambda: now[0])
    report._facts = object()  # type: ignore[assignment]
    settings = SimpleNamespace(max_num_epochs=1000, lbfgs=False)
    report._trainer = SimpleNamespace(progression=Progression(), settings=settings)  # type: ignore[assignment]
    report._follower = SimpleNamespace(update=lambda anew: RunHistory())  # type: ignore[assignment]
    report._times_back = 0
    for epoch in range(1000):
        now[0] += 1.0
        report.refresh(EpochReport(epoch, False, {"Default": Evaluation(1.0, {})}))
    assert 0.5 * len(written) <= run_report.SHARE * now[0] + 0.5
    assert len(written) > 10


def test_large_sets_stay_small(tmp_path: Path) -> None:
    """Many types, many structures and many atoms: what is drawn is thinned, what is added up is not."""
    from predicted_sets import Made, errors_of

    from mace.pages.errors_document import errors_document
    from mace.pages.run_facts import MeasuredStage
    from mace.reporting.predictions import PredictedSet, summarize_predictions
    from mace.reporting.set_errors import Compared
    from mace.reporting.worst import worst_structures
    from mace.structures.configuration import Configuration

    rng, count = np.random.default_rng(0), 100_000
    numbers = np.array([1, 6, 8])
    positions = rng.normal(size=(3, 3))
    structures = [
        Configuration(numbers, positions, np.zeros((3, 3)), (False,) * 3, config_type=f"t{k % 300}", index=k)
        for k in range(count)
    ]
    energies, forces = rng.normal(size=count), rng.normal(size=(3 * count, 3))
    structure, atom = np.repeat(np.arange(count), 3), np.tile(np.arange(3), count)
    E0s = {"Default": {1: 0.0, 6: 0.0, 8: 0.0}}
    compared = {
        "energy": Compared(energies, energies + 0.01, np.arange(count)),
        "forces": Compared(forces, forces + 0.1 * rng.normal(size=forces.shape), structure, atom),
    }
    errors = errors_of(structures, compared, E0s, batch_size=500)
    sets = [PredictedSet(name, name, Made(structures), errors) for name in ("train", "test")]  # type: ignore[arg-type]
    stages = [MeasuredStage(s, 1, {}, summarize_predictions(sets), worst_structures(sets)) for s in ("one", "two")]
    text = embedded("errors-data", errors_document(stages))
    assert len(text) < 4_000_000
    cells = stages[0].predictions.properties[1].cells
    assert sum(cell.count for cell in cells) == 2 * forces.size
    assert all(len(found) == 40 for found in stages[0].worst.values())


def test_stress_is_shown_where_it_is_labeled(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", [labeled(Atoms("Cu"), config_type="IsolatedAtom"), *copper(8)], format="extxyz")
    page = page_of(train(tmp_path, tmp_path / "train.xyz", "--loss=stress"))
    assert "Stress components" in page and '"cell":[' in page
