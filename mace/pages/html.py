"""Parts of pages that need nothing but themselves: no request is made, and text from files stays text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import zip_longest
from typing import Any


class Drawing(str):
    """Text that is HTML already; whatever comes from a file is not, and gets escaped."""


@cache
def asset(name: str) -> str:
    """Read a style sheet or script of this package."""
    return (files("mace.pages") / "assets" / name).read_text(encoding="utf-8")


def whole_page(title: str, body: Iterable[str], scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """Put a page together.

    Args:
        title: Its title.
        body: What it shows.
        scripts: Names of the scripts that bring it to life. Nothing else is executed: the page forbids browsers to run
            any script but these and to load anything.
        styles: Names of style sheets besides the common one.

    Returns:
        The page.
    """
    style = "".join(asset(name) for name in ("page.css", *styles))
    script = '"use strict";\n' + "".join(f"(function () {{\n{asset(name)}}})();\n" for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if scripts else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {allowed}; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body><main>",
            *body,
            "</main>",
            *([f"<script>{script}</script>"] if scripts else []),
            "</body></html>\n",
        ]
    )


def embedded(name: str, data: Any) -> str:
    """Write data for a script; no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{text}</script>'


def row_of_tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Write numbers to be seen first: names and values."""
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in entries)
    return f'<div class="tiles">{"".join(cells)}</div>'


def of_head(head: str) -> str:
    """Write the attribute of what a page shows only as long as this head or all are chosen; nothing for no head."""
    return f' data-head="{escape(head)}"' if head else ""


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    left: int = 1,
    kind: str = "",
    heads: Sequence[str] = (),
) -> str:
    """Write a table; drawings are taken as they are, all else is text.

    Args:
        header: Titles of the columns.
        rows: Cells.
        caption: What the table shows, for those who do not see it.
        left: How many columns, from the first one, are of text, which begins at the left.
        kind: Class of the element.
        heads: The head that each row is of, if the page has a choice of them.

    Returns:
        The table, in an element that scrolls if the table is wide.
    """
    of_column = [' class="left"' if place < left else "" for place in range(len(header))]
    said = f'<caption class="unseen">{escape(caption)}</caption>' if caption else ""
    head = "".join(f'<th scope="col"{c}>{escape(cell)}</th>' for c, cell in zip(of_column, header, strict=True))
    body = "".join(
        f"<tr{of_head(head)}>"
        + "".join(
            f"<td{c}>{cell if isinstance(cell, Drawing) else escape(cell)}</td>"
            for c, cell in zip(of_column, row, strict=False)
        )
        + "</tr>"
        for row, head in zip_longest(rows, heads, fillvalue="")
    )
    whole = f'<table class="{kind}">{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{whole}</div>'
