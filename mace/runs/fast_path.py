"""Choosing, on a device, between fast and plain ways to take a step: by a comparison on the first batch of the run."""

from __future__ import annotations

import logging
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from mace.errors import UserError
from mace.graphs.batch_size import plan_batches
from mace.graphs.dataset import Batch
from mace.kernels.adam import CompiledStep
from mace.kernels.backend import TORCH
from mace.model.captured import bucket_of
from mace.model.kernel_choice import is_explicit
from mace.potential.kernel_check import Verdict, check_kernels, compare, fall_back, of_prediction, tolerance
from mace.preparation.preparation import Preparation
from mace.processes.cuda_graphs import Recorder, has_graphs, recorder_for
from mace.processes.devices import release_memory
from mace.processes.team import Team
from mace.runs.context import RunContext
from mace.settings import TrainingSettings
from mace.training.batch_step import CapturedSteps
from mace.training.loss import Loss
from mace.training.optimization import MovedParameters
from mace.training.phases import unmarked
from mace.training.state import TrainingState
from mace.training.step import loss_gradient, update_parameters

_LOGGER = logging.getLogger(__name__)

MOST_EDGES = 50_000
"""Directed edges that are compared at most; plain kernels need more memory than others."""

RATE = 0.1
"""Learning rate of the steps that are compared, large enough for rounding not to matter."""


def require_graphs(settings: TrainingSettings, device: torch.device) -> None:
    """Check that CUDA graphs are not asked for where they cannot be.

    Raises:
        UserError: If they are.
    """
    if settings.cuda_graphs == "on" and (reason := _obstacle_of_settings(settings, device)):
        raise UserError(f"--cuda_graphs=on is not possible, because {reason}; use --cuda_graphs=auto.")


def _obstacle_of_settings(settings: TrainingSettings, device: torch.device) -> str | None:
    if not has_graphs(device):
        return f"--device={device} has no CUDA graphs"
    if settings.kernels == "torch":
        return "kernels in torch wait for the device (--kernels=torch)"
    if settings.lbfgs:
        return "L-BFGS decides with numbers of the device what it does next (--lbfgs)"
    return None


def choose_fast_path(run: RunContext, preparation: Preparation, moved: MovedParameters) -> Recorder | None:
    """Compare kernels of a device, and CUDA graphs, with what is plain, and leave to the run what is right and fast.

    The comparison is made with copies: it changes no weights and no random numbers.

    Args:
        run: The context of the run.
        preparation: The data of the run.
        moved: What is trained, with the model on its device; it gets kernels in torch if others are wrong or slower.

    Returns:
        What captures steps; None if nothing is to be captured.

    Raises:
        UserError: If what is wrong or impossible was asked for.
    """
    settings, model, device = run.settings, moved.model, run.device
    if device.type == "cpu" and not has_graphs(device):
        return None
    batch, loss = first_batch(run, preparation), preparation.data.losses[0]
    choose_by_steps(settings, moved, batch, loss, run.team)
    reason = _obstacle_of_settings(settings, device)
    if reason is None and not model.has_program:
        reason = f"the kernels are those in {model.backend.name}"
    if settings.cuda_graphs == "off":
        return None
    if reason is not None:
        if settings.cuda_graphs == "on":
            raise UserError(f"--cuda_graphs=on is not possible, because {reason}; use --cuda_graphs=auto.")
        _LOGGER.info("CUDA graphs: none, because %s", reason)
        return None
    return choose_graphs(settings, moved, batch, loss, run.team)


def first_batch(run: RunContext, preparation: Preparation) -> Batch:
    """Return the first batch of the run, or as much of it as is to be compared, on the CPU."""
    plan = plan_batches(run.settings, preparation.train, preparation.sampling, run.team.size)
    structures = next(iter(plan.steps(0, 0))).structures
    edges = np.cumsum(preparation.train.edges_of(structures))
    return preparation.train.batch(structures[: max(1, int((edges <= MOST_EDGES).sum()))])


class _Copy:
    """A copy of a training that takes steps which have no effect on it."""

    def __init__(self, moved: MovedParameters, settings: TrainingSettings, loss: Loss, plain: bool = False) -> None:
        copied = deepcopy(moved)
        if plain:
            copied.model.use_backend(TORCH)
        self.state = TrainingState(copied.model, settings, (loss, None), copied)
        for group in self.state.optimizer.param_groups:
            group["lr"] = RATE
        self.state.optimizer_mode("train")
        self.settings, self.loss, self.has_run = settings, loss, False

    def weights(self) -> Tensor:
        """Return all that is moved as one tensor."""
        return torch.cat([parameter.detach().flatten() for parameter in self.state.moved.parameters()])

    def step(self, batch: Batch, shared: list[list[Tensor | None]]) -> dict[str, Tensor]:
        """Take a step, the first time with the gradients of the copy that was first; return what is compared."""
        state, found = self.state, dict[str, Tensor]()
        if not self.has_run:
            found = of_prediction(state.model, batch.graph)
        state.moved.forget_gradients()
        loss_gradient(state.model, batch, self.loss)
        state.moved.take_gradients()
        parameters = list(state.moved.parameters())
        gradients = [parameter.grad for parameter in parameters]
        found["gradients"] = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        if not self.has_run:
            shared.append([None if gradient is None else gradient.clone() for gradient in gradients])
            for parameter, gradient in zip(parameters, shared[0], strict=True):
                parameter.grad = None if gradient is None else gradient.clone()  # clipping changes it
        before = self.weights()
        update_parameters(state.moved, state.optimizer, self.settings.clip_grad, state.average)
        state.moved.update_model()
        found["steps"], self.has_run = self.weights() - before, True
        return found


