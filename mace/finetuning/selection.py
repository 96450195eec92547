"""Selection of some of very many structures: by their elements, then at random or by farthest points.

The structures are read once for their elements, once for their descriptors where these decide, and once more by whoever
uses those that were selected; none of them stays in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.finetuning.farthest_points import ElementRows, farthest_points
from mace.formats.frame import Frame
from mace.formats.reading import iterate_frames
from mace.structures.checks import check_geometry
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import DEFAULT_TYPE, ISOLATED_ATOM_TYPES, Configuration
from mace.structures.prepared import is_prepared
from mace.structures.sources import Source, expand_sources

_LOGGER = logging.getLogger(__name__)

FilterType = Literal["none", "combinations", "inclusive", "exclusive"]

Describe = Callable[[Sequence[int], int, Iterable[Configuration]], Mapping[int, ElementRows]]
"""Provides descriptors by atomic number, given the places of structures among all that were read, how many were read,
and these structures; computed by `mace.finetuning.structure_descriptors.describe_structures` or read from a file."""

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iteration to show its progress, given what is done and, if it is known, how often."""

_WORDS = {
    "none": "{}",
    "combinations": "only {}",
    "inclusive": "all of {}, and maybe others",
    "exclusive": "exactly {}",
}
"""What structures that pass a filter contain."""


@dataclass(frozen=True)
class SelectionRule:
    """Which structures are selected, and how many.

    Attributes:
        filter_type: Which structures pass: ``none`` for all, ``combinations`` for those that have no other elements
            than the given ones, ``inclusive`` for those that have all given elements at least, ``exclusive`` for those
            that have all of them and no others.
        elements: The given elements, as atomic numbers.
        n_samples: Number of structures to select; None for all that pass.
        subselect: How they are selected among those that pass: ``random``, or ``fps`` for farthest points.
        random_padding: Whether structures that do not pass are added at random if too few pass.
        at_most: Whether fewer will do if there are not as many structures at all.
        seed: Seed of all random choices.
        flags: How the user gives filter, number, padding and elements, for messages.
    """

    filter_type: FilterType = "none"
    elements: frozenset[int] = frozenset()
    n_samples: int | None = None
    subselect: Literal["random", "fps"] = "random"
    random_padding: bool = True
    at_most: bool = False
    seed: int = 0
    flags: Mapping[str, str] = field(
        default_factory=lambda: {
            "filter": "--filter_type_pt",
            "number": "--num_samples_pt",
            "padding": "--allow_random_padding_pt",
            "elements": "--atomic_numbers",
        }
    )

    def passes(self, elements: frozenset[int]) -> bool:
        """Return whether a structure of these elements passes the filter.

        >>> rule = SelectionRule("combinations", frozenset({1, 8}))
        >>> [rule.passes(frozenset(each)) for each in ({1}, {1, 8}, {1, 6, 8})]
        [True, True, False]
        >>> [replace(rule, filter_type="inclusive").passes(frozenset(each)) for each in ({1}, {1, 8}, {1, 6, 8})]
        [False, True, True]
        """
        if self.filter_type == "combinations":
            return elements <= self.elements
        if self.filter_type == "inclusive":
            return elements >= self.elements
        return self.filter_type == "none" or elements == self.elements

    @property
    def words(self) -> str:
        """What the structures that pass contain."""
        return _WORDS[self.filter_type].format(", ".join(map(chemical_symbol, sorted(self.elements))))


@dataclass(frozen=True)
class Selection:
    """What was selected.

    Attributes:
        sources: One for each file of which anything was selected, in the order of the files, with the indices of the
            selected structures as ``only``: `mace.structures.reading.read_sources` reads these structures alone.
        n_structures: Number of structures among which was selected, without isolated atoms.
        n_passing: How many of them pass the filter.
        n_selected: How many were selected.
        n_random: How many of these do not pass the filter and were added at random.
        n_isolated: Number of isolated atoms kept beside them.
    """

    sources: tuple[Source, ...]
    n_structures: int
    n_passing: int
    n_selected: int
    n_random: int
    n_isolated: int

    def frames(self) -> Iterator[tuple[str, Frame]]:
        """Read what was selected, in the order of the files: the name of each structure in messages, and itself."""
        for source in self.sources:
            for index, frame in source.indexed(iterate_frames(str(source.paths))):
                yield f"{source.paths}: structure {index}", frame


