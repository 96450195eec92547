"""Structure files become `Configuration`s, with a report of where every label was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mace.errors import UserError
from mace.structures.configuration import PROPERTIES, Configuration
from mace.structures.frames import expand_paths, iterate_frames
from mace.structures.labels import PLACES, FileLabels, LabelCoverage, LabelKeys, LabelReport, choose_key
from mace.structures.stress import convert_stress_virials, disagree, full_tensor, is_asymmetric

if TYPE_CHECKING:
    from ase import Atoms

Progress = Callable[[str, int], None]
"""Called after every structure with the file and the number of structures read from it so far."""

_ISOLATED_ATOM_TYPES = ("isolatedatom", "isolated_atom")

_WEIGHT_KEYS = {"config_weight", *(f"config_{name}_weight" for name in PROPERTIES)}

_ATOM_WEIGHT_KEYS = {"forces": "forces_weight"}
"""Column with the weights of atoms, by property."""

_STRUCTURE_KEYS = _WEIGHT_KEYS | {*_ATOM_WEIGHT_KEYS.values(), "config_type", "numbers", "positions"}


@dataclass(frozen=True)
class ReadResult:
    """Everything read from the given files.

    Attributes:
        configurations: Structures in the order of the files, isolated atoms left out.
        isolated_atoms: Single atoms whose ``config_type`` is IsolatedAtom or isolated_atom, in any case.
        report: Where the labels were found.
    """

    configurations: list[Configuration]
    isolated_atoms: list[Configuration]
    report: LabelReport


@dataclass(frozen=True)
class _Frame:
    """A checked structure with the raw value and place of every label that may turn out to be wanted."""

    configuration: Configuration
    found: dict[str, tuple[str, Any]]

    @property
    def is_isolated_atom(self) -> bool:
        return _is_isolated_type(self.configuration.config_type) and self.configuration.n_atoms == 1


class _Labeled(NamedTuple):
    """A structure with the labels of its file, and the same with stress and virials completed."""

    frame: _Frame
    original: Configuration
    complete: Configuration


def read_configurations(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys | None = None,
    config_type_weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    head: str = "Default",
) -> ReadResult:
    """Read labeled structures from any files ASE knows.

    A label that a structure lacks is ``None``, never zero. Forces are the labeled ones even on constrained atoms.
    Stress and virials are derived from each other where only one is there and the cell has a volume.

    Args:
        paths: File names and glob patterns.
        keys: The labels' keys; without them every file decides, see `LabelKeys`.
        config_type_weights: Weight of each ``config_type``; other types weigh what ``"Default"`` does, or one.
        progress: Told of every structure read.
        head: Name of the readout head these labels belong to.

    Raises:
        UserError: If a file or structure cannot be read, holds no atoms, has a cell that does not span the directions
            in which it repeats, or has a label or weight that is no finite number of the right shape. A label that is
            nowhere is no error here; see `mace.structures.labels.require_labels`.
    """
    keys = keys or LabelKeys()
    weights = _check_type_weights(config_type_weights or {})
    configurations: list[Configuration] = []
    isolated_atoms: list[Configuration] = []
    files: list[FileLabels] = []
    for file in expand_paths(paths):
        all_keys: Counter[tuple[str, str]] = Counter()
        frames = list(_read_frames(file, keys, weights, head, all_keys, progress))
        chosen = _choose_keys(frames, keys)
        labeled = [_attach_labels(frame, chosen) for frame in frames]
        files.append(_describe_file(file, keys, chosen, labeled, all_keys))
        for item in labeled:
            (isolated_atoms if item.frame.is_isolated_atom else configurations).append(item.complete)
    report = LabelReport(_note_unused_weights(files, weights, [*configurations, *isolated_atoms]))
    return ReadResult(configurations, isolated_atoms, report)


def _read_frames(
    file: str,
    keys: LabelKeys,
    type_weights: Mapping[str, float],
    head: str,
    all_keys: Counter[tuple[str, str]],
    progress: Progress | None,
) -> Iterator[_Frame]:
    """Yield checked structures, keeping of each only what may be needed: `Atoms` objects are large."""
    wanted = {key for name in PROPERTIES for key in keys.candidates(name)}
    for index, atoms in enumerate(iterate_frames(file)):
        places = {"info": atoms.info, "arrays": atoms.arrays, "calculator": getattr(atoms.calc, "results", {})}
        found: dict[str, tuple[str, Any]] = {}
        for place in PLACES:
            for key, value in places[place].items():
                if value is None or key in _STRUCTURE_KEYS:
                    continue
                all_keys[place, str(key)] += 1
                if key in wanted:
                    found.setdefault(key, (place, value))
        yield _Frame(_bare_configuration(atoms, file, index, type_weights, head), found)
        if progress is not None:
            progress(file, index + 1)


def _bare_configuration(
    atoms: Atoms, file: str, index: int, type_weights: Mapping[str, float], head: str
) -> Configuration:
    """Turn a structure into a configuration without labels."""
    configuration = Configuration(
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        config_type=str(atoms.info.get("config_type", "Default")),
        head=head,
        file=file,
        index=index,
    )
    _check_geometry(configuration)
    return _attach_atom_weights(_attach_weights(configuration, atoms.info, type_weights), atoms)


def _check_geometry(configuration: Configuration) -> None:
    where = configuration.where()
    positions, cell = configuration.positions, configuration.cell
    if configuration.n_atoms == 0:
        raise UserError(f"{where} has no atoms; take it out.")
    if configuration.atomic_numbers.min() < 1:
        raise UserError(f"{where} has an atom 'X' that is no chemical element; name its element or take it out.")
    for name, values in (("position", positions), ("cell", cell)):
        if not np.isfinite(values).all():
            raise UserError(f"{where} has a {name} that is NaN or infinite; correct it or take the structure out.")
    if configuration.n_atoms > 1 and not positions.any():
        raise UserError(f"{where} has all its atoms at the origin, as if the file gave no positions; add them.")
    vectors = cell[list(configuration.pbc)]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if len(vectors) and (lengths.min() < 1e-6 or np.linalg.svd(vectors / lengths, compute_uv=False)[-1] < 1e-6):
        directions = " ".join("T" if periodic else "F" for periodic in configuration.pbc)
        raise UserError(
            f'{where} repeats along pbc="{directions}" but its lattice vectors there are zero or linearly dependent; '
            "give it a cell, or set pbc to F where it does not repeat."
        )


def _attach_weights(
    configuration: Configuration, info: Mapping[str, Any], type_weights: Mapping[str, float]
) -> Configuration:
    type_weight = type_weights.get(configuration.config_type, type_weights.get("Default", 1.0))
    given = {key: _check_weight(info[key], key, configuration.where()) for key in _WEIGHT_KEYS if key in info}
    property_weights = {name: given[f"config_{name}_weight"] for name in PROPERTIES if f"config_{name}_weight" in given}
    weight = type_weight * given.get("config_weight", 1.0)
    if weight == 1.0 and not property_weights:
        return configuration
    return replace(configuration, weight=weight, property_weights=property_weights)


def _attach_atom_weights(configuration: Configuration, atoms: Atoms) -> Configuration:
    weights: dict[str, np.ndarray] = {}
    for name, key in _ATOM_WEIGHT_KEYS.items():
        if key in atoms.info:
            raise UserError(
                f"{configuration.where()}: '{key}' is the weight of each atom and stands in a column of its own; the "
                f"weight of the {name} of the whole structure is called 'config_{name}_weight'."
            )
        if key not in atoms.arrays:
            continue
        array = np.asarray(atoms.arrays[key])
        if array.shape not in ((configuration.n_atoms,), (configuration.n_atoms, 1)):
            raise UserError(
                f"{configuration.where()}: the column '{key}' has the shape {list(array.shape)}; it holds one weight "
                "per atom."
            )
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all() or array.min() < 0:
            raise UserError(
                f"{configuration.where()}: the column '{key}' holds what is no weight; a weight is a finite number, "
                "zero or larger."
            )
        weights[name] = array.reshape(-1).astype(np.float64)
    return replace(configuration, atom_weights=weights) if weights else configuration


def _check_weight(value: Any, name: str, where: str) -> float:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size != 1 or not math.isfinite(array.item()) or array.item() < 0:
        raise UserError(f"{where}: the weight '{name}' is {value!r}; a weight is a finite number, zero or larger.")
    return float(array.item())


def _check_type_weights(weights: Mapping[str, float]) -> dict[str, float]:
    return {str(name): _check_weight(weight, str(name), "--config_type_weights") for name, weight in weights.items()}


def _choose_keys(frames: Sequence[_Frame], keys: LabelKeys) -> dict[str, str | None]:
    """Decide for a whole file under which key each property stands."""
    found = {key for frame in frames for key in frame.found}
    return {name: choose_key(keys.candidates(name), found) for name in PROPERTIES}


def _attach_labels(frame: _Frame, chosen: Mapping[str, str | None]) -> _Labeled:
    labels = {
        name: _parse_label(name, key, frame.found[key][1], frame.configuration)
        for name, key in chosen.items()
        if key is not None and key in frame.found
    }
    configuration = replace(frame.configuration, **labels) if labels else frame.configuration
    return _Labeled(frame, configuration, convert_stress_virials(configuration))


def _parse_label(name: str, key: str, value: Any, configuration: Configuration) -> Any:
    """Check one label and give it the shape it has in a `Configuration`."""
    label = f"{configuration.where()}: the label '{name}' (key '{key}')"
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{label} is not an array of numbers; correct it.") from error
    if array.dtype.kind not in "iuf":
        raise UserError(f"{label} is {str(value)[:40]!r} and not a number; correct it, or leave it out where unknown.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{label} is NaN or infinite; correct it, or leave it out where it is unknown.")
    n_atoms = configuration.n_atoms
    if name == "energy" and array.size == 1:
        return float(array.item())
    if name == "forces" and (array.shape == (n_atoms, 3) or (n_atoms == 1 and array.shape == (3,))):
        return array.reshape(n_atoms, 3)
    if name in ("stress", "virials", "polarizability") and array.shape in ((6,), (9,), (3, 3)):
        return full_tensor(array)
    if name == "dipole" and array.shape in ((3,), (1, 3)):
        return array.reshape(3)
    if name == "charges" and array.size == n_atoms and array.shape in ((), (n_atoms,), (n_atoms, 1)):
        return array.reshape(n_atoms)
    expected = {
        "energy": "one number",
        "forces": f"[{n_atoms}, 3]",
        "stress": "[6], [9] or [3, 3]",
        "virials": "[6], [9] or [3, 3]",
        "dipole": "[3]",
        "polarizability": "[6], [9] or [3, 3]",
        "charges": f"[{n_atoms}]",
    }[name]
    raise UserError(f"{label} has the shape {list(array.shape)} where {expected} is expected; is this the right key?")


def _describe_file(
    file: str,
    keys: LabelKeys,
    chosen: Mapping[str, str | None],
    labeled: Sequence[_Labeled],
    all_keys: Counter[tuple[str, str]],
) -> FileLabels:
    isolated = [item.frame for item in labeled if item.frame.is_isolated_atom]
    ordinary = [item for item in labeled if not item.frame.is_isolated_atom]
    coverage = []
    for name in PROPERTIES:
        key = chosen[name]
        places = Counter(item.frame.found[key][0] for item in ordinary if key in item.frame.found) if key else Counter()
        count = sum(places.values())
        coverage.append(
            LabelCoverage(
                name=name,
                key=key,
                candidates=keys.candidates(name),
                places={place: places[place] for place in PLACES if places[place]},
                labeled=count,
                converted=sum(getattr(item.complete, name) is not None for item in ordinary) - count,
                frames=len(ordinary),
                isolated=sum(key in frame.found for frame in isolated) if key else 0,
            )
        )
    notes = tuple(f"{file}: {note}" for note in _notes(keys, chosen, labeled))
    return FileLabels(file, len(ordinary), len(isolated), all_keys, tuple(coverage), notes)


def _notes(keys: LabelKeys, chosen: Mapping[str, str | None], labeled: Sequence[_Labeled]) -> Iterator[str]:
    """Sentences about labels that are legal but suspicious."""
    for name, key in chosen.items():
        for other in keys.candidates(name):
            if key is None or other == key:
                continue
            count = sum(key not in item.frame.found and other in item.frame.found for item in labeled)
            if count:
                yield (
                    f"{count} structures have '{other}' but no '{key}', which was chosen for the whole file; "
                    f"they have no {name}. Name one of the two with --{name}_key."
                )
    for name in ("stress", "virials"):
        count = sum(is_asymmetric(getattr(item.original, name)) for item in labeled)
        if count:
            yield f"the {name} of {count} structures is not symmetric, which no potential can reproduce."
    count = sum(disagree(item.original) for item in labeled)
    if count:
        yield f"the virials of {count} structures are not -volume * stress; check sign and units of both."
    count = sum(
        (item.complete.stress is None) != (item.complete.virials is None) and not item.frame.is_isolated_atom
        for item in labeled
    )
    if count:
        yield (
            f"{count} structures do not repeat in all three directions, so their stress and virials cannot be "
            "converted into each other."
        )
    count = sum(_is_isolated_type(item.original.config_type) and not item.frame.is_isolated_atom for item in labeled)
    if count:
        yield f"{count} structures are of the type IsolatedAtom but have several atoms; they are read as ordinary ones."


def _is_isolated_type(config_type: str) -> bool:
    return config_type.lower() in _ISOLATED_ATOM_TYPES


def _note_unused_weights(
    files: Sequence[FileLabels], weights: Mapping[str, float], configurations: Sequence[Configuration]
) -> tuple[FileLabels, ...]:
    """Note types that have a weight but no structure: most often they are misspelled."""
    present = {configuration.config_type for configuration in configurations}
    unused = [name for name in weights if name != "Default" and name not in present]
    if not unused:
        return tuple(files)
    names = ", ".join(f"'{name}'" for name in unused)
    known = ", ".join(f"'{name}'" for name in sorted(present))
    note = f"--config_type_weights names {names}, which no structure has as config_type; there are {known}."
    return (*files[:-1], replace(files[-1], notes=(*files[-1].notes, note)))
