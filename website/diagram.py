"""Picture of the parts of the package and their imports: ``python -m website.diagram > docs/architecture.svg``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from website.imports import imports_between_parts

VOCABULARY = {
    "errors",
    "units",
    "elements",
    "properties",
    "conditions",
    "elsewhere",
    "installation",
    "plain_text",
    "__init__",
}
"""Parts that all may use; drawn as one box, without arrows."""

GROUND = {"files", "console", "processes"}
"""Parts that most others use; drawn as boxes, without arrows."""

PARTS = {
    "settings": (1, "what was typed"),
    "files": (2, "whole, owned, safe"),
    "console": (3, "messages, progress"),
    "processes": (4, "devices, processes"),
    "formats": (1, "frames of any file"),
    "structures": (1, "labels, E0s, split"),
    "graphs": (1, "neighbors, data set"),
    "inspection": (2, "what looks wrong"),
    "reporting": (3, "tables, records"),
    "pages": (4, "pages and plots"),
    "equivariant": (0, "harmonics, couplings"),
    "kernels": (0, "inner loops"),
    "program": (1, "lists of kernels"),
    "model": (1, "MACE, model file"),
    "compat": (0, "mace-torch"),
    "potential": (0, "a model, ready"),
    "training": (2, "loop, state, loss"),
    "planning": (2, "settings to a plan"),
    "finetuning": (1, "from other models"),
    "preparation": (2, "before the first step"),
    "packing": (3, "prepared sets"),
    "runs": (2, "a whole run"),
    "quickstart": (2, "proposed settings"),
    "evaluation": (4, "files with predictions"),
    "calculators": (0, "ASE, torch-sim"),
    "dynamics": (0, "molecular dynamics"),
    "cli": (1, "commands"),
    "testing": (5, "physical laws"),
}
"""The column of each part, chosen so that no arrow passes behind a box, and what it is about."""

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 150, 46, 34, 44, 14

_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif">
<title>Parts of the package; an arrow leads from a part to one that uses it</title>
<style>rect {{ fill: #e8eaf6; stroke: #3f51b5; }} path {{ fill: none; stroke: #7986cb; stroke-width: 1.5; }}
text {{ text-anchor: middle; fill: #1a237e; font-size: 14px; }} .words {{ font-size: 11px; fill: #3949ab; }}
.note {{ fill: #7986cb; font-size: 12px; }}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" style="fill:#7986cb;stroke:none"/></marker></defs>"""


def levels(uses: Mapping[str, set[str]]) -> dict[str, int]:
    """Put every part one row below the lowest of those it uses.

    Args:
        uses: For each part the others that it imports; without circles.

    Returns:
        The row of each part, from 0.

    >>> levels({"b": {"a"}, "a": set(), "c": {"a", "b"}})
    {'b': 1, 'a': 0, 'c': 2}
    """

    def level(part: str) -> int:
        return 1 + max((level(other) for other in uses[part]), default=-1)

    return {part: level(part) for part in uses}


def direct(uses: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """List the imports that do not follow from others: what a part uses through another one is left out.

    >>> direct({"c": {"a", "b"}, "b": {"a"}, "a": set()})
    [('a', 'b'), ('b', 'c')]
    """

    def reached(part: str) -> set[str]:
        return uses[part].union(*(reached(other) for other in uses[part]))

    return sorted(
        (other, part)
        for part, others in uses.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    )


def _places(uses: Mapping[str, set[str]]) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Find the top left corner of each box, and the size of the picture."""
    row_of = levels(uses)
    left, top = _MARGIN, _MARGIN + 30
    places = {
        part: (left + PARTS[part][0] * (_WIDTH + _GAP_X), top + row_of[part] * (_HEIGHT + _GAP_Y)) for part in uses
    }
    width = max(x for x, _ in places.values()) + _WIDTH + _MARGIN
    return places, width, max(y for _, y in places.values()) + _HEIGHT + _MARGIN


def draw(imports: Mapping[str, set[str]]) -> str:
    """Draw the parts and their imports.

    Args:
        imports: For each part the others that it imports.

    Returns:
        An SVG document.

    Raises:
        KeyError: If a part has no place in `PARTS`.
    """
    uses = {part: others - VOCABULARY - GROUND for part, others in imports.items() if part not in VOCABULARY}
    places, width, height = _places(uses)
    lines = [_HEAD.format(width=width, height=height)]
    note = "errors, units, elements, properties, conditions; files, console, processes: used by most, without arrows"
    lines.append(f'<text class="note" x="{width // 2}" y="{_MARGIN + 8}">{note}</text>')
    for source, target in direct(uses):
        (x1, y1), (x2, y2) = places[source], places[target]
        x1, x2, y1 = x1 + _WIDTH // 2, x2 + _WIDTH // 2, y1 + _HEIGHT
        bend = (y2 - y1) // 2
        course = f"M{x1},{y1} C{x1},{y1 + bend} {x2},{y2 - bend} {x2},{y2}"
        lines.append(f'<path marker-end="url(#tip)" d="{course}"/>')
    for part, (x, y) in places.items():
        middle = x + _WIDTH // 2
        lines.append(f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>')
        lines.append(f'<text x="{middle}" y="{y + 19}">{part}</text>')
        lines.append(f'<text class="words" x="{middle}" y="{y + 35}">{PARTS[part][1]}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(draw(imports_between_parts()))
