"""Does L-BFGS find minima as well as scipy's, whatever happens in between, and is its loss that of all structures?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import original_files as files
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from torch import Tensor
from training_runs import same

from mace.elements import ElementTable
from mace.graphs.batch_plan import HeadSampling, one_head
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.processes.team import Team
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.checkpoints import decode, encode
from mace.training.finiteness import Diverged
from mace.training.lbfgs import LBFGS, MOST_TRIALS, FullBatch, assign, flat, trainable
from mace.training.loss import Loss, make_loss
from mace.training.memory import EdgeLimit
from mace.training.optimization import MovedParameters
from mace.training.step import loss_gradient

Function = Callable[[Tensor], tuple[float, Tensor]]


def rosenbrock(x: Tensor) -> tuple[float, Tensor]:
    point = x.double().numpy()
    return float(rosen(point)), torch.from_numpy(rosen_der(point)).to(x.dtype)


def quadratic(x: Tensor) -> tuple[float, Tensor]:
    """A bowl a million times steeper in one direction than in another."""
    factors = torch.logspace(-3, 3, len(x), dtype=torch.float64).to(x.dtype)
    return float(0.5 * (factors * x * x).sum()), factors * x


def cliff(x: Tensor) -> tuple[float, Tensor]:
    """A slope down to a minimum at 0.1, soon after which there are no numbers."""
    return float((x + 0.01 / x * torch.where(x > 0.0, 1.0, math.nan)).sum()), 1.0 - 0.01 / x**2


def begin(start: float = -1.2, size: int = 8, dtype: torch.dtype = torch.float64, history: int = 10) -> LBFGS:
    return LBFGS(torch.linspace(start, 2.0 * start, size, dtype=dtype), history)


def run(lbfgs: LBFGS, function: Function, iterations: int) -> int:
    """Go on until there is no way down or enough has been done; return the number of evaluations."""
    evaluations = 0
    for _ in range(iterations):
        evaluations += 1
        while not lbfgs.tell(*function(lbfgs.trial())):
            evaluations += 1
        if lbfgs.stuck:
            break
    return evaluations


@pytest.mark.parametrize(("function", "minimum"), [(rosenbrock, 1.0), (quadratic, 0.0)])
def test_it_needs_no_more_evaluations_than_scipy(function: Function, minimum: float) -> None:
    lbfgs = begin()
    scipy = minimize(
        lambda x: tuple(np.asarray(part) for part in function(torch.from_numpy(x))),
        lbfgs.point.numpy(), jac=True, method="L-BFGS-B", options={"maxcor": 10, "ftol": 0.0, "gtol": 1e-6},
    )  # fmt: skip
    evaluations = 0
    while lbfgs.gradient is None or float(lbfgs.gradient.abs().max()) > 1e-6:
        evaluations += 1
        lbfgs.tell(*function(lbfgs.trial()))
    assert evaluations <= 1.3 * scipy.nfev
    np.testing.assert_allclose(lbfgs.point, minimum, atol=1e-3 if function is quadratic else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_ends_where_nothing_is_lower_to_rounding(dtype: torch.dtype) -> None:
    lbfgs = begin(dtype=dtype)
    run(lbfgs, rosenbrock, 500)
    assert lbfgs.stuck
    assert lbfgs.loss < (1e-20 if dtype == torch.float64 else 1e-8)
    at_minimum = LBFGS(torch.ones(3), 10)
    assert at_minimum.tell(*rosenbrock(at_minimum.trial())) and at_minimum.stuck


def test_every_step_satisfies_the_strong_wolfe_conditions() -> None:
    lbfgs = begin()
    lbfgs.tell(*rosenbrock(lbfgs.trial()))
    for _ in range(40):
        before = dataclasses.replace(lbfgs)
        while not lbfgs.tell(*rosenbrock(lbfgs.trial())):
            pass
        moved = lbfgs.point - before.point
        (f, g), (h, k) = rosenbrock(before.point), rosenbrock(lbfgs.point)
        assert (lbfgs.loss, before.loss) == (h, f)
        assert h <= f + 1e-4 * float(g @ moved)
        assert abs(float(k @ moved)) <= 0.9 * abs(float(g @ moved)) * (1.0 + 1e-9)


def test_directions_are_those_of_the_full_matrix() -> None:
    """As long as no pair is forgotten, the matrix of BFGS, updated as in the textbook, gives the same."""
    lbfgs, identity = begin(size=5), torch.eye(5, dtype=torch.float64)
    run(lbfgs, rosenbrock, 7)
    assert len(lbfgs.pairs) == 7
    moved, change = lbfgs.pairs[-1]
    inverse = identity * (moved @ change) / (change @ change)
    for moved, change in lbfgs.pairs:
        left = identity - torch.outer(moved, change) / (moved @ change)
        inverse = left @ inverse @ left.T + torch.outer(moved, moved) / (moved @ change)
    torch.testing.assert_close(lbfgs.direction, -inverse @ lbfgs.gradient, rtol=1e-9, atol=1e-12)


def test_old_pairs_are_forgotten() -> None:
    lbfgs = begin(history=3)
    run(lbfgs, rosenbrock, 12)
    assert len(lbfgs.pairs) == 3


@pytest.mark.parametrize("function", [rosenbrock, cliff])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saved_and_restored_between_any_two_evaluations_it_takes_the_same_way(
    function: Function, dtype: torch.dtype
) -> None:
    straight, broken = begin(0.1, dtype=dtype), begin(0.1, dtype=dtype)
    for _ in range(60):
        answer = function(straight.trial())
        assert torch.equal(straight.trial(), broken.trial())
        assert straight.tell(*answer) == broken.tell(*answer)
        saved = decode(encode({"lbfgs": vars(broken)}), "state")["lbfgs"]
        broken = LBFGS.restored(saved, torch.device("cpu"))
        assert same(vars(broken), vars(straight))


def test_a_loss_that_is_no_number_is_too_far_away() -> None:
    lbfgs, numbers = begin(5.0), list[float]()

    def watched(x: Tensor) -> tuple[float, Tensor]:
        found = cliff(x)
        numbers.append(found[0])
        return found

    run(lbfgs, watched, 100)
    assert not all(map(math.isfinite, numbers))
    np.testing.assert_allclose(lbfgs.point, 0.1, rtol=1e-6)


def test_a_gradient_that_is_no_number_is_too_far_away_too() -> None:
    def broken(x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = quadratic(x)
        return loss, gradient * (math.nan if float(x.abs().max()) > 2.4 else 1.0)

    lbfgs = begin()
    run(lbfgs, broken, 200)
    assert lbfgs.loss < 1e-12


def test_it_does_not_begin_where_there_is_no_number() -> None:
    lbfgs = begin(-1.0)
    with pytest.raises(Diverged, match="the loss of all training structures"):
        lbfgs.tell(*cliff(lbfgs.trial()))


def test_a_direction_that_is_of_no_use_is_given_up_once() -> None:
    """After some good iterations every trial is worse: the pairs go first, then it ends where it is."""
    lbfgs = begin()
    run(lbfgs, rosenbrock, 5)
    point, loss, trials = lbfgs.point, lbfgs.loss, 1
    while not lbfgs.tell(2.0 * loss, torch.ones(8, dtype=torch.float64)):
        trials += 1
    assert lbfgs.stuck and torch.equal(lbfgs.point, point) and lbfgs.loss == loss
    assert MOST_TRIALS < trials <= 2 * MOST_TRIALS and not lbfgs.pairs


def test_pairs_are_kept_for_the_same_function_only() -> None:
    same_function, other_function = begin(), begin()
    for lbfgs in (same_function, other_function):
        run(lbfgs, rosenbrock, 8)
        lbfgs.restart()
    same_function.tell(*rosenbrock(same_function.trial()))
    other_function.tell(*quadratic(other_function.trial()))
    assert len(same_function.pairs) == 8 and not other_function.pairs
    straight = begin()
    run(straight, rosenbrock, 8)
    assert torch.equal(same_function.trial(), straight.trial())


def structures(count: int = 9) -> list[Configuration]:
    """Water with labels and weights that differ, some of them missing."""
    rng, found = np.random.default_rng(0), []
    for place in range(count):
        positions = np.array([[0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.5]]) + rng.normal(0.0, 0.05, (3, 3))
        labels = {"energy": float(rng.normal()) if place % 3 else None}
        labels["forces"] = rng.normal(size=(3, 3)) if place % 4 else None
        found.append(
            Configuration(np.array([8, 1, 1]), positions, np.zeros((3, 3)), (False,) * 3, weight=0.5 + place, **labels)  # type: ignore[arg-type]
        )
    return found


def all_at_once(
    *flags: str, edges: int | None = None, frozen: tuple[str, ...] = (), sampling: HeadSampling | None = None
) -> tuple[FullBatch, MACE, Loss, InMemoryDataset]:
    model, settings = files.model(), parse_training_settings(["--name=x", "--train_file=x.xyz", *flags])
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    dataset = InMemoryDataset(structures(), ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    loss = make_loss("weighted", {"energy": 1.0, "forces": 10.0})
    sampling = sampling or one_head(len(dataset))
    return (
        FullBatch(MovedParameters(model), dataset, EdgeLimit(edges, "training"), settings, Team(), sampling),
        model,
        loss,
        dataset,
    )


@pytest.mark.parametrize(("batch_size", "edges"), [(1, None), (4, None), (100, None), (100, 15), (4, 7)])
def test_the_loss_in_parts_is_that_of_one_large_batch(batch_size: int, edges: int | None) -> None:
    full, model, loss, dataset = all_at_once(f"--batch_size={batch_size}", edges=edges)
    value, gradient = full.loss_and_gradient(loss)
    whole = loss_gradient(model, dataset.batch(range(len(dataset))), loss)
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert value == pytest.approx(float(whole), rel=1e-12)
    torch.testing.assert_close(
        gradient, torch.cat([part.flatten() for part in expected]), rtol=1e-9, atol=1e-11 * float(gradient.abs().max())
    )


@pytest.mark.parametrize("batch_size", [2, 100])
def test_structures_drawn_twice_in_an_epoch_count_twice(batch_size: int) -> None:
    """As in one batch in which they stand twice; of another head, every other structure counts by half."""
    drawn = HeadSampling({"a": 3, "b": 4, "c": 2}, {"a": 6, "b": 4, "c": 1})
    full, model, loss, dataset = all_at_once(f"--batch_size={batch_size}", sampling=drawn)
    value, gradient = full.loss_and_gradient(loss)
    times = [4] * 3 + [2] * 4 + [1] * 2
    whole = loss_gradient(model, dataset.batch(np.repeat(np.arange(9), times)), loss)
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert value == pytest.approx(float(whole), rel=1e-12)
    torch.testing.assert_close(
        gradient, torch.cat([part.flatten() for part in expected]), rtol=1e-9, atol=1e-11 * float(gradient.abs().max())
    )


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    full, model, loss, _ = all_at_once()
    _, gradient = full.loss_and_gradient(loss)
    parameters = trainable(model)
    start, direction = flat(parameters), torch.randn(len(gradient), generator=torch.Generator().manual_seed(0)).double()
    losses = []
    for step in (-1e-5, 1e-5):
        assign(parameters, start + step * direction)
        losses.append(full.loss_and_gradient(loss)[0])
    assert (losses[1] - losses[0]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)


def test_parameters_that_are_not_trained_stay() -> None:
    full, model, loss, _ = all_at_once(frozen=("embedding",))
    before = {name: value.clone() for name, value in model.named_parameters()}
    lbfgs = LBFGS(flat(trainable(model)), 10)
    first = full.loss_and_gradient(loss)[0]
    run(lbfgs, lambda x: (assign(trainable(model), x), full.loss_and_gradient(loss))[1], 5)
    assert lbfgs.loss < 0.9 * first
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (not value.requires_grad), name


def test_an_error_on_the_way_changes_nothing() -> None:
    full, model, loss, _ = all_at_once("--batch_size=4")
    lbfgs = LBFGS(flat(trainable(model)), 10)
    while not full.advance(lbfgs, loss):
        pass
    before, point = dataclasses.replace(lbfgs), flat(trainable(model))

    def stopped(batches: object) -> object:
        yield next(iter(batches))  # type: ignore[call-overload]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full.advance(lbfgs, loss, stopped)  # type: ignore[arg-type]
    assert same(vars(lbfgs), vars(before))
    assert torch.equal(flat(trainable(model)), point) and torch.equal(point, lbfgs.point)
