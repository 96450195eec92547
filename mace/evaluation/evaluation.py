"""Predictions for all structures of some files, written beside what the files already say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from torch import Tensor

from mace.conditions import joined
from mace.console.interruption import Interruption
from mace.elements import ElementTable
from mace.errors import UserError
from mace.evaluation.annotation import AnnotatedFile, annotated_text, partial_path
from mace.evaluation.comparison import Comparison
from mace.evaluation.descriptors import descriptors
from mace.evaluation.resuming import check_continuation, check_same_model, complete_frames, written_predictions
from mace.evaluation.side_by_side import choose_lanes, work_in_lanes
from mace.graphs.dataset import GraphDataset
from mace.model.heads import default_head
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.model.prediction import nonsense, predict
from mace.pages.plots import plot_parity
from mace.processes.garbage_collection import objects_frozen
from mace.properties import PROPERTIES
from mace.structures.configuration import DEFAULT_HEAD, HEAD_KEY, Configuration
from mace.structures.frame import Frame
from mace.structures.labels import LabelKeys, LabelReport
from mace.structures.reading import ReadResult, read_sources
from mace.structures.sources import Source, expand_paths
from mace.structures.splitting import check_elements, check_heads
from mace.structures.stress import SMALLEST_VOLUME

_PER_ATOM = ("forces", "node_energies", "descriptors", "forces_std", "node_energies_std")

Batches = Iterable[list[Configuration]]


@dataclass(frozen=True)
class Wanted:
    """What to predict besides energy, forces and dipole, and how to call it.

    Attributes:
        stress: Stress of every structure whose cell has a volume.
        node_energies: Energy of every atom, with its reference energy.
        descriptors: Features of every atom.
        descriptor_layers: Of the first so many layers; -1 for all.
        descriptor_invariants: Only those that do not turn with the structure.
        descriptor_aggregation: ``mean`` or ``per_element_mean``; None for one row per atom.
        prefix: Start of the key of everything that is predicted.
    """

    stress: bool = False
    node_energies: bool = False
    descriptors: bool = False
    descriptor_layers: int = -1
    descriptor_invariants: bool = True
    descriptor_aggregation: str | None = None
    prefix: str = "MACE_"

    def keys(self, plan: ModelPlan, committee: bool = False) -> list[str]:
        """Return the keys that will be written with what a model, or a committee of such, predicts."""
        names = {
            "energy": plan.predicts_energy,
            "forces": plan.predicts_energy,
            "dipole": plan.predicts_dipole,
            "stress": self.stress,
            "node_energies": self.node_energies,
            "descriptors": self.descriptors,
        }
        chosen = [name for name, on in names.items() if on]
        return [self.prefix + name for name in [*chosen, *(f"{name}_std" for name in chosen if committee)]]


@dataclass
class EvaluationSummary:
    """What an evaluation went through and found.

    Attributes:
        report: Where labels were found.
        n_structures: Structures.
        n_atoms: Atoms in all of them.
        seconds: Time for neighbors, predictions and writing, without reading.
        without_stress: Structures that have no stress because their cell has no volume.
        errors: Metrics by config_type, isolated atoms left out, and of all structures under ``"all"``; only what is
            labeled.
        plot: The picture, if one was drawn.
        resumed: Structures that were in the unfinished output already.
        heads: How many structures are for each head, if a model has several.
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
    """What an evaluation has gone through so far.

    Args:
        reading: What was read.
        heads: Structures for each head.
        keep: Whether to keep all values, for a picture.
        wanted: What is predicted.
    """

    def __init__(self, reading: ReadResult, heads: Counter[str], keep: bool, wanted: Wanted) -> None:
        self.summary, self._comparison = EvaluationSummary(reading.report, heads=heads), Comparison(keep)
        self._isolated = {id(configuration) for configuration in reading.isolated_atoms}
        self._wanted = wanted

    def add(self, batch: Sequence[Configuration], predictions: Sequence[dict[str, Any]]) -> None:
        """Count and compare a batch; isolated atoms are not compared."""
        labeled = [place for place, configuration in enumerate(batch) if id(configuration) not in self._isolated]
        self._comparison.add([batch[place] for place in labeled], [predictions[place] for place in labeled])
        summary = self.summary
        summary.n_structures += len(batch)
        summary.n_atoms += sum(configuration.n_atoms for configuration in batch)
        summary.without_stress += sum(self._wanted.stress and "stress" not in prediction for prediction in predictions)

    def finish(self, seconds: float, plot: str | Path | None) -> EvaluationSummary:
        """Return the summary with the errors, and draw the picture if one is wanted and there is something to draw."""
        summary = self.summary
        summary.seconds, summary.errors = seconds, self._comparison.errors()
        if plot is not None and summary.errors:
            plot_parity(self._comparison.parity(), plot, "Predictions against labels")
            summary.plot = Path(plot)
        return summary


