"""A report on data as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

import mace
from mace.elements import atomic_number, chemical_symbol
from mace.inspection.distributions import Distribution
from mace.inspection.findings import KINDS, LEVELS, Finding
from mace.inspection.inspection import DataReport, FileReport
from mace.pages.charts import histogram, sparkline
from mace.pages.html import Drawing, row_of_tiles, table, whole_page
from mace.properties import PROPERTIES
from mace.reporting.terminal import atoms_each, is_partial, verdict

_MOST_GROUPS = 60
_MOST_FINDINGS = 300
_MOST_PLOTTED_FILES = 40

_CHARTS = (
    ("energies", "Energy per atom, E0s subtracted", "structures", "eV/atom"),
    ("forces", "Norms of the forces", "atoms", "eV/\u00c5"),
    ("stresses", "Hydrostatic stress, a third of the trace", "structures", "eV/\u00c5\u00b3"),
)

_GROUP_COLUMNS = {
    "energies": {"E min": "smallest", "E mean": "mean", "E max": "largest", "E": ""},
    "forces": {"|F| rms": "rms", "|F| max": "largest", "|F|": ""},
    "stresses": {"stress min": "smallest", "stress max": "largest"},
}
"""Titles of columns and what of a distribution they show; where nothing is named, it is drawn."""

_GROUP_LEGENDS = {
    "energies": "E: energy per atom in eV, E0s subtracted",
    "forces": "|F|: norm of the force on an atom in eV/\u00c5",
    "stresses": "stress: a third of its trace in eV/\u00c5\u00b3",
}


def write_page(report: DataReport, title: str, heads: Mapping[str, str] | None = None, head: str = "") -> str:
    """Write a report as HTML: no scripts, and nothing is loaded from anywhere.

    Args:
        report: The report.
        title: Heading of the page.
        heads: The page on the data of each head, beside this one; None if there is only one.
        head: The head whose data these are, of several.

    Returns:
        The page; below two megabytes for any number of structures.
    """
    sections = [_file_section(file, plotted=place < _MOST_PLOTTED_FILES) for place, file in enumerate(report.files)]
    foot = (
        f'<p class="soft">Written by mace {escape(mace.__version__)}. Energies in eV, lengths in \u00c5; '
        "structures are counted from zero.</p>"
    )
    findings = ""
    if report.findings:
        findings = f"<section><h2>Findings</h2>{findings_list(report.findings, _MOST_FINDINGS)}</section>"
    links = ""
    if heads:
        words = (
            f"<b>{escape(name)}</b>" if name == head else f'<a href="{escape(quote(page))}">{escape(name)}</a>'
            for name, page in heads.items()
        )
        links = f'<nav aria-label="Heads"><p>Head: {" | ".join(words)}</p></nav>'
        title = f"{title}, head {head}"
    return whole_page(title, [links, _summary(report, title), findings, *sections, foot])


def _summary(report: DataReport, title: str) -> str:
    frames = sum(file.whole.frames for file in report.files)
    atoms = sum(file.whole.atoms for file in report.files)
    elements = sorted({symbol for file in report.files for symbol in file.whole.elements}, key=atomic_number)
    tiles = [
        ("files", f"{len(report.files)}"),
        ("structures", f"{frames:,}"),
        ("atoms", f"{atoms:,}"),
        ("elements", " ".join(elements)),
        ("cutoff r_max", f"{report.r_max:g} \u00c5"),
        *((f"{level}s", str(len(report.of_level(level)))) for level in LEVELS),
    ]
    kind = "bad" if report.errors else "good" if not report.of_level("warning") else ""
    text = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {kind}">{escape(verdict(report))}</p>',
        row_of_tiles(tiles),
    ]
    if report.reference_energies:
        shown = ", ".join(f"{chemical_symbol(z)} {energy:.6g}" for z, energy in report.reference_energies.items())
        text.append(f'<p class="soft">E0s in eV: {escape(shown)} ({escape(report.reference_source)})</p>')
    return "".join(text)


def findings_list(findings: Sequence[Finding], most: int) -> str:
    """Write findings as a list; beyond ``most`` they are only counted."""
    items = ""
    for finding in findings[:most]:
        badge = f'<span class="badge">{finding.level}{", allowed" if finding.allowed else ""}</span>'
        meaning = escape(KINDS[finding.name].meaning.replace("`", ""))
        items += (
            f'<li class="{finding.level}">{badge}<code>{finding.name}</code>'
            f'<p>{escape(finding.sentence)}</p><p class="soft">{meaning}</p></li>'
        )
    hidden = len(findings) - most
    more = f'<p class="soft">and {hidden} more findings</p>' if hidden > 0 else ""
    return f'<ul class="findings">{items}</ul>{more}'


def _file_section(file: FileReport, plotted: bool) -> str:
    whole = file.whole
    tiles = [("structures", f"{whole.frames:,}"), ("isolated atoms", f"{file.labels.isolated_atoms:,}")]
    if whole.frames:
        tiles += [
            ("atoms", f"{whole.atoms:,}"),
            ("atoms each", atoms_each(whole)),
            ("periodic", f"{whole.periodic:,}"),
            ("elements", " ".join(whole.elements)),
        ]
    charts = []
    for name, title, counted, unit in _CHARTS if plotted else ():
        numbers: Distribution | None = getattr(whole, name)
        if numbers is None:
            continue
        is_zero = abs(numbers.mean) < 1.0e-3 * numbers.rms  # digits of rounding, such as least squares leaves
        mean = "0" if is_zero else f"{numbers.mean:.4g}"
        spread = f"{numbers.smallest:.4g} to {numbers.largest:.4g}, mean {mean}, rms {numbers.rms:.4g} {unit}"
        said = f"<p>{numbers.count:,} {counted}: {escape(spread)}</p>"
        charts.append(f"<figure><figcaption>{escape(title)}</figcaption>{said}{histogram(numbers, unit)}</figure>")
    label_rows = [
        (
            entry.name,
            f"{entry.labeled + entry.converted} of {entry.frames}",
            entry.key or "\u2013",
            " and ".join(entry.places) or "\u2013",
            str(entry.converted or "\u2013"),
            str(entry.isolated or "\u2013"),
        )
        for entry in file.labels.coverage
        if entry.labeled + entry.converted + entry.isolated or (entry.frames and entry.name in ("energy", "forces"))
    ]
    labels = table(("label", "structures", "key", "found in", "converted", "isolated atoms"), label_rows)
    legends = [text for name, text in _GROUP_LEGENDS.items() if getattr(whole, name) is not None]
    legend = f'<p class="soft">{escape("; ".join(legends))}</p>' if legends else ""
    grouping = "head and config_type" if _has_heads(file) else "config_type"
    return (
        f'<section><h2>{escape(file.file)}</h2><p class="soft">{escape(file.role)}</p>{row_of_tiles(tiles)}'
        f'<div class="charts">{"".join(charts)}</div><h3>Labels</h3>{labels}'
        f"<h3>By {grouping}</h3>{_groups_table(file)}{legend}</section>"
    )


def _has_heads(file: FileReport) -> bool:
    return len({group.head for group in file.groups}) > 1


def _groups_table(file: FileReport) -> str:
    labels = [name for name in PROPERTIES if is_partial(file, name)]
    with_heads = _has_heads(file)
    with_elements = len({group.elements for group in file.groups}) > 1 or not file.whole.frames
    measured = [name for name in _GROUP_COLUMNS if getattr(file.whole, name) is not None]
    header = ["config_type", *(["head"] if with_heads else []), "structures", "atoms each"]
    header += ["elements"] if with_elements else []
    header += [f"with {name}" for name in labels]
    header += [title for name in measured for title in _GROUP_COLUMNS[name]]
    rows = []
    for group in file.groups[:_MOST_GROUPS]:
        row = [group.config_type, *([group.head] if with_heads else [])]
        row += [f"{group.frames:,}", atoms_each(group), *([" ".join(group.elements)] if with_elements else [])]
        row += [f"{group.labeled[name]:,}" for name in labels]
        for name in measured:
            numbers: Distribution | None = getattr(group, name)
            for column in _GROUP_COLUMNS[name].values():
                found = None if numbers is None or not column else getattr(numbers, column)
                shown = "\u2013" if found is None else f"{found:.3g}"
                row.append(shown if column else Drawing(sparkline(numbers)))
        rows.append(row)
    hidden = len(file.groups) - _MOST_GROUPS
    if hidden > 0:
        rows.append([f"and {hidden} more types", *[""] * (len(header) - 1)])
    return table(header, rows)
