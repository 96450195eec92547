"""The command ``mace_prepare_data`` under the name that its module has in mace-torch."""

from __future__ import annotations

import sys

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mace.cli.prepare_data import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    main()