def evaluate_files(
    models: MACE | Sequence[MACE],
    paths: str | Path | Sequence[str | Path],
    output: str | Path,
    wanted: Wanted,
    batch_size: int = 64,
    charges_key: str | None = None,
    condition_keys: Mapping[str, str] | None = None,
    progress: Callable[[Batches, int], Batches] = lambda batches, total: batches,
    plot: str | Path | None = None,
    interruption: Interruption | None = None,
    resume: bool = False,
) -> EvaluationSummary:
    """Predict all structures of some files and write them, in their order, as one file in the format of its ending.

    Of models that have several heads, ``info["head"]`` of a structure names the one it is for; others are for the one
    called default.

    Everything the files say of a structure is kept: labels, other keys, constraints. The output appears under its name
    only once it is complete, so it may be the input itself; see `AnnotatedFile`.

    Args:
        models: The model, on its device and in its precision; several form a committee, whose mean and standard
            deviation (``_std``) are written.
        paths: Files of any format ASE reads, and patterns.
        output: The file to write.
        wanted: What to predict.
        batch_size: Structures in a batch; on a CPU two are worked on side by side, see `mace.evaluation.side_by_side`.
        charges_key: Key of the charges that are part of dipoles; see `mace.structures.labels.LabelKeys`.
        condition_keys: Keys of conditions, by name; those that are not named have the usual ones.
        progress: Wraps the iteration over batches; gets their number.
        plot: A PNG of predictions against labels, if there are any.
        interruption: Signals that ask for an end after the present batch.
        resume: Go on where an earlier evaluation was interrupted, if it was.

    Returns:
        Counts and errors.

    Raises:
        RunInterrupted: If a signal asks for an end; it says what is done.
        UserError: If a file cannot be read or written, a structure has an element the model does not know, or a
            prediction would take the place of a label, or the model does not predict what is wanted.
    """
    members = [models] if isinstance(models, MACE) else list(models)
    reading, configurations, frames = _read_checked(members, paths, charges_key, condition_keys or {}, wanted)
    heads = Counter(c.head for c in configurations if any(model.plan.heads for model in members))
    tally = Tally(reading, heads, plot is not None, wanted)
    done = _resume(members, output, configurations, wanted) if resume else []
    if done:
        tally.add(configurations[: len(done)], done)
    tally.summary.resumed = len(done)
    places = [slice(start, start + batch_size) for start in range(len(done), len(configurations), batch_size)]

    def evaluate(place: slice) -> tuple[str, list[dict[str, Any]]]:
        predictions = predict_committee(members, configurations[place], wanted)
        return _annotated(frames[place], configurations[place], predictions, wanted), predictions

    results = work_in_lanes(evaluate, places, choose_lanes(members[0].embedding.device))
    batches = progress([configurations[place] for place in places], len(places))
    began = time.perf_counter()
    with AnnotatedFile(output, resume) as stream, objects_frozen(), closing(results):
        for batch, (text, predictions) in zip(batches, results, strict=True):
            stream.write(text)
            stream.flush()
            tally.add(batch, predictions)
            n_done = tally.summary.n_structures
            if interruption is not None and interruption.requested and n_done < len(configurations):
                raise interruption.error(
                    f"{n_done} of {len(configurations)} structures are done; they are in {stream.partial}, and the "
                    "same command with --resume goes on"
                )
    return tally.finish(time.perf_counter() - began, plot)


