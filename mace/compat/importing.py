"""Models of mace-torch become models of this program; `open_model` takes files of either."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from mace.compat.couplings import CouplingError
from mace.compat.dictionary import with_dictionaries
from mace.compat.modules import Original, read_original
from mace.compat.reader import CannotConvert, Known, Reader
from mace.compat.recovery import (
    check_kind,
    heads_of,
    precision_of,
    recover_plan,
)
from mace.compat.verification import verify
from mace.compat.weights import weights_from_original
from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.files.archives import is_torch_file, sha256_of
from mace.model.heads import find_head, with_one_head
from mace.model.mace import MACE
from mace.model.model_file import LoadedModel, ModelMetadata, carry_to, load_model, misfit
from mace.model.plan import ModelPlan, first_problem

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportedModel:
    """What was made of a file of mace-torch.

    Attributes:
        model: The model, in the precision of the file, on the CPU.
        metadata: Where it comes from.
        kind: The original's class; ``checkpoint`` for a file of weights.
        heads: Names of all heads of the file.
        head: The head that was taken, or the only one; None if all of several were.
        n_checks: Constants and normalizations of the file that were compared with this program's.
    """

    model: MACE
    metadata: ModelMetadata
    kind: str
    heads: tuple[str, ...]
    head: str | None
    n_checks: int

    def summary(self) -> str:
        """Say in one line what was opened."""
        plan = self.model.plan
        elements = ", ".join(chemical_symbol(z) for z in plan.atomic_numbers[:12])
        more = f" and {plan.n_elements - 12} more" if plan.n_elements > 12 else ""
        head = _describe_heads(self.heads, self.head)
        return (
            f"{self.kind} of mace-torch converted ({plan.n_layers} layers, {plan.n_channels} channels, r_max "
            f"{plan.r_max:.6g} A, {elements}{more}{head}); {self.n_checks} constants and normalizations agree"
        )


def import_original(path: str | Path, head: str | int | None = None, known: Known | None = None) -> ImportedModel:
    """Convert a model or training checkpoint of mace-torch 0.2 to 0.3.16; nothing in the file is run.

    Args:
        path: The file.
        head: Name or number of the head to take; None for all.
        known: What a checkpoint does not tell.

    Returns:
        The model.

    Raises:
        UserError: If the file is damaged or something else, or holds what this program does not have; it is named.
    """
    original = read_original(path)
    reader = Reader(original, known or Known())
    try:
        check_kind(reader)
        heads = heads_of(reader)
        plan, degrees = recover_plan(reader)
        n_checks = verify(reader, plan, degrees)
        dtype = getattr(torch, precision_of(original.state))
        model = _built(plan, weights_from_original(original.state, plan, degrees), dtype)
    except UserError:
        raise  # it is a ValueError, but says what is wrong already
    except CannotConvert as error:
        raise UserError(_explained(original, str(error))) from error
    except ValidationError as error:
        raise UserError(_explained(original, first_problem(error, "its plan"))) from error
    except CouplingError as error:
        raise UserError(_explained(original, f"its {error}")) from error
    except KeyError as error:
        raise UserError(_explained(original, f"it has no weight {error}")) from error
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError) as error:
        # shapes that contradict each other, in a damaged file or an unknown kind of model
        raise UserError(_explained(original, f"its weights do not fit each other ({error})")) from error
    kind = original.tree.kind if original.tree is not None else "checkpoint"
    if head is not None:
        head = find_head(heads, head, str(original.path))
        model = with_one_head(model, head)
    head = heads[0] if len(heads) == 1 else head
    article, sha256 = "an" if kind[0] in "AEIOU" else "a", sha256_of(original.path)
    whole = f"{article} {kind} of mace-torch{_describe_heads(heads, head)}"
    comment = f"converted from {original.path.name}, {whole}, SHA-256 {sha256}"
    metadata = ModelMetadata(name=original.path.stem, comment=comment)
    return ImportedModel(model, metadata, kind, heads, head, n_checks)


def _built(plan: ModelPlan, weights: dict[str, np.ndarray], dtype: torch.dtype) -> MACE:
    """Build the model; the shapes of its weights are compared before memory is taken for it."""
    if problem := misfit(plan, {name: value.shape for name, value in weights.items()}):
        raise CannotConvert(f"its weights do not fit its plan: {problem}")
    if len({value.dtype for value in weights.values()}) > 1:
        raise CannotConvert("its weights are of different precisions")
    if wrong := sorted(name for name, value in weights.items() if not np.isfinite(value).all()):
        raise CannotConvert(f"the weights of {', '.join(wrong[:3])} are NaN or infinite")
    model = MACE(plan, dtype)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})
    return model


def _explained(original: Original, reason: str) -> str:
    way_out = (
        "convert it with mace_import_model, giving a model of the same run with --like, or --avg_num_neighbors and "
        "--gate"
        if "a checkpoint does not tell" in reason
        else "use it with mace-torch, or train such a model here"
    )
    return f"{original.path}: this model of mace-torch cannot be converted: {reason}; {way_out}."


def _describe_heads(heads: tuple[str, ...], head: str | None) -> str:
    """Say which heads a file has, and which was taken."""
    if len(heads) == 1:
        return ""
    return f", head {head} of {', '.join(heads)}" if head is not None else f", heads {', '.join(heads)}"


def heads_in(path: str | Path) -> tuple[str, ...]:
    """Return the names of the heads of a model file of either program.

    Raises:
        UserError: If it cannot be opened.
    """
    if not is_torch_file(path):
        return load_model(path).heads
    original = read_original(path)
    try:
        return heads_of(Reader(original, Known()))
    except CannotConvert as error:
        raise UserError(_explained(original, str(error))) from error


def known_from(path: str | Path) -> Known:
    """Take what a checkpoint does not tell from a model of the same run, of either program.

    Raises:
        UserError: If the model cannot be opened.
    """
    loaded = open_model(path)
    plan = loaded.model.plan
    return Known(plan.avg_num_neighbors, plan.gate, plan.interactions, loaded.heads, plan)


def open_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    head: str | int | None = None,
) -> LoadedModel:
    """Open a model file of this program or of mace-torch.

    Args:
        path: The file.
        device: Where the model is to live.
        dtype: Precision; without it, that of the file.
        head: Head to take of a model that has several, by name or number; None for all.

    Returns:
        The model, which can be called with mace-torch's dictionaries too, and where it comes from.

    Raises:
        UserError: If it cannot be opened, or has no such head.
    """
    if not is_torch_file(path):
        loaded = load_model(path, device, dtype)
        if head is not None:
            head = find_head(loaded.heads, head, str(path))
            loaded = replace(loaded, model=with_one_head(loaded.model, head), heads=(head,))
        return replace(loaded, model=with_dictionaries(loaded.model))
    imported = import_original(path, head)
    stored = imported.model.dtype
    _LOGGER.info("%s: %s", path, imported.summary())
    heads = imported.heads if imported.head is None else (imported.head,)
    model = with_dictionaries(carry_to(imported.model, device, dtype or stored))
    return LoadedModel(model, imported.metadata, stored, heads)


def completed(known: Known, avg_num_neighbors: float | None, gate: str | None) -> Known:
    """Put what was typed over what a model of the same run tells."""
    if avg_num_neighbors is not None:
        known = replace(known, avg_num_neighbors=avg_num_neighbors)
    return known if gate is None else replace(known, gate=gate)