class _Candidate(NamedTuple):
    """A structure that may be selected.

    Attributes:
        file: Number of its file.
        place: Its index there.
        elements: Its atomic numbers.
        is_isolated_atom: Whether it is there for its energy as a reference.
    """

    file: int
    place: int
    elements: frozenset[int]
    is_isolated_atom: bool


def _without_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    return items


def select_structures(
    sources: Sequence[Source],
    rule: SelectionRule,
    describe: Describe | None = None,
    track: Track = _without_progress,
) -> Selection:
    """Select structures out of files and say in the log what was done.

    Isolated atoms (of that ``config_type``) are neither selected nor counted; they are kept if their element occurs in
    what was selected. The same files, rule and descriptors always give the same selection.

    Args:
        sources: The files, and how to read them.
        rule: What to select.
        describe: Provides descriptors; needed for farthest points only.
        track: Shows the progress of what may take long.

    Returns:
        The selection; only the places of the structures, not the structures themselves.

    Raises:
        UserError: If a file cannot be read, the filter has no elements, or too few structures pass it.
    """
    flags = rule.flags
    if rule.filter_type != "none" and not rule.elements:
        raise UserError(f"{flags['filter']}={rule.filter_type} needs elements; name them with {flags['elements']}.")
    files = _files_of(sources)
    everything = list(_candidates(files, track))
    candidates = [place for place, each in enumerate(everything) if not each.is_isolated_atom]
    passing = [place for place in candidates if rule.passes(everything[place].elements)]
    names = ", ".join(str(source.paths) for source in files)
    of_filter = "" if rule.filter_type == "none" else f", of which {len(passing)} contain {rule.words}"
    _LOGGER.info("Selection: %d structures in %s%s", len(candidates), names, of_filter)
    n_random = _number_of_others(rule, len(passing), len(candidates), names)
    rng = np.random.default_rng(rule.seed)
    added = [] if not n_random else _drawn(sorted(set(candidates).difference(passing)), n_random, rng)
    if rule.n_samples is None or rule.n_samples >= len(passing):
        chosen = passing
        wanted = rule.n_samples or 0
        too_few = f"; there are fewer than {flags['number']}={wanted}" if wanted > len(passing) + n_random else ""
        _LOGGER.info("Selection: all %d are taken%s", len(passing), too_few)
    elif rule.subselect == "random":
        chosen = _drawn(passing, rule.n_samples, rng)
        _LOGGER.info("Selection: %d are taken at random, with seed %d", rule.n_samples, rule.seed)
    else:
        assert describe is not None, "farthest points need descriptors"
        configurations = _configurations(_restricted(files, [everything[place] for place in passing]))
        rows = describe(passing, len(everything), track(configurations, "Describing structures", len(passing)))
        first = int(rng.integers(len(passing)))
        chosen = [passing[k] for k in farthest_points(rows, len(passing), rule.n_samples, first, track)]
        text = "Selection: %d are taken as farthest points, beginning with one drawn with seed %d"
        _LOGGER.info(text, rule.n_samples, rule.seed)
    if added:
        text = "Selection: %d that do not pass the filter are added at random, with seed %d, which makes %d structures"
        _LOGGER.warning(text, len(added), rule.seed, len(chosen) + len(added))
    selected = [everything[place] for place in (*chosen, *added)]
    elements = frozenset[int]().union(*(each.elements for each in selected))
    isolated = [each for each in everything if each.is_isolated_atom and each.elements <= elements]
    if isolated:
        _LOGGER.info("Selection: %d isolated atoms of their elements are kept beside them", len(isolated))
    kept = tuple(source for source in _restricted(files, [*selected, *isolated]) if source.only)
    return Selection(kept, len(candidates), len(passing), len(selected), len(added), len(isolated))


