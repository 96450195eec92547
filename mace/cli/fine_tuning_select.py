"""The command ``mace_finetuning_select``: select structures that a model was trained on, to replay them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import itertools
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mace.cli.command import LogLevel, log_level, quiet, run_program
from mace.errors import UserError
from mace.files.outputs import check_output
from mace.settings.data import AtomicNumbers
from mace.settings.declaration import DeviceName, Settings, device_setting, inert_notes, setting
from mace.settings.reading import parse_settings

if TYPE_CHECKING:
    from mace.finetuning.farthest_points import ElementRows
    from mace.finetuning.selection import Describe, Selection, SelectionRule, Track
    from mace.formats.frame import Frame
    from mace.potential.potential import Potential
    from mace.structures.configuration import Configuration
    from mace.structures.sources import Source

_LOGGER = logging.getLogger("mace.cli.fine_tuning_select")  # by name: as a program this module is called __main__

_CHOICE = "What is selected"
_DESCRIPTORS = "Descriptors for farthest points"
_NEEDS_DESCRIPTORS = ("model", "head", "descriptors", "save_descriptors", "device", "default_dtype")
_WRITTEN_TOGETHER = 64


class SelectSettings(Settings):
    """What is selected of which structures, and where it is written."""

    program: ClassVar[str] = "mace_finetuning_select"
    description: ClassVar[str] = (
        "Select some of the structures that a model was trained on, for fine-tuning that replays them. Everything that "
        "the files hold is kept."
    )

    config: str | None = setting(None, "YAML file with settings", group="Files", placeholder="FILE")
    configs_pt: list[str] = setting(
        ...,
        "structures to select from: files ASE reads, patterns, or a published set (mp, omat, matpes_pbe, "
        "matpes_r2scan)",
        group="Files",
        kind="several",
        placeholder="FILE...",
    )
    configs_ft: list[str] | None = setting(
        None,
        "structures of the fine-tuning: their elements are those to filter by, and they are written behind what is "
        "selected into <output>_combined",
        group="Files",
        kind="several",
        placeholder="FILE...",
    )
    output: str = setting(
        ..., "file to write, extended XYZ (.xyz or .extxyz, also compressed)", group="Files", placeholder="FILE"
    )
    num_samples: int | None = setting(
        None, "number of structures to select", group=_CHOICE, ge=1, default_words="all that pass the filter"
    )
    filtering_type: Literal["none", "combinations", "inclusive", "exclusive"] = setting(
        "none",
        "which structures pass: combinations for those of no other than the given elements, inclusive for those that "
        "have all of them at least, exclusive for those that have all of them and no others",
        group=_CHOICE,
    )
    filter_atomic_numbers_pt: AtomicNumbers | None = setting(
        None,
        "elements to filter by",
        group=_CHOICE,
        placeholder="[Z,...]",
        default_words="those in configs_ft",
        expects="a list of different atomic numbers such as [1,6,8]",
    )
    subselect: Literal["fps", "random"] = setting(
        "fps", "how structures are selected among those that pass: farthest points, or at random", group=_CHOICE
    )
    allow_random_padding: bool = setting(
        True,
        "add others at random if fewer than num_samples pass the filter",
        group=_CHOICE,
        kind="switch",
        negations=("disallow_random_padding",),
    )
    seed: int = setting(42, "seed of all random choices", group=_CHOICE, ge=0)
    model: str = setting(
        "small",
        "model that describes the structures: a file of this program or of mace-torch, or the name of a published one",
        group=_DESCRIPTORS,
        placeholder="FILE",
    )
    head: str | None = setting(
        None,
        "head of a model that has several; the descriptors of all are the same",
        group=_DESCRIPTORS,
        placeholder="NAME",
        default_words="any",
    )
    descriptors: str | None = setting(
        None,
        "file with the descriptors, as --save_descriptors or mace-torch wrote it for the same structures",
        group=_DESCRIPTORS,
        placeholder="FILE",
        default_words="computed",
    )
    save_descriptors: str | None = setting(
        None, "file to keep the descriptors in (.npz)", group=_DESCRIPTORS, placeholder="FILE", default_words="none"
    )
    device: DeviceName = device_setting("where to compute them", group=_DESCRIPTORS)
    default_dtype: Literal["float32", "float64"] = setting("float64", "precision of the model", group=_DESCRIPTORS)
    head_pt: str | None = setting(
        None, "head= of the selected structures in the output", group="What is written", placeholder="NAME",
        default_words="as in the file",
    )  # fmt: skip
    head_ft: str | None = setting(
        None, "head= of those of the fine-tuning", group="What is written", placeholder="NAME",
        default_words="as in the file", only_with="configs_ft",
    )  # fmt: skip
    weight_pt: float | None = setting(
        None, "config_weight of the selected structures", group="What is written", ge=0,
        default_words="as in the file, else 1",
    )  # fmt: skip
    weight_ft: float | None = setting(
        None, "config_weight of those of the fine-tuning", group="What is written", ge=0,
        default_words="as in the file, else 1", only_with="configs_ft",
    )  # fmt: skip
    log_level: LogLevel = log_level()
    quiet: bool = quiet()


def run(arguments: Sequence[str]) -> None:
    """Select with the given command-line arguments.

    Raises:
        UserError: If arguments, structures or model do not allow it.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(SelectSettings, arguments)
    output, combined = _check_outputs(settings)
    # what is heavy is loaded only once the arguments are known to be good
    from mace.console.logs import close_logging, setup_logging
    from mace.console.progress import track
    from mace.console.terminal import PlainConsole
    from mace.finetuning.selection import select_structures

    console = PlainConsole()
    setup_logging(settings.log_level, None, console, settings.quiet)

    def show(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        return track(items, description, total, console=console, mode="off" if settings.quiet else "auto")

    try:
        for sentence in [*inert_notes(settings), *_without_effect(settings)]:
            _LOGGER.warning("%s", sentence)
        sources, potential = _sources(settings, show), None
        if _uses_descriptors(settings) and settings.descriptors is None:
            from mace.files.published import foundation_file
            from mace.potential.potential import open_potential

            potential = open_potential(
                foundation_file(settings.model, "--model"), settings.device, settings.default_dtype, settings.head,
                committee=False, caller="--model",
            )  # fmt: skip
            sources = [replace(source, conditions=potential.conditions) for source in sources]
        rule = _rule(settings, show)
        selection = select_structures(sources, rule, _description(settings, potential), show)
        _write(settings, selection, output, combined)
        count = selection.n_selected + selection.n_isolated
        _LOGGER.info("Wrote %s with %d structures%s", output, count, f", and {combined}" if combined else "")
    finally:
        close_logging()


def _check_outputs(settings: SelectSettings) -> tuple[Path, Path | None]:
    """Check that what is to be written can be written and replaces no input.

    Returns:
        The output, and the file with the structures of the fine-tuning behind it, if there are any.

    Raises:
        UserError: If not.
    """
    from mace.files.published import REPLAY_SETS
    from mace.formats.extended_xyz import COMPRESSIONS
    from mace.formats.reading import ending_of
    from mace.structures.sources import expand_paths

    output = Path(settings.output)
    if ending_of(output) not in ("xyz", "extxyz"):
        raise UserError(f"--output={output} must end in .xyz or .extxyz, and may be compressed (.xyz.gz).")
    if settings.save_descriptors is not None and not settings.save_descriptors.endswith(".npz"):
        raise UserError(f"--save_descriptors={settings.save_descriptors} must end in .npz.")
    own = [name for name in settings.configs_pt if name not in REPLAY_SETS]
    inputs = {
        "structures": [file for names in (own, settings.configs_ft) if names for file in expand_paths(names)],
        "model": [settings.model],
        "descriptors": [settings.descriptors] if settings.descriptors else [],
    }
    if settings.save_descriptors is not None:
        check_output(settings.save_descriptors, "file of descriptors", inputs)
    check_output(output, "output", inputs)
    if settings.configs_ft is None:
        return output, None
    first = output.with_suffix("") if output.suffix.lower() in COMPRESSIONS else output
    endings = output.name[len(first.stem) :]
    return output, check_output(output.with_name(f"{first.stem}_combined{endings}"), "combined output", inputs)


def _uses_descriptors(settings: SelectSettings) -> bool:
    return settings.subselect == "fps" and settings.num_samples is not None


def _without_effect(settings: SelectSettings) -> Iterator[str]:
    """Say of what was given and changes nothing why it does not."""
    given = settings.model_fields_set
    if not _uses_descriptors(settings):
        why = (
            "--subselect=random"
            if settings.subselect == "random"
            else "all that pass the filter, without --num_samples"
        )
        yield from (f"--{name} has no effect on {why}" for name in _NEEDS_DESCRIPTORS if name in given)
    elif settings.descriptors is not None:
        others = (name for name in _NEEDS_DESCRIPTORS if name in given and name != "descriptors")
        yield from (f"--{name} has no effect, because --descriptors is given" for name in others)
    if settings.filtering_type == "none" and "filter_atomic_numbers_pt" in given:
        yield "--filter_atomic_numbers_pt has no effect with --filtering_type=none"


def _sources(settings: SelectSettings, show: Track) -> list[Source]:
    from mace.files.published import REPLAY_SETS
    from mace.finetuning.replay_sets import replay_source
    from mace.structures.sources import Source

    return [replay_source(name, show) if name in REPLAY_SETS else Source(name) for name in settings.configs_pt]


def _rule(settings: SelectSettings, show: Track) -> SelectionRule:
    """Find out by which elements to filter.

    Raises:
        UserError: If the given elements are not those of the fine-tuning.
    """
    from mace.elements import chemical_symbol
    from mace.finetuning.selection import SelectionRule, elements_in
    from mace.structures.sources import Source

    elements = frozenset(settings.filter_atomic_numbers_pt or ())
    if settings.filtering_type != "none" and settings.configs_ft is not None:
        found = elements_in([Source(settings.configs_ft)], show)
        if elements and elements != found:
            there = ", ".join(map(chemical_symbol, sorted(found)))
            raise UserError(
                f"--filter_atomic_numbers_pt names other elements than those in --configs_ft ({there}); leave it out "
                "to filter by those, or leave out --configs_ft."
            )
        elements = found
    return SelectionRule(
        settings.filtering_type,
        elements,
        settings.num_samples,
        settings.subselect,
        random_padding=settings.allow_random_padding,
        seed=settings.seed,
        flags={
            "filter": "--filtering_type",
            "number": "--num_samples",
            "padding": "without --disallow_random_padding",
            "elements": "--filter_atomic_numbers_pt or --configs_ft",
        },
    )


def _description(settings: SelectSettings, potential: Potential | None) -> Describe | None:
    """Say where the descriptors come from, if any are needed."""
    from mace.finetuning.descriptor_files import StoredDescriptors, write_descriptors
    from mace.finetuning.structure_descriptors import describe_structures

    if not _uses_descriptors(settings):
        return None
    if potential is None:
        return StoredDescriptors(Path(settings.descriptors or ""))

    def describe(
        places: Sequence[int], n_structures: int, structures: Iterable[Configuration]
    ) -> Mapping[int, ElementRows]:
        rows = describe_structures(potential, structures)
        if settings.save_descriptors is not None:
            write_descriptors(Path(settings.save_descriptors), rows, places, n_structures)
            _LOGGER.info("Wrote the descriptors to %s", settings.save_descriptors)
        return rows

    return describe


def _write(settings: SelectSettings, selection: Selection, output: Path, combined: Path | None) -> None:
    """Write what was selected and, behind it in a second file, the structures of the fine-tuning."""
    from mace.evaluation.annotation import AnnotatedFile
    from mace.formats.reading import iterate_frames
    from mace.structures.sources import expand_paths

    with ExitStack() as stack:
        files = [stack.enter_context(AnnotatedFile(path, keep=False)) for path in (output, combined) if path]
        for text in _texts(selection.frames(), True, settings.weight_pt, settings.head_pt):
            for file in files:
                file.write(text)
        for name in expand_paths(settings.configs_ft) if settings.configs_ft else ():
            named = ((f"{name}: structure {index}", frame) for index, frame in enumerate(iterate_frames(name)))
            for text in _texts(named, False, settings.weight_ft, settings.head_ft):
                files[-1].write(text)


def _texts(
    named: Iterator[tuple[str, Frame]], pretrained: bool, weight: float | None, head: str | None
) -> Iterator[str]:
    """Format structures, some at a time, with what tells the two kinds of them apart."""
    from mace.evaluation.annotation import annotated_text

    while together := list(itertools.islice(named, _WRITTEN_TOGETHER)):
        entries = []
        for _, frame in together:
            own = frame.info.get("config_weight", 1.0) if weight is None else weight
            entries.append({"pretrained": pretrained, "config_weight": own} | ({} if head is None else {"head": head}))
        yield annotated_text(
            [frame for _, frame in together], [({}, each) for each in entries], [name for name, _ in together]
        )


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()
