"""Are the files of this package its own? mace-torch has a package of the same name, and pip lets it overwrite them."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mace.errors import UserError

ORIGINAL = "mace-torch"
"""The other distribution with a package called ``mace``."""

OURS = "mace-train"
"""This distribution, which the stand-in for mace-torch requires and mace-torch does not."""

PACKAGE = Path(__file__).parent
_ONLY_IN_ORIGINAL = "__version__.py"
_WAY_OUT = (
    f"install {OURS} again with 'pip install --force-reinstall --no-deps', or use a new environment; programs that "
    f"require {ORIGINAL} are satisfied by its stand-in (documentation: Coming from {ORIGINAL}, Programs that require "
    f"{ORIGINAL})."
)


def require_own_files(package: Path = PACKAGE) -> None:
    """Make sure that no other distribution has written into, or removed, the files of this one.

    As this runs whenever a command or the calculator is imported, only what cannot be missed is looked at: a
    distribution by its name, a file that only mace-torch has, and one that its removal takes along.

    Args:
        package: The folder of the package.

    Raises:
        UserError: If mace-torch is installed, or was removed from the same folder.
    """
    found = ORIGINAL if (package / _ONLY_IN_ORIGINAL).exists() else None
    with suppress(PackageNotFoundError):
        other = distribution(ORIGINAL)
        if OURS not in (other.requires or ()):  # its stand-in requires this one, and has no files
            found = f"{ORIGINAL} {other.version}"
    if found is not None:
        raise UserError(
            f"{found} is installed in this environment ({sys.prefix}) and has the same package 'mace' as {OURS}, so "
            f"that either overwrites files of the other in {package}; run 'pip uninstall {ORIGINAL}' and {_WAY_OUT}"
        )
    if not (package / "__init__.py").exists():
        raise UserError(f"Files of {OURS} are missing in {package}, as after the removal of {ORIGINAL}; {_WAY_OUT}")
