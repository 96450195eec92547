"""Is a run with captured steps, from its comparison at the start to its last line, the run without?"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from standing_in import Rerun
from torch import Tensor
from training_runs import Run, train, write_water

from mace.errors import UserError
from mace.kernels.compiler import find_compiler
from mace.processes import cuda_graphs
from mace.runs import fast_path
from mace.training.state import TrainingState

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

ON = ("--cuda_graphs=on", "--kernels=c", "--max_num_epochs=3")
OFF = ("--cuda_graphs=off", "--kernels=c", "--max_num_epochs=3")


class StandIns(list[Rerun]):
    """What stood in for CUDA graphs, in the order in which it was made."""

    def __init__(self) -> None:
        self.states: list[weakref.ref[TrainingState]] = []
        self.error: BaseException | None = None

    def make(self, device: torch.device) -> Rerun:
        self.append(Rerun(self.changing))
        self[-1].error = self.error
        return self[-1]

    def changing(self) -> Iterator[Tensor]:
        for state in filter(None, (reference() for reference in self.states)):
            yield from state.model.parameters()
            yield from state.moved.parameters()
            for moments in state.optimizer.state.values():
                yield from (value for value in moments.values() if isinstance(value, Tensor))
            yield from () if state.average is None else state.average.averages


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    found = StandIns()
    begin = TrainingState.__init__

    def remembered(self: TrainingState, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        found.states.append(weakref.ref(self))

    monkeypatch.setattr(TrainingState, "__init__", remembered)
    monkeypatch.setattr(fast_path, "recorder_for", found.make)
    monkeypatch.setattr(fast_path, "has_graphs", lambda device: True)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


def assert_close(one: Run, other: Run) -> None:
    for name, value in one.weights().items():
        torch.testing.assert_close(value, other.weights()[name], rtol=0.0, atol=1e-10, msg=name)


def test_a_run(tmp_path: Path, data: Path, stand_ins: StandIns) -> None:
    run = train(tmp_path / "on", data, *ON, "--ema")
    assert_close(run, train(tmp_path / "off", data, *OFF, "--ema"))
    assert stand_ins[-1].repetitions > 0
    assert run.said(
        r"Kernels: c; a step on the first batch deviates by .* from torch in its \w+, and takes .* ms instead of"
    )
    assert run.said("CUDA graphs: whole steps; after three steps weights deviate by .*, and a step takes")
    assert run.said(r"Steps: \d+ of \d+ from \d+ CUDA graphs?, which took up to 0 MB")
    assert run.said("Batches of evaluations: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--swa", "--start_swa=1", "--ema"),
        ("--freeze=1", "--ema"),
        ("--lora=True", "--lora_rank=2"),
        ("--optimizer=schedulefree",),
        ("--batch_edges=60",),
        ("--max_edges_per_batch=10",),
        ("--default_dtype=float32", "--loss=universal"),
        ("--num_workers=2",),
    ],
)
def test_kinds_of_runs(tmp_path: Path, data: Path, stand_ins: StandIns, flags: tuple[str, ...]) -> None:
    run, plain = train(tmp_path / "on", data, *ON, *flags), train(tmp_path / "off", data, *OFF, *flags)
    if "float32" in " ".join(flags):
        return
    assert_close(run, plain)


@pytest.mark.slow
def test_a_run_that_is_taken_up_again(tmp_path: Path, data: Path, stand_ins: StandIns) -> None:
    straight = train(tmp_path / "a", data, *ON, "--ema", "--max_num_epochs=4")
    train(tmp_path / "b", data, *ON, "--ema", "--max_num_epochs=2")
    resumed = train(tmp_path / "b", data, *ON, "--ema", "--max_num_epochs=4", "--restart_latest")
    assert_close(resumed, straight)


def test_a_capture_that_fails(tmp_path: Path, data: Path, stand_ins: StandIns) -> None:
    stand_ins.error = RuntimeError("operation not permitted when stream is capturing")
    run = train(tmp_path / "auto", data, "--kernels=c", "--max_num_epochs=1")
    assert run.said(r"WARNING: CUDA graphs are not used.*not permitted.*--cuda_graphs=auto")
    with pytest.raises(UserError, match="--cuda_graphs=on is not possible.*not permitted.*--cuda_graphs=off"):
        train(tmp_path / "on", data, *ON)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "--device=cpu has no CUDA graphs"),
        (("--kernels=torch",), "kernels"),
        (("--lbfgs",), "L-BFGS"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, data: Path, flags: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags:
        monkeypatch.setattr(fast_path, "has_graphs", lambda device: True)
    with pytest.raises(UserError, match=f"--cuda_graphs=on is not possible, because .*{reason}.*=auto"):
        train(tmp_path, data, "--cuda_graphs=on", *flags)


def test_a_cpu_has_none() -> None:
    assert not cuda_graphs.has_graphs(torch.device("cpu"))
