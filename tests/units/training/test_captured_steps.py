"""Are captured steps those of a training without captures, whatever changes meanwhile?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from standing_in import Rerun
from torch import Tensor

from mace.elements import ElementTable
from mace.finetuning.low_rank import LowRankCorrections
from mace.graphs.batch_plan import Step
from mace.graphs.feeding import Feeding
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.adam import CompiledStep
from mace.kernels.compiler import find_compiler
from mace.model.captured import CapturedPredictions, Captures, bucket_of
from mace.processes.team import Team
from mace.settings import TrainingSettings, parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import BatchStep, CapturedSteps
from mace.training.evaluation import evaluate
from mace.training.loss import make_loss
from mace.training.memory import EdgeLimit
from mace.training.optimization import MovedParameters
from mace.training.state import TrainingState
from tests.program_models import OF_HEADS, SMALL, build

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

ONE, TWO = (make_loss("weighted", {"energy": weight, "forces": 10.0}) for weight in (1.0, 100.0))
FLAGS = ("--name=x", "--train_file=x.xyz", "--ema", "--ema_decay=0.9", "--clip_grad=1.0", "--lr=0.02")


def structures(heads: tuple[str, ...] = ("Default",)) -> list[Configuration]:
    """Sixteen molecules of three sizes."""
    rng = np.random.default_rng(5)
    made = []
    for place in range(16):
        n = 3 + place % 3
        positions = 1.3 * np.arange(n)[:, None] * [1.0, 0.3, 0.1] + rng.uniform(-0.2, 0.2, (n, 3))
        labels: dict[str, Any] = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3))}
        if place == 3:
            del labels["forces"]
        head = heads[place % len(heads)]
        made.append(Configuration(rng.choice([1, 6, 8], n), positions, np.eye(3), (False,) * 3, head=head, **labels))
    return made


class Training:
    """A training of a small model, step by step."""

    def __init__(self, captured: bool, flags: tuple[str, ...] = (), rank: int = 0, **changes: Any) -> None:
        self.model = build(torch.float64, **SMALL | changes)
        self.settings: TrainingSettings = parse_training_settings([*FLAGS, *flags])
        moved: MovedParameters | None = None
        if rank:
            moved = LowRankCorrections(self.model, rank, 1.0, seed=1)
        self.state = TrainingState(self.model, self.settings, (ONE, TWO), moved)
        plan = self.model.plan
        heads = plan.head_names
        table = ElementTable(plan.atomic_numbers)
        self.dataset = InMemoryDataset(structures(heads), table, plan.r_max, heads=heads)
        self.limit = EdgeLimit(None, "training")
        self.step = BatchStep(self.state, self.dataset, self.limit, self.settings, Team())
        self.recorder = Rerun(self.changing)
        if captured:
            self.step.captured = CapturedSteps(self.state, self.settings.clip_grad, self.recorder)

    def changing(self) -> Iterator[Tensor]:
        """What a step changes."""
        yield from self.model.parameters()
        yield from self.state.moved.parameters()
        for state in self.state.optimizer.state.values():
            yield from state.values()
        if self.state.average is not None:
            yield from self.state.average.averages

    def epoch(self, number: int) -> list[tuple[float, float]]:
        """Take the steps of an epoch; return losses and norms."""
        order = np.random.default_rng(number).permutation(len(self.dataset))
        found = []
        for chosen in np.split(order, 4):
            outcome = self.step.take(Step(chosen), self.state.loss, (False, False))
            numbers = outcome.read()
            found.append((numbers.loss, numbers.norm))
        self.state.schedule.epoch_ended(None)
        return found


def numbers(training: Training) -> Iterable[Tensor]:
    return [tensor.detach() for tensor in training.changing()]


def compare(change: Callable[[Training], None] = lambda training: None, epochs: int = 4, **arguments: Any) -> Training:
    """Train with captures and without, with a change in the middle; return the training with captures."""
    found = []
    for captured in (False, True):
        training = Training(captured, **arguments)
        course = []
        for epoch in range(epochs):
            if epoch == epochs // 2:
                change(training)
            course.append(training.epoch(epoch))
        found.append((training, course))
    (plain, expected), (captured_, course) = found
    np.testing.assert_allclose(course, expected, rtol=1e-10)
    for one, other in zip(numbers(captured_), numbers(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-10)
    if captured_.state.average is not None and plain.state.average is not None:
        assert captured_.state.average.n_updates == plain.state.average.n_updates
    return captured_


def counts(training: Training) -> tuple[int, int, int]:
    assert training.step.captured is not None
    of = training.step.captured.counts
    return of.captured, of.repeated, of.others


def test_steps_are_those_without_captures() -> None:
    training = compare()
    captured, repeated, others = counts(training)
    assert captured and repeated > others and repeated + others == 16
    assert training.recorder.repetitions == repeated
    assert isinstance(training.state.optimizer, CompiledStep)


@pytest.mark.parametrize("arguments", [{"rank": 2}, {"flags": ("--optimizer=adamw", "--no_amsgrad")}, dict(OF_HEADS)])
def test_kinds_of_training(arguments: dict[str, Any]) -> None:
    assert counts(compare(**arguments))[1] > 4


def to_stage_two(training: Training) -> None:
    training.state.begin_stage_two()


def freeze(training: Training) -> None:
    next(iter(training.model.readouts.parameters())).requires_grad_(False)


def go_back(training: Training) -> None:
    training.state.go_back(training.state.state_dict())


def load_weights(training: Training) -> None:
    training.model.load_state_dict({name: 1.01 * value for name, value in training.model.state_dict().items()})


def replace_weights(training: Training) -> None:
    for parameter in training.model.parameters():
        parameter.data = parameter.data.clone() * 1.01


def without_averages(training: Training) -> None:
    training.state.average = None


def slower(training: Training) -> None:
    training.state.schedule.set_constant(0.001)


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (to_stage_two, True),
        (load_weights, True),
        (slower, True),
        (freeze, False),
        (go_back, False),
        (replace_weights, False),
        (without_averages, False),
    ],
)
def test_what_changes_on_the_way(change: Callable[[Training], None], is_kept: bool) -> None:
    """Weights and rates are read where they were; anything else is captured anew."""
    forgotten = list[int]()

    def changed(training: Training) -> None:
        change(training)
        if training.step.captured is not None:
            forgotten.append(len(training.step.captured._captures._uses))

    training = compare(changed, epochs=6)
    assert training.step.captured is not None
    assert counts(training)[1] > 6
    after = len(training.step.captured._captures._uses)
    assert forgotten and (after >= forgotten[0]) == is_kept or not is_kept


def test_a_changed_optimizer_state_is_noticed() -> None:
    """Without looking at it, the captured steps would go on with moments that nobody else knows."""
    training = Training(captured=True)
    for epoch in range(2):
        training.epoch(epoch)
    captured = counts(training)[0]
    go_back(training)
    training.epoch(2)
    training.epoch(3)
    assert counts(training)[0] > captured


class TwoProcesses(Team):
    """The first of two, whose gradients are doubled as if the other one had the same."""

    rank, size = 0, 2

    def share(self, chosen: np.ndarray, edges: np.ndarray) -> np.ndarray:
        return chosen[: len(chosen) // 2]

    def add_up(self, parameters: Any, own: Tensor, kind: str) -> Tensor:
        for parameter in parameters:
            parameter.grad = None if parameter.grad is None else 2.0 * parameter.grad
        return 2.0 * own


def test_only_the_gradient_is_captured_where_it_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for captured in (False, True):
        training = Training(captured)
        training.step._team = TwoProcesses()
        found.append(([training.epoch(epoch) for epoch in range(3)], training))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-10)
    assert counts(found[1][1])[1] > 2


def test_counts_of_an_epoch_are_read_anew() -> None:
    def course(captured: bool) -> list[float]:
        training, found = Training(captured), []
        for number in range(5):
            divisors = {"energy": torch.tensor(3.0 + number), "forces": torch.tensor(50.0)}
            outcome = training.step.take(Step(np.arange(4)), ONE, (False, False), counts=divisors)
            found.append(outcome.read().loss)
        return found

    np.testing.assert_allclose(course(True), course(False), rtol=1e-12)


def test_parts_are_computed_without_captures() -> None:
    def limited(training: Training) -> None:
        training.limit.edges = 8

    assert counts(compare(limited))[1] < 8


def test_memory_that_runs_out_in_a_capture(caplog: pytest.LogCaptureFixture) -> None:
    training, plain = Training(captured=True), Training(captured=False)
    training.recorder.error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    for epoch in range(3):
        np.testing.assert_allclose(training.epoch(epoch), plain.epoch(epoch), rtol=1e-10)
    assert counts(training)[1] == 0
    assert all("without one" in message for message in caplog.messages) and caplog.messages


def test_another_error_in_a_capture_is_not_hidden() -> None:
    training = Training(captured=True)
    training.recorder.error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        for epoch in range(3):
            training.epoch(epoch)


def test_a_run_goes_on_without_what_cannot_be_captured(caplog: pytest.LogCaptureFixture) -> None:
    training, plain = Training(captured=True), Training(captured=False)
    training.recorder.error = RuntimeError("operation not permitted when stream is capturing")
    training.step.captured = CapturedSteps(training.state, 1.0, training.recorder, strict=False)
    for epoch in range(3):
        np.testing.assert_allclose(training.epoch(epoch), plain.epoch(epoch), rtol=1e-10)
    (line,) = caplog.messages
    assert "not permitted" in line and "no more are" in line and counts(training)[1] == 0


def test_a_number_that_is_not_finite() -> None:
    """It is in the results, and what is loaded from before gets rid of it."""
    training = Training(captured=True)
    for epoch in range(2):
        training.epoch(epoch)
    good = deepcopy(training.state.state_dict())
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    assert all(np.isnan(loss) for loss, _ in training.epoch(2))
    training.state.go_back(good)
    assert all(np.isfinite(loss) for loss, _ in training.epoch(3))
    assert counts(training)[1] > 4


def test_the_least_recently_used_is_given_up() -> None:
    recorder = Rerun()
    captures = Captures(recorder, torch.device("cpu"), "tests", most=2)
    for key, value in [("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0), ("a", 5.0), ("b", 6.0), ("b", 7.0)]:
        use = captures.use(key, {"x": torch.tensor(value)}, [])
        captured = captures.ready(use, lambda use=use: {"y": 2.0 * use.given["x"]}, lambda: None)
        if captured is not None:
            captured.repeat()
            assert float(captured.results["y"]) == 2.0 * value
    assert list(captures._uses) == ["a", "b"] and recorder.captures == 2
    recorder.most_bytes, recorder.n_bytes = 10.0, 8
    for key in "cddcc":
        use = captures.use(key, {"x": torch.tensor(1.0)}, [])
        captures.ready(use, lambda use=use: {"y": 2.0 * use.given["x"]}, lambda: None)
    assert captures._n_bytes() <= 10 and captures.counts.most_bytes <= 10
    assert "CUDA graph" in str(captures.counts)


def test_evaluations() -> None:
    training = Training(captured=False)
    plain = evaluate(training.model, training.dataset, ONE, 3, keep_details=True)
    recorder = Rerun()
    captured = CapturedPredictions(training.model, recorder, "validation")
    feeding = Feeding(bucket_of=partial(bucket_of, training.model))
    for _ in range(3):
        found = evaluate(captured, training.dataset, ONE, 3, keep_details=True, feeding=feeding)
        assert found.loss == pytest.approx(plain.loss, rel=1e-12)
        assert found.metrics.keys() == plain.metrics.keys()
        for name, value in plain.metrics.items():
            assert found.metrics[name] == pytest.approx(value, rel=1e-10), name
        assert found.by_type == pytest.approx(plain.by_type) if not plain.by_type else True
    assert recorder.repetitions > 6
