"""The console of all commands: text from files is shown literally and cannot control the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mace.errors import plain


class PlainConsole(Console):
    """A console that shows text literally: no markup, no emoji names, no control sequences.

    Args:
        settings: Arguments of `rich.console.Console`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | settings))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to show, with control sequences in text made harmless."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
