"""Do steps get the same batches whoever gathers them, never too many ahead, and a word where one does not come?"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import same

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs import feeding, graph
from mace.graphs.batch_plan import consecutive
from mace.graphs.bucket import Bucket
from mace.graphs.dataset import Batch, Subset
from mace.graphs.feeding import Feeding
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors
from mace.graphs.prepared import StoredDataset
from mace.packing.finishing import finish_set
from mace.structures.configuration import Configuration
from mace.structures.prepared import StoredStructures
from mace.structures.shards import shard_content, write_file
from mace.training.memory import EdgeLimit

WORKERS = (0, 1, 4, 16)


def structure(place: int) -> Configuration:
    rng = np.random.default_rng(place)
    n_atoms = 2 + place % 5
    return Configuration(
        atomic_numbers=rng.choice([1, 8], n_atoms),
        positions=rng.uniform(0.0, 3.0, (n_atoms, 3)),
        cell=9.0 * np.eye(3),
        pbc=(False,) * 3,
        energy=float(place),
        forces=rng.normal(size=(n_atoms, 3)),
        file="train.xyz",
        index=place,
    )


class Observed(InMemoryDataset):
    """Counts the batches it has gathered; waits for permission if there is such an event; fails where it is told to."""

    def __init__(self, count: int = 40) -> None:
        super().__init__([structure(place) for place in range(count)], ElementTable((1, 8)), 2.5)
        self.gathered, self.threads, self._lock = list[list[int]](), set[str](), threading.Lock()
        self.permission: threading.Event | None = None
        self.faults: dict[int, BaseException] = {}

    def neighbors(self, structures: np.ndarray) -> Neighbors:
        chosen = structures.tolist()
        if self.permission is not None:
            self.permission.wait()
        for place in chosen:
            if place in self.faults:
                raise self.faults[place]
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.001 * (chosen[0] % 4))  # threads finish in another order than that of the steps
        with self._lock:
            self.gathered.append(chosen)
            self.threads.add(threading.current_thread().name)
        return super().neighbors(structures)


PLAIN = InMemoryDataset([structure(place) for place in range(40)], ElementTable((1, 8)), 2.5)


def steps(count: int = 40, size: int = 3) -> list[np.ndarray]:
    return list(consecutive(np.random.default_rng(1).permutation(count), size))


def contents(batch: Batch) -> dict[str, Any]:
    parts: dict[str, Any] = {part: vars(getattr(batch, part)) for part in ("graph", "targets")}
    fields = {part: {f.name for f in dataclasses.fields(getattr(batch, part))} for part in parts}
    return {part: {k: v for k, v in held.items() if k in fields[part]} for part, held in parts.items()} | {
        "structures": batch.structures.tolist()
    }


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mace feeding")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not feeders()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK", 0.02), ("SLOW", 2), ("LONGEST", 5), ("CLOSING", 0.2)):
        monkeypatch.setattr(feeding, name, value)


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_the_same_whoever_gathers_them(workers: int) -> None:
    dataset = Observed()
    with Feeding(workers).open(dataset, steps()) as feed:
        assert len(feed) == 14
        found = [(structures, contents(feed.batch(structures))) for structures in feed]
    assert [structures.tolist() for structures, _ in found] == [structures.tolist() for structures in steps()]
    for structures, batch in found:
        assert same(batch, contents(PLAIN.batch(structures)))
    assert len(found) == 14 and feed.waited > 0.0
    mine = threading.main_thread().name
    assert workers == 0 or sum(name != mine for name in dataset.threads) >= min(workers, 4)


def test_unless_a_number_is_given_a_thread_gathers_what_is_on_disk() -> None:
    for on_disk, wanted, threads in ((False, None, 0), (True, None, 1), (False, 4, 4), (True, 0, 0)):
        dataset = Observed()
        dataset.on_disk = on_disk
        for each in (dataset, Subset(dataset, np.arange(40))):
            dataset.threads.clear()
            assert Feeding(wanted).threads_for(each) == threads
            with Feeding(wanted).open(each, steps()) as feed:
                for structures in feed:
                    feed.batch(structures)
            assert len(dataset.threads - {threading.main_thread().name}) == threads


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_more_batches_are_gathered_ahead_than_agreed(workers: int) -> None:
    dataset, most = Observed(), feeding.AHEAD_OF_EACH * workers
    with Feeding(workers).open(dataset, steps(40, 1)) as feed:
        for taken, structures in enumerate(feed):
            until = time.monotonic() + 20.0
            while len(dataset.gathered) < min(taken + most, 40) and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(0.01)
            assert len(dataset.gathered) == min(taken + most, 40)
            feed.batch(structures)
            if taken == 6:
                break
    gathered = len(dataset.gathered)
    time.sleep(0.05)
    assert len(dataset.gathered) == gathered, "nothing is gathered any more"


def test_batches_gathered_ahead_have_no_more_edges_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, plan = Observed(), steps()
    sizes = [int(dataset.edges_of(structures).sum()) for structures in plan]
    monkeypatch.setattr(feeding, "EDGES_AHEAD", max(sizes))
    with Feeding(8).open(dataset, plan) as feed:
        for taken, structures in enumerate(feed):
            feed.batch(structures)
            time.sleep(0.01)
            ahead = sizes[taken + 1 : len(dataset.gathered)]
            # the one that reaches the limit is the last, and one is always allowed
            assert sum(ahead[:-1]) < max(sizes)
    assert len(dataset.gathered) == len(plan)
    with Feeding(8).open(dataset, plan) as feed:
        monkeypatch.setattr(feeding, "EDGES_AHEAD", 0)
        dataset.gathered.clear()
        for taken, structures in enumerate(feed):
            time.sleep(0.005)
            assert len(dataset.gathered) <= taken + 1
            feed.batch(structures)


def stored(folder: Path) -> StoredDataset:
    """Write the structures as a prepared set of three parts without neighbors, and open it."""
    parts = [PLAIN.structures.take(places) for places in np.array_split(np.arange(40), 3)]
    entries = [
        write_file(folder / f"shard-{number}.safetensors", shard_content(part), len(part))
        for number, part in enumerate(parts)
    ]
    finish_set(folder, entries, written_by="a test", r_max=None)
    return StoredDataset(StoredStructures(folder), ElementTable((1, 8)), 2.5, ("Default",))


def test_what_is_on_disk_is_gathered_by_threads_as_from_memory(tmp_path: Path) -> None:
    for workers in (None, 0, 4):
        with Feeding(workers).open(stored(tmp_path), steps()) as feed:
            for structures in feed:
                assert same(contents(feed.batch(structures)), contents(PLAIN.batch(structures)))


@pytest.mark.parametrize("workers", [0, 4])
def test_a_damaged_part_is_named_with_the_structures_that_need_it(tmp_path: Path, workers: int) -> None:
    dataset, path = stored(tmp_path), tmp_path / "shard-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    dataset.stored._shards.clear()
    dataset.stored._opened.clear()
    path.write_bytes(content)
    with (
        pytest.raises(
            UserError, match=r"^train.xyz: structures? [\d, ]+ cannot be made .*shard-1.safetensors: .*damaged"
        ),
        Feeding(workers).open(dataset, steps()) as feed,
    ):
        for structures in feed:
            feed.batch(structures)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), r"OSError: \[Errno 5\] Input/output error."),
        (UserError("shard-00001.safetensors is damaged."), "shard-00001.safetensors is damaged."),
        (RuntimeError("a defect"), "RuntimeError: a defect."),
        (SystemExit(0), "SystemExit: 0."),
    ],
)
def test_what_cannot_be_gathered_is_named(workers: int, error: BaseException, reason: str) -> None:
    dataset = Observed()
    dataset.faults[17] = error
    passed = 0
    with (
        pytest.raises(UserError, match=f"^train.xyz: structure 17 cannot be made into a batch: {reason}$"),
        Feeding(workers).open(dataset, steps()) as feed,
    ):
        for structures in feed:
            feed.batch(structures)
            passed += 1
    # earlier steps are not lost by an error in one that is gathered ahead
    assert passed == next(place for place, structures in enumerate(steps()) if 17 in structures)


def test_what_fails_once_names_all_structures_of_its_batch() -> None:
    dataset, calls = Observed(), [0]

    def once(structures: np.ndarray) -> Neighbors:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(110, "Connection timed out")
        return InMemoryDataset.neighbors(dataset, structures)

    dataset.neighbors = once  # type: ignore[method-assign,assignment]
    with (
        pytest.raises(UserError, match="^train.xyz: structures 2, 3, 5 cannot be made.*Connection timed out"),
        Feeding(1).open(dataset, [np.array([5, 2, 3])]) as feed,
    ):
        for structures in feed:
            feed.batch(structures)


def computed_parts(workers: int) -> list[list[int]]:
    """Go through steps that are short of memory; return the structures computed together."""
    limit, computed = EdgeLimit(None, "a test"), list[list[int]]()
    with Feeding(workers).open(PLAIN, steps(40, 8), lambda structures: limit.split(PLAIN, structures)) as feed:
        for structures in feed:
            for part in limit.parts(PLAIN, structures):
                with part:
                    batch = feed.batch(part.structures)
                    assert same(contents(batch), contents(PLAIN.batch(part.structures)))
                    if batch.graph.n_edges > 30 and len(batch.structures) > 1:
                        raise MemoryError
                if part.fits:
                    computed.append(part.structures.tolist())
    assert limit.edges is not None
    return computed


def test_a_batch_that_does_not_fit_is_halved_as_without_threads() -> None:
    """The step lowers the limit; what was planned with the old one is gathered in the parts that are asked for."""
    alone = computed_parts(0)
    assert sum(alone, []) == np.concatenate(steps(40, 8)).tolist() and max(map(len, alone)) < 8
    for workers in WORKERS[1:]:
        assert computed_parts(workers) == alone


def test_a_thread_that_runs_out_of_memory_makes_the_step_halve_its_batch() -> None:
    dataset, limit = Observed(), EdgeLimit(None, "a test")

    def small(structures: np.ndarray) -> Neighbors:
        if len(structures) > 4:
            raise MemoryError
        return InMemoryDataset.neighbors(dataset, structures)

    dataset.neighbors = small  # type: ignore[method-assign,assignment]
    done = list[int]()
    with Feeding(2).open(dataset, steps(40, 8), lambda structures: limit.split(dataset, structures)) as feed:
        for structures in feed:
            for part in limit.parts(dataset, structures):
                with part:
                    feed.batch(part.structures)
                if part.fits:
                    done += part.structures.tolist()
    assert done == np.concatenate(steps(40, 8)).tolist()


def test_a_disk_that_does_not_answer_is_told_and_does_not_hang_the_run(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Observed()
    dataset.permission = threading.Event()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            UserError, match=r"^No answer for 0 s to the request for train.xyz: structures .*--restart_latest"
        ),
        Feeding(2).open(dataset, steps()) as feed,
    ):
        for structures in feed:
            feed.batch(structures)
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2 and all("can its disk be reached?" in warning for warning in warnings)
    assert len(feeders()) == 2 and all(thread.daemon for thread in feeders()), "they hang still, and hold up nobody"
    dataset.permission.set()
    for thread in feeders():
        thread.join(10.0)


def test_a_disk_that_does_not_even_tell_names_does_not_hang_the_message(impatient: None) -> None:
    dataset, permission = Observed(), threading.Event()
    dataset.permission = permission
    dataset.describe = lambda structures: str(permission.wait())  # type: ignore[method-assign]
    with (
        pytest.raises(UserError, match="request for structures 5, 12, 30 of the set; see whether"),
        Feeding(2).open(dataset, [np.array([30, 5, 12])]) as feed,
    ):
        for structures in feed:
            feed.batch(structures)
    permission.set()
    for thread in feeders():
        thread.join(10.0)


def test_who_waits_can_be_told_to_stop(impatient: None) -> None:
    dataset, looks = Observed(), [0]
    dataset.permission = threading.Event()

    def heed() -> None:
        looks[0] += 1
        if looks[0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Feeding(2, heed=heed).open(dataset, steps()) as feed:
        for structures in feed:
            feed.batch(structures)
    dataset.permission.set()
    for thread in feeders():
        thread.join(10.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_noticed(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: Any) -> None:
        sys.exit()  # ends the thread without a word

    monkeypatch.setattr(feeding, "_gather", die)
    dataset = Observed()
    with (
        pytest.raises(UserError, match=r"^The thread that was to read train.xyz: structures \d+, \d+, \d+ has ended; "),
        Feeding(1).open(dataset, steps()) as feed,
    ):
        for structures in feed:
            feed.batch(structures)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_error_in_a_step_ends_the_threads(error: type[BaseException]) -> None:
    dataset = Observed()
    with pytest.raises(error), Feeding(4).open(dataset, steps()) as feed:
        for structures in feed:
            feed.batch(structures)
            raise error


def test_where_fewer_threads_can_be_started_these_do_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, started = threading.Thread.start, [0]

    def limited(thread: threading.Thread) -> None:
        if started[0] == allowed:
            raise RuntimeError("can't start new thread")
        started[0] += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    allowed, dataset = 2, Observed()
    with caplog.at_level(logging.WARNING), Feeding(4).open(dataset, steps()) as feed:
        assert [feed.batch(structures).structures.tolist() for structures in feed] == [s.tolist() for s in steps()]
    assert [record.message for record in caplog.records] == [
        "--num_workers=4: only 2 threads can be started (can't start new thread)"
    ]
    allowed, started[0] = 0, 0
    with (
        pytest.raises(UserError, match="with --num_workers=0 none is needed"),
        Feeding(4).open(dataset, steps()) as feed,
    ):
        next(iter(feed))


def test_a_thread_gathers_what_a_gpu_computes_with() -> None:
    device = torch.device("cuda:0")
    assert [Feeding(workers, device).threads_for(PLAIN) for workers in (None, 0, 2)] == [1, 0, 2]
    assert Feeding(None).threads_for(PLAIN) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_padded_where_they_are_gathered(workers: int) -> None:
    def bucket_of(graph: Graph) -> Bucket:
        return Bucket.of(graph, n_elements=3)

    with Feeding(workers, bucket_of=bucket_of).open(PLAIN, steps()) as feed:
        for structures in feed:
            batch, plain = feed.batch(structures), PLAIN.batch(structures)
            bucket = bucket_of(plain.graph)
            assert batch.graph.sizes == bucket
            found, expected = contents(batch), contents(plain.padded(bucket))
            assert all(each["graph"].pop("volume")[-1].isnan() for each in (found, expected))
            assert same(found, expected)


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_for_a_gpu_are_page_locked_in_the_thread_that_gathers_them(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, locked, chosen = torch.device("cuda:1"), list[Tensor](), list[torch.device]()

    def choose(wanted: torch.device) -> Any:
        chosen.append(wanted)
        return nullcontext()

    def lock(*shape: int, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        locked.append(torch.zeros(*shape, dtype=dtype))
        return locked[-1]

    monkeypatch.setattr(torch.cuda, "device", choose)
    monkeypatch.setattr(graph.torch, "empty", lock)
    dataset = Observed(6)
    with Feeding(workers, device).open(dataset, steps(6)) as feed:
        for structures in feed:
            batch = feed.batch(structures)
            assert same(contents(batch), contents(PLAIN.batch(structures)))
            held = [value for part in ("graph", "targets") for value in vars(getattr(batch, part)).values()]
            tensors = [each for value in held for each in (value.values() if isinstance(value, dict) else [value])]
            pointers = {tensor.data_ptr() for tensor in locked}
            assert all(t.untyped_storage().data_ptr() in pointers for t in tensors if isinstance(t, Tensor))
            # what would have to be read back from the device is known
            assert vars(batch.graph).keys() >= {"elements_present", "element_counts", "heads_present"}
    assert chosen == [device] * 2


HANGING = """
import threading, numpy as np
from mace.elements import ElementTable
from mace.graphs import feeding
from mace.graphs.in_memory import InMemoryDataset
from mace.graphs.neighbors import Neighbors
from mace.graphs.prepared import StoredDataset
from mace.structures.configuration import Configuration
from mace.packing.finishing import finish_set
from mace.structures.prepared import StoredStructures
from mace.structures.shards import shard_content, write_file

class Hanging(InMemoryDataset):
    def neighbors(self, structures):
        threading.Event().wait()

feeding.CLOSING = 0.2
one = Configuration(np.array([1, 1]), np.eye(3)[:2], np.zeros((3, 3)), (False,) * 3)
with feeding.Feeding(4).open(Hanging([one] * 4, ElementTable((1,)), 2.0), [np.arange(2)] * 4) as feed:
    for structures in feed:
        raise KeyboardInterrupt
"""


def test_threads_that_hang_do_not_keep_a_program_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60.0, check=False)
    assert ended.returncode != 0 and ended.stderr.strip().endswith("KeyboardInterrupt"), ended.stderr
