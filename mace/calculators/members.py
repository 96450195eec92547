"""The models of a calculator, one or a committee."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from mace.calculators.results import result_names
from mace.compat.importing import open_model
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import carry_to
from mace.potential.loading import expand_models


@dataclass(frozen=True)
class Member:
    """A model of a calculator.

    Attributes:
        model: The model.
        heads: Names of its heads.
        shortest_distances: See `mace.model.model_file.ModelMetadata`; empty where they are not known.
        place: What has it, for messages.
    """

    model: MACE
    heads: tuple[str, ...]
    shortest_distances: dict[str, float]
    place: str


def open_members(paths: Any, models: Any, device: torch.device, dtype: torch.dtype | None) -> list[Member]:
    """Open model files, or copy models in memory, so that what happens to the given ones later changes no energy.

    Args:
        paths: Files and patterns; None for models in memory.
        models: Models, one or a list.
        device: Where they are to live.
        dtype: Their precision; None for that of each.

    Raises:
        UserError: If one cannot be opened, or there is none.
    """
    if paths is not None:
        members = []
        for file in expand_models(paths):
            loaded = open_model(file, device, dtype)
            members.append(Member(loaded.model, loaded.heads, loaded.metadata.shortest_distances, str(file)))
        if not members:
            raise UserError("MACECalculator: the list of model_paths is empty; name at least one.")
        return members
    given: list[Any] = [models] if isinstance(models, torch.nn.Module) else list(models)
    if not given:
        raise UserError("MACECalculator: the list of models is empty; name at least one.")
    for model in given:
        if not isinstance(model, MACE):
            kind = f"{type(model).__module__}.{type(model).__name__}"
            raise UserError(f"MACECalculator: models must hold models of mace-train, not {kind}; use model_paths.")
    copies = [carry_to(deepcopy(model), device, dtype or model.dtype) for model in given]
    return [Member(model, model.plan.head_names, {}, "MACECalculator") for model in copies]


def implemented_results(models: Sequence[MACE]) -> list[str]:
    """List the results of some models.

    Raises:
        UserError: If they do not all predict the same.
    """
    outputs = {model.plan.outputs for model in models}
    if len(outputs) > 1:
        words = " and ".join(sorted({model.plan.model for model in models}))
        raise UserError(
            f"MACECalculator: a committee of {words} models cannot be formed; they predict different things."
        )
    return result_names(outputs.pop(), committee=len(models) > 1)
