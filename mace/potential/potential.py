"""A trained model or a committee of models, opened once and ready to evaluate structures.

Everything that uses trained models builds on this: the calculator, the evaluation of files, torch-sim, `mace_info`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.compat.importing import open_model
from mace.conditions import joined
from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.graphs.skin import DEFAULT_SKIN, MovingStructures
from mace.model.captured import CapturedPredictions
from mace.model.heads import find_head, with_one_head
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import LoadedModel, ModelMetadata, carry_to
from mace.model.prediction import Prediction, predict
from mace.potential.kernel_check import check_kernels, differs, in_short, tolerance
from mace.potential.loading import expand_models, find_device, find_dtype
from mace.potential.radial_tables import choose_radial_tables
from mace.processes.cuda_graphs import has_graphs, recorder_for
from mace.processes.devices import is_out_of_memory, rounding_of_products
from mace.structures.configuration import Configuration

_LOGGER = logging.getLogger(__name__)

_LOGGER = logging.getLogger(__name__)

MOST_EDGES_CAPTURED = 100_000
"""Directed edges from which on a prediction takes longer than the program takes to order its work."""

_Kind = tuple[tuple[int, ...], float, tuple[str, ...]]
"""What the graphs of models depend on: elements, cutoff and heads."""


@dataclass(frozen=True)
class Member(LoadedModel):
    """A model of a potential, on its device and in its precision; its parameters no longer change.

    Attributes:
        place: Where it comes from, for messages: its file, or the caller that was given a model in memory.
        kernels: The kernels it uses, ``torch``, ``c`` or ``triton``.
        radial_tables: Whether its radial functions are read from tables.
    """

    place: str
    kernels: str
    radial_tables: bool


class Potential:
    """One model, or a committee of models that predict the same properties; created by `open_potential`.

    Args:
        members: The models, at least one.
        skin: Distance beyond the cutoff, in Angstrom, up to which neighbors of moving structures are searched.

    Attributes:
        members: The models with their metadata.
        models: The models alone.
        conditions: Conditions of structures that the models depend on besides the atoms.
        skin: As given.
    """

    _captured: list[CapturedPredictions | None] | None = None
    _turn: threading.Lock

    def __init__(self, members: Sequence[Member], skin: float = DEFAULT_SKIN) -> None:
        self.members, self.skin = tuple(members), skin
        self._turn = threading.Lock()
        self.models = tuple(member.model for member in members)
        self.conditions = joined(model.plan.conditions for model in self.models)
        self._kinds = [(model.plan.atomic_numbers, model.plan.r_max, model.plan.head_names) for model in self.models]
        self._moving: dict[_Kind, MovingStructures] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, here or in another process, is made from: what was captured stays where it is."""
        return {name: value for name, value in vars(self).items() if name not in ("_captured", "_turn", "_moving")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy."""
        vars(self).update(state, _turn=threading.Lock(), _moving={})

    @property
    def outputs(self) -> tuple[str, ...]:
        """Properties that the models predict, from `mace.properties.PROPERTIES`."""
        return self.models[0].plan.outputs

    @property
    def elements(self) -> tuple[int, ...]:
        """The atomic numbers that all models know, in increasing order."""
        return tuple(sorted(set.intersection(*(set(model.plan.atomic_numbers) for model in self.models))))

    @property
    def cutoff(self) -> float:
        """The largest cutoff of the models, in their unit of length."""
        return max(model.plan.r_max for model in self.models)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the first model."""
        return self.models[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.models[0].embedding.device

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of the first model that has several; if none has, the head of the first model."""
        names = [member.heads for member in self.members]
        return next((of_model for of_model in names if len(of_model) > 1), names[0])

    def find_head(self, head: str | None) -> str:
        """Return the name of the requested head, the same for all models.

        Args:
            head: Name of the requested head; None for the only one, or one called default.

        Raises:
            UserError: If a model has no such head, or several heads without a default.
        """
        found = [(find_head(m.heads, head, m.place), len(m.heads) > 1) for m in self.members]
        meant = list(dict.fromkeys(name for name, one_of_several in found if one_of_several))
        if len(meant) > 1:
            raise UserError(
                f"{self.members[0].place}: where no head is named, the models use {' and '.join(meant)}; name one with "
                "head=."
            )
        return meant[0] if meant else found[0][0]

    def check_elements(self, structure: Configuration, where: str = "The structure") -> None:
        """Check that every model knows the elements of a structure.

        Raises:
            UserError: If one does not; the message names the missing elements.
        """
        for model in self.models:
            known = model.plan.atomic_numbers
            if unknown := sorted(set(structure.atomic_numbers.tolist()).difference(known)):
                raise UserError(
                    f"{where} contains {' and '.join(map(chemical_symbol, unknown))}, which the model was not trained "
                    f"on; it knows {', '.join(map(chemical_symbol, known))}."
                )

    def graphs(self, structures: Sequence[Configuration], follow: bool = False) -> list[Graph]:
        """Build the joint graph of some structures for every model; models with equal graphs share one.

        Args:
            structures: Structures of elements that the models know.
            follow: Whether the structures are those of the last call with `follow`, moved slightly: neighbors are then
                searched again only when atoms have moved far enough. The graphs are the same either way. Not
                thread-safe.
        """
        made: dict[_Kind, Graph] = {}
        for key in dict.fromkeys(self._kinds):
            elements, r_max, heads = key
            if follow:
                made[key] = self._moving_structures(key).graph(structures)
            else:
                graph = graph_of_structures(structures, ElementTable(elements), r_max, heads)
                made[key] = graph if self._captures else graph.to(self.device, pinned=True)
        return [made[key] for key in self._kinds]

    def _moving_structures(self, key: _Kind) -> MovingStructures:
        """Return what builds the graphs of moving structures for some models."""
        if key not in self._moving:
            elements, r_max, heads = key
            place = self.device if self._captures is None else torch.device("cpu")
            self._moving[key] = MovingStructures(ElementTable(elements), r_max, heads, self.skin, place)
        return self._moving[key]

    def predict(self, graphs: Sequence[Graph], **wanted: bool) -> list[Prediction]:
        """Evaluate every model on its graph; see `evaluate`."""
        captures = self._captures or [None] * len(self.models)
        return [
            self._predict(model, graph, captured, **wanted)
            for model, graph, captured in zip(self.models, graphs, captures, strict=True)
        ]

    @property
    def _captures(self) -> list[CapturedPredictions | None] | None:
        """What captures the predictions of each model; None if the device captures nothing."""
        if not has_graphs(self.device):
            return None
        if self._captured is None:
            self._captured = [
                CapturedPredictions(model, recorder_for(self.device), "predictions") if model.has_program else None
                for model in self.models
            ]
        return self._captured

    def _predict(self, model: MACE, graph: Graph, captured: CapturedPredictions | None, **wanted: bool) -> Prediction:
        """Evaluate a model, by a CUDA graph if that is possible and worthwhile."""
        if captured is None or wanted.get("features") or graph.n_edges > MOST_EDGES_CAPTURED:
            return predict(model, graph.to(self.device, pinned=True), **wanted)
        with self._turn:
            before, wrong = captured.counts.captured, None
            try:
                found = captured.predict_unpadded(graph.to("cpu"), **wanted)
                if captured.counts.captured == before:
                    return found
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                wrong = f"they fail ({in_short(error)})"
            # what was captured is compared once
            plain = predict(model, graph.to(self.device, pinned=True), **wanted)
            if wrong is None:
                wrong = differs(found, plain, tolerance(model))
            if wrong is not None and self._captured is not None:
                self._captured = [None] * len(self.models)
                _LOGGER.warning("CUDA graphs are not used for predictions on %s, because %s", self.device, wrong)
            return plain

    def evaluate(self, structures: Sequence[Configuration], follow: bool = False, **wanted: bool) -> list[Prediction]:
        """Predict the properties of some structures at once.

        Args:
            structures: Structures of elements that the models know, in their unit of length; as many as fit in memory.
            follow: Whether the structures are those of the last call with ``follow``, moved slightly; see `graphs`.
            **wanted: What to compute besides energies and forces, such as ``stress=True``; see
                `mace.model.prediction.predict`.

        Returns:
            The prediction of each model for all structures.

        Raises:
            UserError: If a structure names a head that a model does not have, or its neighbors cannot be searched.
        """
        return self.predict(self.graphs(structures, follow), **wanted)


def open_potential(
    source: str | Path | MACE | Sequence[str | Path | MACE],
    device: str | torch.device = "cpu",
    precision: str | torch.dtype | None = None,
    head: str | int | None = None,
    kernels: str = "auto",
    radial_tables: bool | None = False,
    skin: float = DEFAULT_SKIN,
    one_head: bool = False,
    committee: bool = True,
    caller: str = "open_potential",
) -> Potential:
    """Open model files of this program or of mace-torch, or copy models in memory, and prepare them for evaluation.

    Args:
        source: A file, a file name pattern, a model, or several of these, which form a committee. Later changes to a
            given model have no effect.
        device: The device to compute on.
        precision: Precision of the models; None or an empty string for the one each was trained in.
        head: Head to select from models with several; None to keep all, and every structure then names its head.
        kernels: See `mace.model.kernel_choice.choose_kernels`.
        radial_tables: See `mace.potential.radial_tables.choose_radial_tables`.
        skin: Distance beyond the cutoff, in Angstrom, up to which neighbors of moving structures are searched.
        one_head: Whether to select one head in any case, by default the one called default; `head` may be a number.
        committee: Whether several models are allowed.
        caller: Name of the caller, for messages.

    Raises:
        UserError: If a model cannot be opened or has no such head, if models of a committee do not predict the same
            properties, or if a device, precision or length is invalid.
    """
    if not (math.isfinite(skin) and skin >= 0.0):
        raise UserError(f"{caller}: skin is {skin}; it must be zero or a positive length in Angstrom.")
    device, dtype = find_device(device), find_dtype(precision)
    sources = [source] if isinstance(source, (str, Path, torch.nn.Module)) else source
    every = [given for each in sources for given in (expand_models(each) if isinstance(each, (str, Path)) else [each])]
    if not every:
        raise UserError(f"{caller}: the list of models is empty; name at least one.")
    if len(every) > 1 and not committee:
        raise UserError(f"{caller}: {source} names {len(every)} models; name one of them.")
    members: list[Member] = []
    for given in every:
        place = str(given) if isinstance(given, Path) else caller
        if isinstance(given, Path):
            loaded = open_model(given, device, dtype, None if one_head else head)
        elif isinstance(given, MACE):
            model, nowhere = (
                carry_to(deepcopy(given), device, dtype or given.dtype),
                ModelMetadata(created="", versions={}),
            )
            loaded = LoadedModel(model, nowhere, given.dtype, given.plan.head_names)
        else:
            kind = type(given)
            raise UserError(
                f"{caller}: the model is a {kind.__name__}; name a model file, or give a model of mace-train, not "
                f"{kind.__module__}.{kind.__name__}."
            )
        model, heads = loaded.model, loaded.heads
        if one_head or not (head is None or isinstance(given, Path)):  # for files, `open_model` has selected it
            heads = (find_head(heads, head, place),)
            model = with_one_head(model, heads[0])
        model.requires_grad_(False)
        choose_kernels(model, kernels)
        chosen = check_kernels(model, kernels)
        tables = choose_radial_tables(model, radial_tables)
        members.append(Member(model, loaded.metadata, loaded.stored_dtype, heads, place, chosen, tables))
    if len({member.model.plan.outputs for member in members}) > 1:
        words = " and ".join(sorted({member.model.plan.model for member in members}))
        raise UserError(f"{caller}: a committee of {words} models cannot be formed; they predict different things.")
    if rounded := rounding_of_products(device, members[0].model.dtype):
        _LOGGER.warning("%s", rounded)
    return Potential(members, skin)


def stack_members(values: Mapping[str, Sequence[Tensor]]) -> dict[str, np.ndarray]:
    """Stack the values of all models into float64 arrays, ``[models, ...]``."""
    return {
        name: np.array([tensor.detach().cpu().numpy() for tensor in of_models], dtype=np.float64)
        for name, of_models in values.items()
    }


def divide_by_structure(
    values: Mapping[str, np.ndarray], of_atoms: Collection[str], n_atoms: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """Split the predictions for a batch by structure.

    Args:
        values: Values by name, ``[models, structures, ...]`` or ``[models, atoms, ...]``.
        of_atoms: Names of values with one row per atom.
        n_atoms: Number of atoms of each structure.

    Returns:
        For each structure, values by name, ``[models, ...]`` or ``[models, atoms, ...]``.
    """
    ends = accumulate(n_atoms)
    return [
        {name: rows[:, end - n : end] if name in of_atoms else rows[:, place] for name, rows in values.items()}
        for place, (end, n) in enumerate(zip(ends, n_atoms, strict=True))
    ]