def _resume(
    models: Sequence[MACE], output: str | Path, configurations: Sequence[Configuration], wanted: Wanted
) -> list[dict[str, Any]]:
    """Return the predictions of an unfinished output, after making sure that it is one of the same evaluation."""
    partial = partial_path(output)
    done = complete_frames(partial)
    if not done:
        return []
    check_continuation(partial, done, configurations, wanted.keys(models[0].plan, len(models) > 1))
    written = [written_predictions(frame, wanted.prefix) for frame in done]
    (again,) = predict_committee(models, [configurations[len(done) - 1]], wanted)
    check_same_model(partial, written[-1], again, len(done[-1]))
    return written


def _read_checked(
    models: Sequence[MACE],
    paths: str | Path | Sequence[str | Path],
    charges_key: str | None,
    condition_keys: Mapping[str, str],
    wanted: Wanted,
) -> tuple[ReadResult, list[Configuration], list[Frame]]:
    """Read files and make sure, before anything is written, that the models can predict what is wanted of them.

    Returns:
        What was read, and all structures in the order of the files, as configurations and as they stand there.
    """
    files = expand_paths(paths)
    for model in models:
        _check_model(model.plan, wanted)
    if len({(model.plan.predicts_energy, model.plan.predicts_dipole) for model in models}) > 1:
        kinds = ", ".join(sorted({model.plan.model for model in models}))
        raise UserError(f"Models of a committee must predict the same, but these are {kinds}; evaluate them apart.")
    if len(models) > 1 and wanted.descriptors:
        raise UserError("Features of several models have no mean; ask for descriptors with one model at a time.")
    frames: list[Frame] = []
    source = Source(
        files,
        LabelKeys(charges=charges_key),
        conditions=joined(model.plan.conditions for model in models),
        condition_keys=condition_keys,
    )
    names = [model.plan.head_names for model in models if model.plan.heads]
    reading = read_sources(
        [source],
        head=(names and default_head(names[0])) or DEFAULT_HEAD,
        observe=frames.append,
        head_key=HEAD_KEY if names else None,
    )
    configurations = _in_order(files, [*reading.configurations, *reading.isolated_atoms])
    for known in dict.fromkeys(names):
        check_heads(known, configurations)
    for elements in dict.fromkeys(model.plan.atomic_numbers for model in models):
        check_elements(elements, configurations, "the model's training data")
    _check_keys(wanted.keys(models[0].plan, len(models) > 1), wanted.prefix, reading.report)
    return reading, configurations, frames


def predict_configurations(
    model: MACE, configurations: Sequence[Configuration], wanted: Wanted
) -> list[dict[str, Any]]:
    """Predict some structures at once.

    Args:
        model: The model.
        configurations: Structures of elements the model knows; as many as memory allows.
        wanted: What to predict.

    Returns:
        For each structure what the model predicts of ``energy``, ``forces`` ``[atoms, 3]`` and ``dipole`` ``[3]`` and,
        where wanted, ``stress`` ``[3, 3]`` (left out without a volume), ``node_energies`` ``[atoms]`` and
        ``descriptors`` ``[atoms, features]``; float64, in eV, Angstrom and e*Angstrom.

    Raises:
        UserError: If a number is NaN or infinite.
    """
    elements, r_max, heads = ElementTable(model.plan.atomic_numbers), model.plan.r_max, model.plan.head_names
    dataset = GraphDataset(configurations, elements, r_max, heads=heads)
    graph = dataset.graph(range(len(dataset))).to(model.embedding.device)
    prediction = predict(model, graph, forces=True, stress=wanted.stress, features=wanted.descriptors)
    of_atoms: dict[str, Tensor | None] = {"forces": prediction.forces}
    if wanted.node_energies:
        of_atoms["node_energies"] = prediction.atomic_energies
    if wanted.descriptors:
        of_atoms["descriptors"] = descriptors(prediction, wanted.descriptor_layers, wanted.descriptor_invariants)
    ends = np.cumsum([configuration.n_atoms for configuration in configurations])[:-1]
    pieces = {name: np.split(_to_array(values), ends) for name, values in of_atoms.items() if values is not None}
    results: list[dict[str, Any]] = [
        {name: piece[i] for name, piece in pieces.items()} for i in range(len(configurations))
    ]
    if prediction.energy is not None:
        for result, energy in zip(results, _to_array(prediction.energy), strict=True):
            result["energy"] = float(energy)
    if prediction.dipole is not None:
        for result, dipole in zip(results, _to_array(prediction.dipole), strict=True):
            result["dipole"] = dipole
    if prediction.stress is not None:
        for result, configuration, stress in zip(results, configurations, _to_array(prediction.stress), strict=True):
            if abs(np.linalg.det(configuration.cell)) > SMALLEST_VOLUME:
                result["stress"] = stress
    for result, configuration in zip(results, configurations, strict=True):
        if said := nonsense(result):
            raise UserError(f"{configuration.where()}: {said}")
    return results


