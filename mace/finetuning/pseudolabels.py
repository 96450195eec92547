"""Labels by the foundation model itself (pseudo-labels), for replay that keeps what the model knows.

Predictions are kept in a folder, a file for some hundred structures, so that a later run with the same model and
structures reads them, and an interrupted one loses little.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mace.elements import ElementTable
from mace.errors import UserError
from mace.files.durable import write_durably
from mace.finetuning.foundation import Foundation
from mace.graphs.in_memory import InMemoryDataset
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import carry_to
from mace.model.prediction import nonsense, predict
from mace.properties import PREDICTED, PROPERTIES
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.structures.splitting import first_with_others
from mace.training.memory import EdgeLimit

_LOGGER = logging.getLogger(__name__)

PER_FILE = 500
"""Structures whose predictions share a file."""

_FORMAT = b"pseudo-labels 1"
"""Part of every key; another one makes all stored predictions invalid."""

_BY_STRAIN = ("stress", "virials")
"""Properties that not every structure is given."""

_UNREADABLE = (ValueError, KeyError, EOFError, AttributeError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What damaged files, and others than those of NumPy, lead to when they are read."""

Predictions = dict[str, np.ndarray]
"""Predictions of some structures by property, ``[structures, ...]`` or ``[atoms, ...]``."""


def label_with_foundation(
    foundation: Foundation,
    configurations: Sequence[Configuration],
    batch_size: int,
    device: torch.device | str = "cpu",
    every_stress: bool = False,
    folder: Path | None = None,
    limit: EdgeLimit | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    kernels: str = "auto",
) -> list[Configuration]:
    """Replace the labels of structures by what the foundation model predicts.

    All labels of properties that models predict are replaced, so that none of another level of theory is left; those
    that the foundation model does not predict are removed. A structure has a stress, or virials, if it had one with
    weight. Weights of structures, properties and atoms stay, except that a property whose weight was zero, as it is
    where there was no label, has weight one.

    Args:
        foundation: The foundation model, with one head; it is not changed.
        configurations: The structures; their heads are ignored, and kept.
        batch_size: Number of structures to evaluate at a time.
        device: Where to evaluate.
        every_stress: Whether structures that are periodic in three directions have stress and virials even if they had
            none.
        folder: Where predictions are kept; None to keep none.
        limit: Limit on the edges computed at a time, in addition to the batch size.
        progress: Wraps the iteration over batches, for a progress bar; there is no batch of what is read from files.
        kernels: See `mace.model.kernel_choice.choose_kernels`.

    Returns:
        The structures in the same order.

    Raises:
        UserError: If a structure has an element that the model does not know, predictions are not finite, or a
            structure does not fit into memory.
    """
    _check_elements(foundation, configurations)
    parts = [configurations[start : start + PER_FILE] for start in range(0, len(configurations), PER_FILE)]
    stored: list[Predictions | None] = [None] * len(parts)
    files: list[_File] = []
    if folder is not None:
        model_hash = _hash_of_model(foundation.model)
        files = [_File(folder, _key(model_hash, part), foundation.plan.outputs, part) for part in parts]
        stored = [file.read() for file in files]
    missing = [i for i, found in enumerate(stored) if found is None]
    n_missing = sum(len(parts[i]) for i in missing)
    _LOGGER.info(
        "Labels of %d structures by the foundation model %s: %d to compute%s",
        len(configurations),
        foundation.source,
        n_missing,
        f", {len(configurations) - n_missing} from {folder}" if folder is not None else "",
    )
    if missing:
        model = carry_to(deepcopy(foundation.model), device, foundation.model.dtype)
        choose_kernels(model, kernels)
        evaluator = _Evaluator(model.requires_grad_(False), limit or EdgeLimit(None, "labeling"))
        batches = [(i, start) for i in missing for start in range(0, len(parts[i]), batch_size)]
        for number in progress(range(len(batches))):
            i, start = batches[number]
            evaluator.add(parts[i], slice(start, start + batch_size))
            if start + batch_size >= len(parts[i]):
                predictions = stored[i] = evaluator.finish()
                if files:
                    files[i].write(predictions)
    return [
        labeled
        for part, predictions in zip(parts, stored, strict=True)
        for labeled in _labeled(part, predictions or {}, every_stress)
    ]


@dataclass
class _Evaluator:
    """Evaluates the structures of one file after the other, batch by batch.

    Attributes:
        model: The model, on its device.
        limit: Limit on the edges computed at a time.
        dataset: Graphs of the structures of the current file.
        found: Their predictions so far, by property.
    """

    model: MACE
    limit: EdgeLimit
    dataset: InMemoryDataset | None = None
    found: dict[str, list[np.ndarray]] | None = None

    def add(self, structures: Sequence[Configuration], chosen: slice) -> None:
        """Predict some of the structures, which are the next of their file."""
        if self.dataset is None or self.found is None:
            plan = self.model.plan
            bare = [replace(c, stress=None, head=DEFAULT_HEAD) for c in structures]
            self.dataset = InMemoryDataset(bare, ElementTable(plan.atomic_numbers), plan.r_max)
            self.found = {name: [] for name in plan.outputs}
        for part in self.limit.parts(self.dataset, np.arange(len(structures))[chosen]):
            with part:
                graph = self.dataset.graph(part.structures).to(self.model.embedding.device)
                prediction = predict(self.model, graph, stress=True)
                values = {name: getattr(prediction, name).detach().cpu().double().numpy() for name in self.found}
            if not part.fits:
                continue
            n_atoms = self.dataset.atoms_of(part.structures)
            for place, rows in zip(part.structures, _rows(values, n_atoms), strict=True):
                # stress is NaN where there is no volume
                if problem := nonsense({name: row for name, row in rows.items() if name != "stress"}):
                    raise UserError(f"{structures[int(place)].where()}: {problem}")
            for name, array in values.items():
                self.found[name].append(array)

    def finish(self) -> Predictions:
        """Return the predictions of the current file, in the order of its structures."""
        assert self.found is not None, "asked after the last batch"
        predictions = {name: np.concatenate(arrays) for name, arrays in self.found.items()}
        self.dataset = self.found = None
        return predictions


