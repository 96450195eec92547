"""One thin module per command."""

from pathlib import Path

# `python -m mace.cli.<program of mace-torch>` finds those of `original` too
__path__.append(str(Path(__file__).parent / "original"))
