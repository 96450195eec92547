"""A report on data as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import mace
from mace.elements import atomic_number, chemical_symbol
from mace.inspection.findings import KINDS, LEVELS, Finding
from mace.inspection.groups import Distribution, Group
from mace.inspection.inspection import DataReport, FileReport
from mace.reporting.charts import histogram, sparkline
from mace.reporting.terminal import atoms_each, is_partial, verdict
from mace.structures.configuration import PROPERTIES

_MOST_GROUPS = 60
_MOST_FINDINGS = 300
_MOST_PLOTTED_FILES = 40

_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #5d6670; --line: #dfe2e6;
  --bar: #3a76b5; --error: #b3261e; --warning: #8a5a00; --note: #2b6a8f; --error-back: #fbeae8; --warning-back: #fbf2df;
  --note-back: #e8f1f7; --good: #23703b; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --card: #1d2126; --ink: #e6e8ea; --soft: #9aa4ae;
  --line: #343a41; --bar: #6aa5dd; --error: #ff8a80; --warning: #f0bf5c; --note: #86c1e6; --error-back: #3a2020;
  --warning-back: #352b16; --note-back: #1b2d3a; --good: #7fcf98; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 18px 0 6px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin: 16px 0; }
.verdict { font-size: 1.05rem; font-weight: 600; margin-top: 10px; } .verdict.bad { color: var(--error); }
.verdict.good { color: var(--good); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 8px; margin: 12px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; min-width: 0; overflow-wrap: anywhere; }
.tile b { display: block; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .8rem; }
ul.findings { list-style: none; margin: 10px 0 0; padding: 0; }
ul.findings li { border-left: 4px solid; border-radius: 4px; padding: 8px 12px; margin: 8px 0;
  overflow-wrap: anywhere; }
ul.findings li.error { border-color: var(--error); background: var(--error-back); }
ul.findings li.warning { border-color: var(--warning); background: var(--warning-back); }
ul.findings li.note { border-color: var(--note); background: var(--note-back); }
li .badge { font-weight: 700; margin-right: 6px; } li.error .badge { color: var(--error); }
li.warning .badge { color: var(--warning); } li.note .badge { color: var(--note); }
code { font: .9em ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: right; padding: 4px 6px; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 14px;
  margin-top: 12px; }
figure { margin: 0; min-width: 0; max-width: 460px; } figcaption { font-size: .87rem; font-weight: 600; }
figure p { font-size: .8rem; color: var(--soft); margin: 0; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
svg.spark { width: 56px; height: 16px; display: inline-block; vertical-align: middle; }
.bar { fill: var(--bar); } .axis { stroke: var(--soft); stroke-width: 1; }
.grid { stroke: var(--line); stroke-width: 1; }
"""

_CHARTS = (
    ("energies", "Energy per atom, E0s subtracted", "structures", "eV/atom"),
    ("forces", "Norms of the forces", "atoms", "eV/\u00c5"),
    ("stresses", "Hydrostatic stress, a third of the trace", "structures", "eV/\u00c5\u00b3"),
)

_GROUP_COLUMNS = {
    "energies": ["E min", "E mean", "E max", "E"],
    "forces": ["|F| rms", "|F| max", "|F|"],
    "stresses": ["stress min", "stress max"],
}

_GROUP_LEGENDS = {
    "energies": "E: energy per atom in eV, E0s subtracted",
    "forces": "|F|: norm of the force on an atom in eV/\u00c5",
    "stresses": "stress: a third of its trace in eV/\u00c5\u00b3",
}


class _Drawing(str):
    """Text that is SVG already; whatever comes from a file is not, and gets escaped."""


def write_page(report: DataReport, title: str) -> str:
    """Write a report as HTML: no scripts, and nothing is loaded from anywhere.

    Args:
        report: The report.
        title: Heading of the page.

    Returns:
        The page; below two megabytes for any number of structures.
    """
    sections = [_file_section(file, plotted=place < _MOST_PLOTTED_FILES) for place, file in enumerate(report.files)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            _head(report, title),
            _findings_section(report),
            *sections,
            f'<p class="soft">Written by mace {escape(mace.__version__)}. Energies in eV, lengths in \u00c5; '
            "structures are counted from zero.</p>",
            "</main></body></html>\n",
        ]
    )