def choose_by_steps(settings: TrainingSettings, moved: MovedParameters, batch: Batch, loss: Loss, team: Team) -> None:
    """Let a model use kernels in torch if others are wrong, or slower and not asked for; see `choose_fast_path`."""
    model, name = moved.model, moved.model.backend.name
    if model.backend.name == TORCH.name:
        check_kernels(model, settings.kernels)
        return
    _LOGGER.info("Comparing kernels in %s with those in torch; they are compiled first, if they never were", name)
    verdict = _compare_kernels(settings, moved, batch, loss)
    release_memory()
    wrong, slower = _of_all(team, verdict)
    if wrong is not None:
        fall_back(model, wrong, settings.kernels)
    elif verdict is None:
        _LOGGER.warning("Memory does not suffice to compare kernels in %s with those in torch on the first batch", name)
    else:
        worst = verdict.deviations[verdict.worst]
        said = f"a step on the first batch deviates by {worst:.1e} from torch in its {verdict.worst}"
        if slower and not is_explicit(settings.kernels, name):
            model.use_backend(TORCH)
            _LOGGER.info("Kernels: torch; %s, and those in %s take %s", said, name, verdict.times)
        else:
            _LOGGER.info("Kernels: %s; %s, and takes %s", name, said, verdict.times)


def _compare_kernels(settings: TrainingSettings, moved: MovedParameters, batch: Batch, loss: Loss) -> Verdict | None:
    device, shared = moved.model.embedding.device, list[list[Tensor | None]]()
    on_device = batch.to(device, pinned=True)
    fast, plain = _Copy(moved, settings, loss), _Copy(moved, settings, loss, plain=True)
    return compare(
        lambda: fast.step(on_device, shared),
        lambda: plain.step(on_device, shared),
        tolerance(moved.model),
        device,
    )


def choose_graphs(
    settings: TrainingSettings, moved: MovedParameters, batch: Batch, loss: Loss, team: Team
) -> Recorder | None:
    """Return what captures steps, if captured ones are those of the program and faster; see `choose_fast_path`."""
    device = moved.model.embedding.device
    verdict, is_whole = _compare_graphs(settings, moved, batch, loss, team)
    release_memory()
    wrong, slower = _of_all(team, verdict)
    if wrong is not None:
        if settings.cuda_graphs == "on":
            raise UserError(f"--cuda_graphs=on is not possible, because {wrong}; use --cuda_graphs=off.")
        _LOGGER.warning("CUDA graphs are not used, which is slower, because %s (--cuda_graphs=auto)", wrong)
        return None
    if settings.cuda_graphs == "auto" and (verdict is None or slower):
        why = "memory does not suffice" if verdict is None else f"they are not faster, {verdict.times}"
        _LOGGER.info("CUDA graphs: none, because %s on the first batch", why)
        return None
    what = "whole steps" if is_whole else "gradients, without the step of the optimizer"
    if verdict is not None:
        said = f"after three steps weights deviate by {verdict.deviations['weights']:.1e}, and a step takes"
        _LOGGER.info("CUDA graphs: %s; %s %s", what, said, verdict.times)
    return recorder_for(device)


def _compare_graphs(
    settings: TrainingSettings, moved: MovedParameters, batch: Batch, loss: Loss, team: Team
) -> tuple[Verdict | None, bool]:
    """Compare the third of captured steps with that of steps without; return too whether steps are captured whole."""
    model, device = moved.model, moved.model.embedding.device
    recorder, is_alone = recorder_for(device), team.size == 1
    padded = batch.padded(bucket_of(model, batch.graph))
    one, other = _Copy(moved, settings, loss), _Copy(moved, settings, loss)
    steps = CapturedSteps(one.state, settings.clip_grad, recorder)

    def finish(copy: _Copy) -> dict[str, Tensor]:
        update_parameters(copy.state.moved, copy.state.optimizer, settings.clip_grad, copy.state.average)
        copy.state.moved.update_model()
        return {"weights": copy.weights()}

    def captured() -> dict[str, Tensor]:
        for _ in range(max(1, 3 - steps.counts.repeated - steps.counts.others)):
            one.state.moved.forget_gradients()
            _, norm = steps.take(padded, loss, None, unmarked, complete=is_alone)
            found = finish(one) if norm is None else {"weights": one.weights()}
        return found

    def uncaptured() -> dict[str, Tensor]:
        for _ in range(1 if other.has_run else 3):
            other.state.moved.forget_gradients()
            loss_gradient(other.state.model, padded.to(device, pinned=True), loss)
            other.state.moved.take_gradients()
            found = finish(other)
        other.has_run = True
        return found

    verdict = compare(captured, uncaptured, tolerance(model), device)
    if verdict is not None and verdict.error is None and not steps.counts.repeated:
        return None, False  # memory ran out, which was said already
    return verdict, is_alone and isinstance(one.state.optimizer, CompiledStep)


def _of_all(team: Team, verdict: Verdict | None) -> tuple[str | None, bool]:
    """Return what is wrong in any process, and whether what is compared is slower in all of them together."""
    own = None if verdict is None or verdict.is_right else str(verdict)
    times = (0.0, 0.0) if verdict is None else (verdict.fast, verdict.plain)
    every = team.gather((own, *times))
    wrong = next((found for found, *_ in every if found is not None), None)
    return wrong, sum(fast for _, fast, _ in every) > sum(plain for *_, plain in every)