def _rows(predictions: Predictions, n_atoms: Sequence[int] | np.ndarray) -> list[dict[str, np.ndarray]]:
    """Divide predictions by structure."""
    ends = np.cumsum(n_atoms)[:-1]
    divided = {
        name: np.split(values, ends) if PROPERTIES[name].of_atoms else list(values)
        for name, values in predictions.items()
    }
    return [{name: rows[i] for name, rows in divided.items()} for i in range(len(n_atoms))]


def _labeled(
    configurations: Sequence[Configuration], predictions: Predictions, every_stress: bool
) -> list[Configuration]:
    """Give structures their new labels and weights."""
    labeled = []
    for old, row in zip(configurations, _rows(predictions, [c.n_atoms for c in configurations]), strict=True):
        changes: dict[str, Any] = dict.fromkeys(PREDICTED)
        weights, atom_weights = dict(old.property_weights), dict(old.atom_weights)
        for name, values in row.items():
            had = getattr(old, name) is not None and weights.get(name, 1.0) > 0.0
            has_meaning = name != "stress" or bool(np.isfinite(values).all())
            if name in _BY_STRAIN and not (has_meaning and (had or every_stress and all(old.pbc))):
                continue
            changes[name] = float(values) if values.ndim == 0 else values.copy()
            if not weights.get(name, 1.0) > 0.0:
                weights[name] = 1.0
            if not np.any(atom_weights.get(name, 1.0)):
                del atom_weights[name]
        labeled.append(replace(old, **changes, property_weights=weights, atom_weights=atom_weights))
    return labeled


def _hash_of_model(model: MACE) -> bytes:
    """Return a hash of the plan and of every weight with its precision."""
    digest = hashlib.sha256(_FORMAT + model.plan.model_dump_json().encode())
    for name, weight in model.named_parameters():
        digest.update(f"\0{name} {weight.dtype} {tuple(weight.shape)}\0".encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _key(model_hash: bytes, configurations: Sequence[Configuration]) -> str:
    """Return a hash of a model and of everything about structures that predictions depend on."""
    digest = hashlib.sha256(model_hash)
    for configuration in configurations:
        inputs = {
            "numbers": configuration.atomic_numbers,
            "positions": configuration.positions,
            "cell": configuration.cell,
            "pbc": np.array(configuration.pbc),
            "charges": np.zeros(0) if configuration.charges is None else configuration.charges,
            **{f"condition {name}": values for name, values in sorted(configuration.conditions.items())},
        }
        for name, values in inputs.items():
            digest.update(f"\0{name} {values.dtype.str} {values.shape}\0".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _File:
    """A file of predictions.

    Attributes:
        folder: Where it is.
        key: Hash of what its predictions depend on.
        outputs: Properties that it holds.
        configurations: Its structures.
    """

    folder: Path
    key: str
    outputs: tuple[str, ...]
    configurations: Sequence[Configuration]

    @property
    def path(self) -> Path:
        """Its path."""
        return self.folder / f"labels-{self.key}.npz"

    def read(self) -> Predictions | None:
        """Read the predictions; None if there are none, with a warning if the file is damaged or of something else."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                predictions = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (*_UNREADABLE, OSError) as error:
            problem = str(error) or type(error).__name__
        else:
            key = predictions.pop("key", np.array(""))
            problem = "it is of other structures" if str(key) != self.key else self._misfit(predictions)
            if not problem:
                return predictions
        _LOGGER.warning("%s cannot be used (%s); its labels are computed anew", self.path, problem[:200])
        return None

    def _misfit(self, predictions: Predictions) -> str:
        """Say what is wrong with stored predictions; nothing if they may be those of the structures."""
        if predictions.keys() != set(self.outputs):
            return f"it holds {', '.join(predictions) or 'nothing'}"
        n_atoms, n_structures = sum(c.n_atoms for c in self.configurations), len(self.configurations)
        for name, values in predictions.items():
            shape = (n_atoms if PROPERTIES[name].of_atoms else n_structures, *PROPERTIES[name].shape)
            if values.shape != shape or values.dtype != np.float64:
                return f"'{name}' is {values.dtype} of the shape {values.shape}, not float64 of {shape}"
            if name != "stress" and not np.isfinite(values).all():
                return f"'{name}' is not finite"
        return ""

    def write(self, predictions: Predictions) -> None:
        """Store predictions; a failure is a warning only, as it costs nothing but time in later runs."""
        content = io.BytesIO()
        np.savez(content, key=np.array(self.key), **predictions)  # type: ignore[arg-type]  # none is called allow_pickle
        try:
            write_durably(self.path, content.getvalue())
        except OSError as error:
            reason = error.strerror or error
            _LOGGER.warning("%s: labels by the foundation model cannot be kept (%s)", self.path, reason)


def _check_elements(foundation: Foundation, configurations: Sequence[Configuration]) -> None:
    """Check that the foundation model knows all elements of the structures.

    Raises:
        UserError: If not; the message names the structure.
    """
    if found := first_with_others(foundation.plan.atomic_numbers, configurations):
        raise UserError(
            f"{found[0].where()} contains {found[1]}, which the foundation model {foundation.source} does not know, so "
            "that it cannot label the structure; take it out."
        )