def predict_committee(
    models: Sequence[MACE], configurations: Sequence[Configuration], wanted: Wanted
) -> list[dict[str, Any]]:
    """Predict some structures with one model, or with several: then their means and, as ``<name>_std``, deviations."""
    members = [predict_configurations(model, configurations, wanted) for model in models]
    if len(members) == 1:
        return members[0]
    return [_mean_and_deviation(of_structure) for of_structure in zip(*members, strict=True)]


def _mean_and_deviation(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = {name: np.array([member[name] for member in members]) for name in members[0]}
    means = {name: rows.mean(0) for name, rows in values.items()}
    return {**means, **{f"{name}_std": rows.std(0) for name, rows in values.items()}}


def _to_array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array


def _in_order(files: Sequence[str], configurations: Iterable[Configuration]) -> list[Configuration]:
    """Sort structures as they stand in the files: reading puts isolated atoms apart."""
    place = {file: i for i, file in enumerate(files)}
    return sorted(configurations, key=lambda configuration: (place[configuration.file], configuration.index))


def _check_model(plan: ModelPlan, wanted: Wanted) -> None:
    """Refuse to predict what a model without energies does not."""
    for name, on in (("stress", wanted.stress), ("energies of atoms", wanted.node_energies)):
        if on and not plan.predicts_energy:
            raise UserError(f"The model is of the kind {plan.model} and predicts dipoles only; do not ask for {name}.")


def _check_keys(predicted: Sequence[str], prefix: str, report: LabelReport) -> None:
    """Refuse a prefix that makes a prediction take the place of a label."""
    for file in report.files:
        keys = {key for _, key in file.keys}
        labels = {file.of(name).key for name in PROPERTIES} | (keys if not prefix else set())
        for key in predicted:
            if key in labels & keys:
                raise UserError(
                    f"{file.file}: with --info_prefix='{prefix}' predictions would take the place of the "
                    f"label '{key}'; choose another prefix, such as MACE_."
                )


def _annotated(
    frames: Sequence[Frame],
    configurations: Sequence[Configuration],
    predictions: Sequence[dict[str, Any]],
    wanted: Wanted,
) -> str:
    """Write down structures with what is predicted of them."""
    annotations = [_annotations(*pair, wanted) for pair in zip(predictions, frames, strict=True)]
    return annotated_text(frames, annotations, [configuration.where() for configuration in configurations])


def _annotations(
    prediction: dict[str, Any], frame: Frame, wanted: Wanted
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Divide a prediction into columns and entries of the comment line, with descriptors put together as wanted."""
    columns = {name: prediction[name] for name in _PER_ATOM if name in prediction}
    entries = {name: value for name, value in prediction.items() if name not in _PER_ATOM}
    if wanted.descriptor_aggregation:
        rows = columns.pop("descriptors")
        symbols = np.array(chemical_symbols)[frame.numbers]
        means = {str(symbol): rows[symbols == symbol].mean(0).tolist() for symbol in np.unique(symbols)}
        entries["descriptors"] = rows.mean(0) if wanted.descriptor_aggregation == "mean" else means
    return (
        {wanted.prefix + name: value for name, value in columns.items()},
        {wanted.prefix + name: value for name, value in entries.items()},
    )
