"""A report on data as tables for a terminal, and in a few lines for the log of a training."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mace.elements import chemical_symbol
from mace.inspection.findings import LEVELS, Finding
from mace.inspection.groups import Distribution, Group
from mace.inspection.inspection import DataReport, FileReport

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST_GROUPS = 40
_SHORT = {"energy": "E", "forces": "F", "stress": "S"}


def print_report(report: DataReport, console: Console) -> None:
    """Show files, labels, groups and findings."""
    console.print(_files_table(report))
    console.print(_labels_table(report))
    console.print(_groups_table(report))
    if report.reference_energies:
        shown = ", ".join(f"{chemical_symbol(z)} {energy:.6g}" for z, energy in report.reference_energies.items())
        console.print(Text(f"E0s / eV: {shown} ({report.reference_source})"))
    for finding in report.findings:
        console.print(_line(finding), soft_wrap=True)
    console.print(Text(verdict(report), style="bold"))


def summary_lines(report: DataReport) -> Iterator[str]:
    """Describe every file in one line, for a log."""
    for file in report.files:
        parts = [
            f"{file.whole.frames} structures",
            f"{file.whole.atoms} atoms",
            " ".join(file.whole.elements) or "no elements",
        ]
        for name, numbers, unit in (
            ("energy", file.whole.energies, "eV/atom"),
            ("forces", file.whole.forces, "eV/A"),
            ("pressure-like stress", file.whole.stresses, "eV/A^3"),
        ):
            if numbers is not None:
                parts.append(f"{name} {numbers.smallest:.4g} to {numbers.largest:.4g} {unit}")
        yield f"{file.file} ({file.role}): {', '.join(parts)}"


def verdict(report: DataReport) -> str:
    """Count the findings in one sentence."""
    if not report.findings:
        return "Nothing was found that deserves attention."
    counts = {level: len(report.of_level(level)) for level in LEVELS}
    words = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    allowed = sum(finding.allowed for finding in report.of_level("error"))
    text = ", ".join(words) + (f" ({allowed} allowed)" if allowed else "")
    return f"Found {text}; training refuses these data." if report.errors else f"Found {text}."


def _line(finding: Finding) -> Text:
    label = f"{finding.level}{' (allowed)' if finding.allowed else ''}"
    return Text.assemble((label, _STYLES[finding.level]), f" [{finding.name}] {finding.sentence}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.ASCII, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _files_table(report: DataReport) -> Table:
    table = _table("Files", "file", "role", "structures", "isolated atoms", "atoms", "atoms each", "elements")
    for file in report.files:
        whole = file.whole
        row = [file.file, file.role, whole.frames, file.labels.isolated_atoms, whole.atoms, atoms_each(whole)]
        table.add_row(*(str(cell) for cell in row), " ".join(whole.elements))
    return table


def _labels_table(report: DataReport) -> Table:
    table = _table("Labels", "file", "label", "structures", "key", "found in", "converted")
    for file in report.files:
        for entry in file.labels.coverage:
            if entry.labeled + entry.converted + entry.isolated or entry.name in ("energy", "forces"):
                table.add_row(
                    file.file,
                    entry.name,
                    f"{entry.labeled + entry.converted} of {entry.frames}",
                    entry.key or "-",
                    " and ".join(entry.places) or "-",
                    str(entry.converted or "-"),
                )
    return table


def _groups_table(report: DataReport) -> Table:
    table = _table(
        "By head and config_type (E - E0s in eV/atom, |F| in eV/A, stress: a third of the trace in eV/A^3)",
        *("file", "head", "config_type", "structures", *_SHORT.values(), "E min", "E mean", "E max"),
        *("|F| rms", "|F| max", "stress min", "stress max"),
    )
    for file in report.files:
        for group in file.groups[:_MOST_GROUPS]:
            table.add_row(*_group_row(file, group))
        if len(file.groups) > _MOST_GROUPS:
            table.add_row(file.file, "", f"and {len(file.groups) - _MOST_GROUPS} more types")
    return table


def _group_row(file: FileReport, group: Group) -> list[str]:
    labeled = [str(group.labeled[name]) for name in _SHORT]
    energy, force, stress = group.energies, group.forces, group.stresses
    return [
        *(file.file, group.head, group.config_type, str(group.frames), *labeled),
        *(_number(energy, name) for name in ("smallest", "mean", "largest")),
        *(_number(force, name) for name in ("rms", "largest")),
        *(_number(stress, name) for name in ("smallest", "largest")),
    ]


def _number(numbers: Distribution | None, name: str) -> str:
    return "-" if numbers is None else f"{getattr(numbers, name):.4g}"


def atoms_each(group: Group) -> str:
    """The sizes of structures, as in ``2-54``."""
    return str(group.smallest) if group.smallest == group.largest else f"{group.smallest}-{group.largest}"