def _drawn(places: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Draw some of the places at random."""
    return [places[k] for k in rng.choice(len(places), count, replace=False)]


def _number_of_others(rule: SelectionRule, n_passing: int, n_candidates: int, names: str) -> int:
    """Return how many structures that do not pass are to be added.

    Raises:
        UserError: If there are too few.
    """
    wanted, flags = rule.n_samples, rule.flags
    what = f"{names}: {n_passing} of {n_candidates} structures contain {rule.words}"
    if wanted is not None and wanted > n_candidates and not rule.at_most:
        raise UserError(
            f"{names}: {flags['number']}={wanted} is more than the {n_candidates} structures there are; lower it, or "
            "leave it out to take all."
        )
    if (wanted is None or not rule.random_padding) and not n_passing:
        raise UserError(f"{what}, so that nothing is left; choose other elements or another {flags['filter']}.")
    if wanted is None or wanted <= n_passing:
        return 0
    if rule.random_padding:
        return min(wanted, n_candidates) - n_passing
    if rule.at_most:
        return 0
    raise UserError(
        f"{what}, fewer than {flags['number']}={wanted}; lower it, choose another {flags['filter']}, or have others "
        f"added at random ({flags['padding']})."
    )


def _candidates(files: Sequence[Source], track: Track) -> Iterator[_Candidate]:
    """Read all structures for their elements."""
    known: dict[frozenset[int], frozenset[int]] = {}  # so that equal sets are one
    for number, source in enumerate(files):
        frames = source.indexed(iterate_frames(str(source.paths)))
        for index, frame in track(frames, f"Reading the elements in {source.paths}", None):
            elements = frozenset(frame.numbers.tolist())
            if not elements:
                raise UserError(f"{source.paths}: structure {index} has no atoms; take it out.")
            is_isolated = len(frame) == 1 and str(frame.info.get("config_type", "")).lower() in ISOLATED_ATOM_TYPES
            yield _Candidate(number, index, known.setdefault(elements, elements), is_isolated)


def _files_of(sources: Iterable[Source]) -> list[Source]:
    """List the files of sources; prepared sets do not hold all that a selection keeps."""
    files = [replace(source, paths=file) for file, source in expand_sources(list(sources))]
    if sets := [file.paths for file in files if is_prepared(str(file.paths))]:
        raise UserError(
            f"{sets[0]}: structures are selected with all that their files hold, which a prepared set does not; give "
            "the files that it was made from."
        )
    return files


def elements_in(sources: Sequence[Source], track: Track = _without_progress) -> frozenset[int]:
    """Return the atomic numbers that occur in files.

    Raises:
        UserError: If a file cannot be read.
    """
    files = _files_of(sources)
    return frozenset[int]().union(*(each.elements for each in _candidates(files, track)))


def _restricted(files: Sequence[Source], chosen: Iterable[_Candidate]) -> list[Source]:
    """Return the files with the structures that are to be read of each."""
    indices: list[list[int]] = [[] for _ in files]
    for each in chosen:
        indices[each.file].append(each.place)
    return [replace(source, only=frozenset(of_file)) for source, of_file in zip(files, indices, strict=True)]


def _configurations(files: Iterable[Source]) -> Iterator[Configuration]:
    """Read structures without their labels."""
    for source in files:
        for index, frame in source.indexed(iterate_frames(str(source.paths))) if source.only else ():
            configuration = Configuration(
                atomic_numbers=np.array(frame.numbers, dtype=np.int64),
                positions=frame.positions * source.units.of_length,
                cell=frame.cell * source.units.of_length,
                pbc=frame.pbc,
                config_type=str(frame.info.get("config_type", DEFAULT_TYPE)),
                file=str(source.paths),
                index=index,
            )
            check_geometry(configuration)
            info, arrays = {**frame.results, **frame.info}, {**frame.results, **frame.arrays}
            where = configuration.where()
            found = find_conditions(source.conditions, source.condition_keys, info, arrays, len(frame), where)
            yield replace(configuration, conditions=found.values)
