"""Extension of the reader of docstrings: their equations in Markdown."""

from __future__ import annotations

from typing import Any

import griffe

from website.equations import dollars


class DocstringEquations(griffe.Extension):
    """Rewrites directives of mathematics, which Markdown does not know."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every documented object."""
        if obj.docstring:
            obj.docstring.value = dollars(obj.docstring.value)
