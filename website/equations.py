"""Equations as MathML, which browsers draw by themselves: pages need no script and no network for them."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

from latex2mathml.converter import convert

# what the Markdown extension arithmatex leaves of $...$ and $$...$$
_MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)
# the directives of docstrings: a paragraph of its own, with its continued lines, and the role inside a sentence
_DIRECTIVE = re.compile(r"^([ \t]*)\.\. math:: *(.+(?:\n\1[ \t]+\S.*)*)", flags=re.MULTILINE)
_SCRIPT = re.compile(r'<mi mathvariant="script">([A-Z])</mi>')
_ROLE = re.compile(r":math:`([^`]+)`")


def draw_equations(page: str) -> str:
    """Replace the marked TeX of a page by MathML.

    Args:
        page: HTML with the marks of arithmatex.

    Returns:
        HTML with ``<math>`` elements, each with its TeX as annotation for those who copy it.

    Raises:
        ValueError: If TeX has a command that is not understood; it would be shown as text.
    """
    return _MARKED.sub(lambda match: _mathml(html.unescape(match[3]).strip(), match[2] == "["), page)


def _mathml(tex: str, block: bool) -> str:
    drawn = convert(tex, display="block" if block else "inline")
    left = re.findall(r"\\[A-Za-z]+", drawn)
    if left:
        raise ValueError(f"no way to draw {', '.join(left)} in the equation {tex}")
    # browsers know script letters as characters, not as a style
    drawn = _SCRIPT.sub(lambda match: f"<mi>{unicodedata.lookup(_script_letter(match[1]))}</mi>", drawn)
    annotation = f'<annotation encoding="application/x-tex">{html.escape(tex)}</annotation>'
    return drawn.replace("<mrow>", "<semantics><mrow>", 1).replace("</math>", f"{annotation}</semantics></math>")


def _script_letter(letter: str) -> str:
    """Name a script letter as Unicode does, which knew some of them before the others."""
    older = letter in "BEFHILMR"
    return f"SCRIPT CAPITAL {letter}" if older else f"MATHEMATICAL SCRIPT CAPITAL {letter}"


def dollars(docstring: str) -> str:
    """Write the directives of mathematics in a docstring as Markdown does, ``$...$``."""
    in_blocks = _DIRECTIVE.sub(lambda match: f"{match[1]}$$ {' '.join(match[2].split())} $$", docstring)
    return _ROLE.sub(lambda match: f"${match[1]}$", in_blocks)


def on_page_content(content: str, **_: Any) -> str:
    """Hook of MkDocs, called with the HTML of each page."""
    return draw_equations(content)
