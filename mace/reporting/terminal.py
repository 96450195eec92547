"""A report on data as tables for a terminal, and in a few lines for the log of a training."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mace.console.terminal import PlainConsole
from mace.elements import chemical_symbol
from mace.inspection.distributions import Distribution
from mace.inspection.findings import LEVELS, Level
from mace.inspection.groups import Group
from mace.inspection.inspection import DataReport, FileReport
from mace.properties import PROPERTIES

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST_GROUPS = 40
_WIDEST = 200


def print_report(report: DataReport, console: Console) -> None:
    """Show what every file holds, and all findings."""
    if report.reference_energies:
        shown = ", ".join(f"{chemical_symbol(z)} {energy:.6g}" for z, energy in report.reference_energies.items())
        console.print(Text(f"E0s / eV: {shown} ({report.reference_source})"), soft_wrap=True)
    for file in report.files:
        whole, parts = file.whole, list[str]()
        if whole.frames:
            special = {0: "none periodic", whole.frames: "all periodic"}
            atoms = f"{whole.atoms} atoms ({atoms_each(whole)} each)"
            parts = [f"{whole.frames} structures", atoms, " ".join(whole.elements)]
            parts.append(special.get(whole.periodic, f"{whole.periodic} periodic"))
        heading = f"{file.file} ({file.role}): {', '.join([*parts, *_isolated_atoms(file)])}"
        console.print(Text(f"\n{heading}", style="bold"), soft_wrap=True)
        labels = [entry.text for entry in file.labels.coverage if entry.labeled + entry.converted]
        if labels:
            console.print(Text(", ".join(labels)), soft_wrap=True)
        if file.groups:
            # at its own width: numbers cut off on a narrow terminal would be worse than long lines
            output = io.StringIO()
            PlainConsole(file=output, width=_WIDEST).print(_groups_table(file))
            lines = "\n".join(line.rstrip() for line in output.getvalue().splitlines())
            console.print(Text(lines), soft_wrap=True)
    console.print()
    print_findings(report, console)
    console.print(Text(verdict(report), style="bold"), soft_wrap=True)


def print_findings(report: DataReport, console: Console, levels: Sequence[Level] = LEVELS) -> None:
    """Show the findings of some levels."""
    for finding in report.findings:
        if finding.level in levels:
            label = (f"{finding.level}{' (allowed)' if finding.allowed else ''}", _STYLES[finding.level])
            console.print(Text.assemble(label, f" [{finding.name}] {finding.sentence}"), soft_wrap=True)


def summary_lines(report: DataReport) -> Iterator[str]:
    """Describe every file in one line, for a log."""
    for file in report.files:
        whole = file.whole
        parts = [f"{whole.frames} structures", f"{whole.atoms} atoms", " ".join(whole.elements)] if whole.frames else []
        for name, numbers, unit in (
            ("energy", whole.energies, "eV/atom"),
            ("forces", whole.forces, "eV/A"),
            ("hydrostatic stress", whole.stresses, "eV/A^3"),
        ):
            if numbers is not None:
                parts.append(f"{name} {numbers.smallest:.4g} to {numbers.largest:.4g} {unit}")
        parts += _isolated_atoms(file)
        yield f"{file.file} ({file.role}): {', '.join(parts)}"


def verdict(report: DataReport) -> str:
    """Count the findings in one sentence."""
    if not report.findings:
        return "Nothing was found that deserves attention."
    words = []
    for level in LEVELS:
        of_level = report.of_level(level)
        allowed = sum(finding.allowed for finding in of_level)
        if of_level:
            plural = "" if len(of_level) == 1 else "s"
            words.append(f"{len(of_level)} {level}{plural}" + (f" ({allowed} allowed)" if allowed else ""))
    text = ", ".join(words)
    return f"Found {text}; training refuses these data." if report.errors else f"Found {text}."


def _isolated_atoms(file: FileReport) -> list[str]:
    """Say how many there are, if any."""
    number = file.labels.isolated_atoms
    return [f"{number} isolated atom{'s' * (number != 1)}"] if number else []


def _groups_table(file: FileReport) -> Table:
    """One row per head and config_type; columns that would say the same in all rows are left out."""
    with_heads = len({group.head for group in file.groups}) > 1
    labels = [name for name in PROPERTIES if is_partial(file, name)]
    has_stress = file.whole.stresses is not None
    table = Table(box=box.ASCII)
    table.add_column("config_type", overflow="fold", max_width=30)
    if with_heads:
        table.add_column("head", overflow="fold", max_width=30)
    numbers = ["frames", *(f"with {name}" for name in labels), "(E - E0s) / atoms, eV", "|F| rms, eV/A", "|F| max"]
    for name in [*numbers, *(["hydrostatic stress, eV/A^3"] if has_stress else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for group in file.groups[:_MOST_GROUPS]:
        row = [group.config_type, *([group.head] if with_heads else []), str(group.frames)]
        row += [str(group.labeled[name]) for name in labels]
        row += [_range(group.energies), _number(group.forces, "rms"), _number(group.forces, "largest")]
        table.add_row(*row, *([_range(group.stresses)] if has_stress else []))
    if len(file.groups) > _MOST_GROUPS:
        table.add_row(f"and {len(file.groups) - _MOST_GROUPS} more types")
    return table


def _range(numbers: Distribution | None) -> str:
    return "-" if numbers is None else f"{numbers.smallest:.3g} to {numbers.largest:.3g}"


def _number(numbers: Distribution | None, name: str) -> str:
    return "-" if numbers is None else f"{getattr(numbers, name):.3g}"


def is_partial(file: FileReport, name: str) -> bool:
    """Whether some but not all structures of a file, isolated atoms left out, have a label."""
    return 0 < file.whole.labeled[name] < file.whole.frames


def atoms_each(group: Group) -> str:
    """The sizes of structures, as in ``2-54``."""
    return str(group.smallest) if group.smallest == group.largest else f"{group.smallest}-{group.largest}"
