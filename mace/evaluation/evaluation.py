"""Predictions for all structures in some files, written along with everything the files already hold."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mace.console.interruption import Interruption
from mace.errors import UserError
from mace.evaluation.annotation import AnnotatedFile, annotated_text, partial_path
from mace.evaluation.comparison import Comparison
from mace.evaluation.inputs import Inputs, Progress, Read
from mace.evaluation.resuming import predicted_before
from mace.evaluation.side_by_side import choose_lanes, divided, work_in_lanes
from mace.formats.frame import Frame
from mace.model.heads import default_head
from mace.model.prediction import nonsense
from mace.pages.plots import plot_parity
from mace.potential.descriptors import descriptors
from mace.potential.potential import Potential, divide_by_structure, stack_members
from mace.processes.garbage_collection import objects_frozen
from mace.properties import COMPARED, PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.configuration import DEFAULT_HEAD, HEAD_KEY, Configuration
from mace.structures.labels import LabelKeys, LabelReport
from mace.structures.sources import HeadNaming, Source, expand_paths
from mace.structures.splitting import check_elements, check_heads
from mace.structures.stress import SMALLEST_VOLUME

_PER_ATOM = (*(name for name in COMPARED if PROPERTIES[name].of_atoms), "node_energies", "descriptors")
_IN_FILES = sorted(COMPARED, key="stress".__eq__)
"""Properties that are predicted if the model has them, in their order in files."""
_COLUMNS = (*_PER_ATOM, *(f"{name}_std" for name in _PER_ATOM))


@dataclass(frozen=True)
class Wanted:
    """What to predict besides energy, forces and dipole, and how to name it.

    Attributes:
        stress: Whether to predict the stress of every structure whose cell has a volume.
        node_energies: Whether to predict the energy of every atom, including its reference energy.
        descriptors: Whether to write the features of every atom.
        descriptor_layers: Number of layers for descriptors, from the first; -1 for all.
        descriptor_invariants: Whether to write only features that are invariant under rotation.
        descriptor_aggregation: ``mean`` or ``per_element_mean``; None for one row per atom.
        prefix: Prefix of the keys of all predictions.
    """

    stress: bool = False
    node_energies: bool = False
    descriptors: bool = False
    descriptor_layers: int = -1
    descriptor_invariants: bool = True
    descriptor_aggregation: str | None = None
    prefix: str = "MACE_"

    def keys(self, potential: Potential) -> list[str]:
        """Return the keys under which predictions of a model or a committee will be written."""
        chosen = [name for name in COMPARED if name in potential.outputs and (name != "stress" or self.stress)]
        chosen += ["node_energies"] * self.node_energies + ["descriptors"] * self.descriptors
        return [
            self.prefix + name for name in [*chosen, *(f"{name}_std" for name in chosen if len(potential.models) > 1)]
        ]


@dataclass
class EvaluationSummary:
    """Summary of an evaluation.

    Attributes:
        report: Where labels were found.
        n_structures: Number of structures.
        n_atoms: Total number of atoms.
        seconds: Time for neighbors, predictions and writing, and for reading again what was not kept.
        without_stress: Number of structures without stress because their cell has no volume.
        errors: Metrics by config_type without isolated atoms, and of all structures as ``"all"``, for labeled
            properties only; by head too if there are several, see `Comparison.errors`.
        plot: Path of the plot, if one was drawn.
        resumed: Number of structures already present in the unfinished output.
        heads: Number of structures for each head, if a model has several.
    """

    report: LabelReport
    n_structures: int = 0
    n_atoms: int = 0
    seconds: float = 0.0
    without_stress: int = 0
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    plot: Path | None = None
    resumed: int = 0
    heads: dict[str, int] = field(default_factory=dict)


class Tally:
    """Counts and errors accumulated during an evaluation.

    Args:
        report: Where labels were found.
        heads: Number of structures for each head.
        plot: PNG file for a plot, drawn if there are labels.
        wanted: What is predicted.
    """

    def __init__(self, report: LabelReport, heads: Mapping[str, int], plot: str | Path | None, wanted: Wanted) -> None:
        self.summary = EvaluationSummary(report, heads=dict(heads))
        self._comparison, self._plot, self._wanted = Comparison(plot is not None, heads), plot, wanted

    def add(self, batch: Sequence[Configuration], predictions: Sequence[dict[str, Any]]) -> None:
        """Count and compare a batch; isolated atoms are not compared."""
        labeled = [place for place, configuration in enumerate(batch) if not configuration.is_isolated_atom]
        self._comparison.add([batch[place] for place in labeled], [predictions[place] for place in labeled])
        summary = self.summary
        summary.n_structures += len(batch)
        summary.n_atoms += sum(configuration.n_atoms for configuration in batch)
        summary.without_stress += sum(self._wanted.stress and "stress" not in prediction for prediction in predictions)

    def finish(self, seconds: float) -> EvaluationSummary:
        """Return the summary with the errors, and draw the plot if one is requested and there are labels."""
        summary = self.summary
        summary.seconds, summary.errors = seconds, self._comparison.errors()
        if self._plot is not None and summary.errors:
            plot_parity(self._comparison.parity(), self._plot, "Predictions against labels")
            summary.plot = Path(self._plot)
        return summary


def evaluate_files(
    potential: Potential,
    paths: str | Path | Sequence[str | Path],
    output: str | Path,
    wanted: Wanted,
    batch_size: int = 64,
    charges_key: str | None = None,
    condition_keys: Mapping[str, str] | None = None,
    progress: Progress = lambda items, words, total: items,
    plot: str | Path | None = None,
    interruption: Interruption | None = None,
    resume: bool = False,
) -> EvaluationSummary:
    """Predict all structures in some files and write them, in order, to one file in the format of its ending.

    If models have several heads, ``info["head"]`` of a structure selects one; structures without it use the one called
    default.

    Everything in the files is kept: labels, other keys, constraints. The output gets its name only once it is complete,
    so it may overwrite the input; see `AnnotatedFile`. Memory does not grow with the files: they are read and checked
    part by part, and then read again as batches need them.

    Args:
        potential: The model; for a committee, mean and standard deviation (``_std``) are written.
        paths: Names of files, folders and patterns; see `mace.structures.sources.expand_paths`.
        output: The file to write.
        wanted: What to predict.
        batch_size: Structures per batch; on a CPU two batches run in parallel, see `mace.evaluation.side_by_side`.
        charges_key: Key of the charges that contribute to dipoles; see `mace.structures.labels.LabelKeys`.
        condition_keys: Keys of conditions, by name; conditions not named have their usual keys.
        progress: Shows how far reading and predicting are.
        plot: PNG file for a plot of predictions against labels, drawn if there are labels.
        interruption: Records signals to stop after the current batch.
        resume: Whether to continue an earlier evaluation that was interrupted, if there is one.

    Returns:
        Counts and errors.

    Raises:
        RunInterrupted: If a signal to stop arrived; the message says how much is done.
        UserError: If a file cannot be read or written, a structure has an element that the model does not know, a
            prediction would replace a label, or the model does not predict what is requested.
    """
    inputs = _open_checked(potential, paths, charges_key, condition_keys or {}, wanted, progress)
    tally = Tally(inputs.report, inputs.heads if any(m.plan.heads for m in potential.models) else {}, plot, wanted)
    structures, n_done = iter(inputs), 0
    if resume:
        n_done = predicted_before(
            partial_path(output),
            structures,
            len(inputs),
            wanted.keys(potential),
            wanted.prefix,
            lambda last: predict_configurations(potential, [last], wanted)[0],
            tally.add,
        )
    tally.summary.resumed = n_done

    def evaluate(batch: list[Read]) -> tuple[str, list[Configuration], list[dict[str, Any]]]:
        configurations, frames = map(list, zip(*batch, strict=True))
        predictions = predict_configurations(potential, configurations, wanted)
        annotations = [_annotations(*pair, wanted) for pair in zip(predictions, frames, strict=True)]
        where = [configuration.where() for configuration in configurations]
        return annotated_text(frames, annotations, where), configurations, predictions

    results = work_in_lanes(evaluate, divided(structures, batch_size), choose_lanes(potential.device))
    total = math.ceil((len(inputs) - n_done) / batch_size)
    began = time.perf_counter()
    with AnnotatedFile(output, resume) as stream, objects_frozen(), closing(results):
        for text, batch, predictions in progress(results, f"Evaluating {paths}", total):
            stream.write(text)
            tally.add(batch, predictions)
            n_done = tally.summary.n_structures
            if interruption is not None and interruption.requested and n_done < len(inputs):
                raise interruption.error(
                    f"{n_done} of {len(inputs)} structures are done; they are in {stream.partial}, and the "
                    "same command with --resume goes on"
                )
    return tally.finish(time.perf_counter() - began)


def _open_checked(
    potential: Potential,
    paths: str | Path | Sequence[str | Path],
    charges_key: str | None,
    condition_keys: Mapping[str, str],
    wanted: Wanted,
    progress: Progress,
) -> Inputs:
    """Read files and check, before anything is written, that the models can predict what is requested."""
    files = expand_paths(paths)
    for name, on in (("stress", wanted.stress), ("energies of atoms", wanted.node_energies)):
        if on and "energy" not in potential.outputs:
            kind = potential.models[0].plan.model
            raise UserError(f"The model is of the kind {kind} and predicts dipoles only; do not ask for {name}.")
    if len(potential.models) > 1 and wanted.descriptors:
        raise UserError("Features of several models have no mean; ask for descriptors with one model at a time.")
    source = Source(
        files,
        LabelKeys(charges=charges_key),
        conditions=potential.conditions,
        condition_keys=condition_keys,
    )
    names = [model.plan.head_names for model in potential.models if model.plan.heads]

    def check(structures: StructureCollection) -> None:
        for known in dict.fromkeys(names):
            check_heads(known, structures)
        check_elements(potential.elements, structures, "the model's training data")

    naming = HeadNaming((names and default_head(names[0])) or DEFAULT_HEAD, HEAD_KEY if names else None)
    inputs = Inputs(source, naming, check, progress)
    for file, (labels, keys) in inputs.labels.items():  # predictions must not replace labels
        for key in wanted.keys(potential):
            if key in (labels if wanted.prefix else keys):
                raise UserError(
                    f"{file}: with --info_prefix='{wanted.prefix}' predictions would take the place of the "
                    f"label '{key}'; choose another prefix, such as MACE_."
                )
    return inputs


def predict_configurations(
    potential: Potential, configurations: Sequence[Configuration], wanted: Wanted
) -> list[dict[str, Any]]:
    """Predict the properties of some structures at once.

    Args:
        potential: The model, or a committee.
        configurations: Structures of elements that the model knows; as many as fit in memory.
        wanted: What to predict.

    Returns:
        For each structure, what the model predicts of ``energy``, ``forces`` ``[atoms, 3]`` and ``dipole`` ``[3]`` and,
        if requested, ``stress`` ``[3, 3]`` (left out without a volume), ``node_energies`` ``[atoms]`` and
        ``descriptors`` ``[atoms, features]``; float64, in eV, Angstrom and e*Angstrom. For a committee these are means,
        and the standard deviations are called ``<name>_std``.

    Raises:
        UserError: If a number is NaN or infinite.
    """
    predictions = potential.evaluate(configurations, stress=wanted.stress, features=wanted.descriptors)
    attributes = {name: name for name in _IN_FILES}
    if wanted.node_energies:
        attributes["node_energies"] = "atomic_energies"
    found = {name: [getattr(each, attribute) for each in predictions] for name, attribute in attributes.items()}
    if wanted.descriptors:
        layers, invariants = wanted.descriptor_layers, wanted.descriptor_invariants
        found["descriptors"] = [descriptors(each, layers, invariants) for each in predictions]
    values = stack_members({name: tensors for name, tensors in found.items() if tensors[0] is not None})
    counts = [configuration.n_atoms for configuration in configurations]
    results = []
    for configuration, members in zip(configurations, divide_by_structure(values, _PER_ATOM, counts), strict=True):
        if abs(np.linalg.det(configuration.cell)) <= SMALLEST_VOLUME:
            members.pop("stress", None)
        if said := nonsense(members):
            raise UserError(f"{configuration.where()}: {said}")
        result: dict[str, Any] = {name: rows[0] for name, rows in members.items()}
        if len(predictions) > 1:
            result = {name: rows.mean(0) for name, rows in members.items()}
            result |= {f"{name}_std": rows.std(0) for name, rows in members.items()}
        results.append({name: value if np.ndim(value) else float(value) for name, value in result.items()})
    return results


def _annotations(
    prediction: dict[str, Any], frame: Frame, wanted: Wanted
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Split a prediction into columns and entries of the comment line, with descriptors aggregated as requested."""
    columns = {name: prediction[name] for name in _COLUMNS if name in prediction}
    entries = {name: value for name, value in prediction.items() if name not in _COLUMNS}
    if wanted.descriptor_aggregation:
        rows = columns.pop("descriptors")
        symbols = np.array(chemical_symbols)[frame.numbers]
        means = {str(symbol): rows[symbols == symbol].mean(0).tolist() for symbol in np.unique(symbols)}
        entries["descriptors"] = rows.mean(0) if wanted.descriptor_aggregation == "mean" else means
    return (
        {wanted.prefix + name: value for name, value in columns.items()},
        {wanted.prefix + name: value for name, value in entries.items()},
    )
