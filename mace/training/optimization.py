"""Optimizer, learning rate schedule and moving averages of the parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mace.errors import UserError
from mace.kernels.adam import CompiledAdam, CompiledAdamW, DeviceAdam, DeviceAdamW, Follower
from mace.kernels.c_backend import C
from mace.kernels.compiler import CompilationError
from mace.model.mace import MACE
from mace.settings import TrainingSettings

_LOGGER = logging.getLogger(__name__)

DECAYED = ("interactions_decay", "products")
"""Groups of parameters subject to weight decay, as in the original."""


class MovedParameters:
    """The parameters that the optimizer moves: those of the model; subclasses move others, from which these follow.

    Frozen parameters are among them, so that optimizer states and averages keep their order whatever is frozen; they
    never have a gradient.

    Args:
        model: The model, with ``requires_grad`` as it is to be.

    Attributes:
        model: The model.
        roles: Roles of the parameters, by name.
    """

    def __init__(self, model: MACE) -> None:
        self.model, self.roles = model, model.roles
        self._named = list(model.named_parameters())  # to walk through the modules in every step would take time

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and the parameters."""
        return iter(self._named)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def forget_gradients(self) -> None:
        """Remove the gradients of the parameters and of the model."""
        for _, parameter in self._named:
            parameter.grad = None

    def take_gradients(self) -> None:
        """Compute the gradients by the parameters from those by the weights of the model."""

    def update_model(self) -> None:
        """Give the model the weights that follow from the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold besides the weights of the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the weights of the model are restored before."""


def parameter_groups(
    moved: MACE | MovedParameters, lr: float, weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Sort the parameters into the groups of the original, each with its learning rate and weight decay.

    Args:
        moved: The model, or what is moved in its place.
        lr: Learning rate.
        weight_decay: Weight decay of the groups in `DECAYED`.
        factors: Factors on the learning rate, by the keys ``embedding_lr_factor``, ``interactions_lr_factor``,
            ``products_lr_factor`` and ``readouts_lr_factor``.

    Returns:
        Parameter groups for torch's optimizers, each with its name and its learning rate factor.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in moved.named_parameters():
        group: str = moved.roles[name].group
        factor = rate_factor(group, factors)
        entry = {"name": group, "params": [], "lr": lr * factor, "lr_factor": factor}
        groups.setdefault(group, entry | {"weight_decay": weight_decay if group in DECAYED else 0.0})
        groups[group]["params"].append(parameter)
    return list(groups.values())


def rate_factor(group: str, factors: Mapping[str, float]) -> float:
    """Return the factor on the learning rate of a group; see `parameter_groups`."""
    return factors.get(f"{group.split('_')[0]}_lr_factor", 1.0)


def require_optimizer(settings: TrainingSettings) -> None:
    """Check that the optimizer is installed before any data are read.

    Raises:
        UserError: If the package of the schedule-free optimizer is not installed.
    """
    if settings.optimizer == "schedulefree" and find_spec("schedulefree") is None:
        raise UserError(
            "--optimizer=schedulefree needs the package schedulefree; install it with "
            "pip install 'mace-train[schedulefree]', or choose adam or adamw."
        )


def make_optimizer(moved: MACE | MovedParameters, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Build the optimizer selected in the settings."""
    groups = parameter_groups(moved, settings.lr, settings.weight_decay, settings.lr_params_factors)
    if settings.optimizer == "schedulefree":
        from schedulefree import AdamWScheduleFree  # imported here because it takes time

        betas = (settings.beta1_schedulefree, settings.beta2_schedulefree)
        return AdamWScheduleFree(groups, lr=settings.lr, betas=betas)
    decoupled = settings.optimizer == "adamw"
    device = next(iter(moved.parameters())).device
    fused = device.type in ("cpu", "cuda")  # devices for which torch has a fused update
    flags: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (settings.beta, 0.999),
        "amsgrad": settings.amsgrad,
        "fused": fused,
    }
    backend = (moved if isinstance(moved, MACE) else moved.model).backend
    if backend.name == "triton" and backend.has_programs(device):
        return (DeviceAdamW if decoupled else DeviceAdam)(groups, **flags)
    if backend is C:
        try:
            return (CompiledAdamW if decoupled else CompiledAdam)(groups, **flags)
        except CompilationError as error:
            _LOGGER.warning("The optimizer's step runs in torch, slower than it could, because %s", error)
    return (torch.optim.AdamW if decoupled else torch.optim.Adam)(groups, **flags)


class Schedule:
    """Learning rate schedule: a rule over the epochs of stage one, a constant in stage two.

    Args:
        optimizer: The optimizer whose learning rates are set.
        settings: ``scheduler`` and its parameters; with the schedule-free optimizer, nothing is done in stage one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> None:
        self._optimizer = optimizer
        self._rule: torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau | None
        if settings.optimizer == "schedulefree":
            self._rule = None
        elif settings.scheduler == "ExponentialLR":
            self._rule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=settings.lr_scheduler_gamma)
        else:
            self._rule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=settings.lr_factor, patience=settings.scheduler_patience
            )

    def epoch_ended(self, valid_loss: float | None) -> None:
        """Advance the schedule by one epoch of stage one.

        Args:
            valid_loss: The validation loss, or None if the epoch was not evaluated; plateaus count evaluations.
        """
        if isinstance(self._rule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if valid_loss is not None:
                self._rule.step(valid_loss)
        elif self._rule is not None:
            self._rule.step()

    def set_constant(self, lr: float) -> None:
        """Set the learning rate of every group to `lr` times the group's factor."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {} if self._rule is None else self._rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; the kind of schedule and its parameters stay as currently set."""
        own = self.state_dict()
        if self._rule is not None and state and ("gamma" in own) == ("gamma" in state):
            self._rule.load_state_dict(state | {key: own[key] for key in ("factor", "patience", "gamma") if key in own})


class MovingAverage:
    """Exponential moving average of the parameters, with a smaller decay at the start as in the original.

    Args:
        parameters: The parameters to average; frozen ones are their own average.
        decay: Fraction of the old average that is kept at each update, after many updates.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self.decay = decay
        self.n_updates = 0
        self.averages = [p.detach().clone() if p.requires_grad else p.detach() for p in self._parameters]
        self._moving = [place for place, parameter in enumerate(self._parameters) if parameter.requires_grad]
        self._pairs = [(self._parameters[place], self.averages[place]) for place in self._moving]

    def begin_update(self) -> Follower:
        """Count an update, and return what it has to do, for a step that does it in the same pass over memory."""
        self.n_updates += 1
        return Follower(self._pairs, 1.0 - min(self.decay, (1 + self.n_updates) / (10 + self.n_updates)))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages toward the parameters."""
        pairs, weight = self.begin_update()
        torch._foreach_lerp_([average for _, average in pairs], [parameter.detach() for parameter, _ in pairs], weight)

    def assign(self) -> None:
        """Give the parameters their averages for good."""
        self._copy([self.averages[place] for place in self._moving])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged parameters inside a ``with`` block."""
        own = [self._parameters[place].detach().clone() for place in self._moving]
        self._copy([self.averages[place] for place in self._moving])
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for place, value in zip(self._moving, values, strict=True):
            self._parameters[place].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"decay": self.decay, "n_updates": self.n_updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; the decay stays as currently set."""
        self.n_updates = state["n_updates"]
        with torch.no_grad():
            for average, saved in zip(self.averages, state["averages"], strict=True):
                average.copy_(saved)
