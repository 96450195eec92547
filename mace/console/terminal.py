"""The terminal as all commands write to it: what files say is shown as it stands there, and controls nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mace.errors import plain


class PlainConsole(Console):
    """A console to which text is only text: neither markup, nor names of pictures, nor sequences that control it.

    Args:
        settings: Those of `rich.console.Console`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | settings))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces of what is shown; those that come from text are made harmless."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