def _head(report: DataReport, title: str) -> str:
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
    text = [f"<h1>{escape(title)}</h1>", f'<p class="verdict {kind}">{escape(verdict(report))}</p>', _tiles(tiles)]
    if report.reference_energies:
        shown = ", ".join(f"{chemical_symbol(z)} {energy:.6g}" for z, energy in report.reference_energies.items())
        text.append(f'<p class="soft">E0s in eV: {escape(shown)} ({escape(report.reference_source)})</p>')
    return "".join(text)


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _findings_section(report: DataReport) -> str:
    if not report.findings:
        return ""
    items = "".join(_finding_item(finding) for finding in report.findings[:_MOST_FINDINGS])
    hidden = len(report.findings) - _MOST_FINDINGS
    more = f'<p class="soft">and {hidden} more findings</p>' if hidden > 0 else ""
    return f'<section><h2>Findings</h2><ul class="findings">{items}</ul>{more}</section>'


def _finding_item(finding: Finding) -> str:
    badge = f'<span class="badge">{finding.level}{", allowed" if finding.allowed else ""}</span>'
    meaning = escape(KINDS[finding.name].meaning.replace("`", ""))
    return (
        f'<li class="{finding.level}">{badge}<code>{finding.name}</code>'
        f'<p>{escape(finding.sentence)}</p><p class="soft">{meaning}</p></li>'
    )


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
    charts = [_figure(getattr(whole, name), *words) for name, *words in _CHARTS] if plotted else []
    grouping = "head and config_type" if _has_heads(file) else "config_type"
    return (
        f'<section><h2>{escape(file.file)}</h2><p class="soft">{escape(file.role)}</p>{_tiles(tiles)}'
        f'<div class="charts">{"".join(charts)}</div><h3>Labels</h3>{_labels_table(file)}'
        f"<h3>By {grouping}</h3>{_groups_table(file)}{_legend(file)}</section>"
    )


def _has_heads(file: FileReport) -> bool:
    return len({group.head for group in file.groups}) > 1


def _legend(file: FileReport) -> str:
    legends = [text for name, text in _GROUP_LEGENDS.items() if getattr(file.whole, name) is not None]
    return f'<p class="soft">{escape("; ".join(legends))}</p>' if legends else ""


def _figure(numbers: Distribution | None, title: str, counted: str, unit: str) -> str:
    if numbers is None:
        return ""
    is_zero = abs(numbers.mean) < 1.0e-3 * numbers.rms  # digits of rounding, such as least squares leaves
    mean = "0" if is_zero else f"{numbers.mean:.4g}"
    spread = f"{numbers.smallest:.4g} to {numbers.largest:.4g}, mean {mean}, rms {numbers.rms:.4g} {unit}"
    return (
        f"<figure><figcaption>{escape(title)}</figcaption><p>{numbers.count:,} {counted}: {escape(spread)}</p>"
        f"{histogram(numbers, unit)}</figure>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; drawings are taken as they are, all else is text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if isinstance(cell, _Drawing) else escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _labels_table(file: FileReport) -> str:
    rows = [
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
    return _table(("label", "structures", "key", "found in", "converted", "isolated atoms"), rows)


def _groups_table(file: FileReport) -> str:
    labels = [name for name in PROPERTIES if is_partial(file, name)]
    columns = {
        "head": _has_heads(file),
        "elements": len({group.elements for group in file.groups}) > 1 or not file.whole.frames,
        "energies": file.whole.energies is not None,
        "forces": file.whole.forces is not None,
        "stresses": file.whole.stresses is not None,
    }
    header = ["config_type", *(["head"] if columns["head"] else []), "structures", "atoms each"]
    header += ["elements"] if columns["elements"] else []
    header += [f"with {name}" for name in labels]
    for name, titles in _GROUP_COLUMNS.items():
        header += titles if columns[name] else []
    rows = [_group_row(group, labels, columns) for group in file.groups[:_MOST_GROUPS]]
    hidden = len(file.groups) - _MOST_GROUPS
    if hidden > 0:
        rows.append([f"and {hidden} more types", *[""] * (len(header) - 1)])
    return _table(header, rows)


def _group_row(group: Group, labels: Sequence[str], columns: Mapping[str, bool]) -> list[str]:
    row = [group.config_type, *([group.head] if columns["head"] else [])]
    row += [f"{group.frames:,}", atoms_each(group), *([" ".join(group.elements)] if columns["elements"] else [])]
    row += [f"{group.labeled[name]:,}" for name in labels]
    if columns["energies"]:
        row += [_number(group.energies, name) for name in ("smallest", "mean", "largest")]
        row.append(_Drawing(sparkline(group.energies)))
    if columns["forces"]:
        row += [_number(group.forces, name) for name in ("rms", "largest")]
        row.append(_Drawing(sparkline(group.forces)))
    if columns["stresses"]:
        row += [_number(group.stresses, name) for name in ("smallest", "largest")]
    return row


def _number(numbers: Distribution | None, name: str) -> str:
    return "\u2013" if numbers is None else f"{getattr(numbers, name):.3g}"
