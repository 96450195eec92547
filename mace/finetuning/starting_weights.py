"""Starting weights from another run (``--init_from``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from mace.errors import UserError
from mace.finetuning.low_rank import averaged_weights
from mace.model.model_file import check_finite, load_model, misfit
from mace.model.plan import ModelPlan, first_problem
from mace.planning.model_plan import constants_of_heads
from mace.training.checkpoints import differing_fields, load_safely

_LOGGER = logging.getLogger(__name__)


class StartingWeights:
    """The weights of another run, read from a model file or a checkpoint.

    Args:
        path: A ``.model`` file, ``<tag>_last.pt`` or ``<tag>_epoch-<n>.pt``.

    Raises:
        UserError: If the file is neither, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                is_archive = file.read(4) == b"PK\x03\x04"
        except OSError as error:
            raise UserError(f"--init_from: {path} cannot be opened ({error.strerror or error}).") from error
        self.plan: ModelPlan
        self.weights: dict[str, Tensor]
        if is_archive:
            self.plan, self.weights = _weights_of_checkpoint(path)
        else:
            model = load_model(path).model
            self.plan, self.weights = model.plan, model.state_dict()

    def adapted(self, plan: ModelPlan) -> ModelPlan:
        """Return a plan with the constants that belong to the weights.

        Args:
            plan: Plan of the new run.

        Returns:
            The plan with scale and shift of every head and the number of neighbors from the other run, with which the
            weights were trained; its reference energies stay.

        Raises:
            UserError: If the weights belong to a model of a different structure.
        """
        if fields := differing_fields(self.plan, plan):
            hints = {
                "atomic_numbers": "name all elements with --atomic_numbers",
                "heads": "one of several heads is taken with --foundation_model and --foundation_head",
            }
            said = [words for name, words in hints.items() if any(field.startswith(f"{name} ") for field in fields)]
            hint = f" ({'; '.join(said)})" if said else ""
            raise UserError(
                f"--init_from: {self.path} has another model than the settings ({'; '.join(fields)}); set these alike"
                f"{hint}, or start without it."
            )
        kept = plan.model_copy(update={"avg_num_neighbors": self.plan.avg_num_neighbors})
        heads = [
            one.model_copy(update={"scale": other.scale, "shift": other.shift})
            for one, other in zip(plan.every_head, self.plan.every_head, strict=True)
        ]
        kept = kept.model_copy(update=constants_of_heads(heads))
        before = [("avg_num_neighbors", plan.avg_num_neighbors, kept.avg_num_neighbors)]
        for one, head in zip(plan.every_head, kept.every_head, strict=True):
            of_head = f" of head {one.name}" if plan.heads else ""
            before += [(f"scale{of_head}", one.scale, head.scale), (f"shift{of_head}", one.shift, head.shift)]
        for name, measured, value in before:
            if measured != value:
                _LOGGER.info("%s: %s stays as in %s, instead of %s", name, value, self.path, measured)
        return kept


def _weights_of_checkpoint(path: Path) -> tuple[ModelPlan, dict[str, Tensor]]:
    """Read the plan and the weights used for validation from a checkpoint.

    The content is checked too, as a correct checksum does not say which program wrote it.

    Raises:
        UserError: If it cannot be read, or its content is not that of a run.
    """
    try:
        content = load_safely(path)
        plan = ModelPlan.model_validate_json(content["plan"])
        weights = dict(content["weights"])
        _require_fit(path, plan, weights)
        if content.get("average") is not None:
            averages = content["average"]["averages"]
            if content.get("moved"):
                weights |= averaged_weights(weights, content["moved"], averages)
            else:
                weights = dict(zip(weights, averages, strict=True))
                _require_fit(path, plan, weights)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"--init_from: in {path} {first_problem(error)}; name another file.") from error
    except (AssertionError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"--init_from: {path} is no checkpoint of a run ({type(error).__name__}: {str(error)[:100]}); name another "
            "file."
        ) from error
    check_finite(weights, path, "name another file for --init_from")
    return plan, weights


def _require_fit(path: Path, plan: ModelPlan, weights: Mapping[str, Tensor]) -> None:
    if problem := misfit(plan, {name: tuple(weight.shape) for name, weight in weights.items()}):
        raise UserError(f"--init_from: the weights in {path} do not fit the plan beside them: {problem}.")
