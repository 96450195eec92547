"""Are the files of this package its own? mace-torch has a package of the same name, and pip lets one overwrite the other."""

from __future__ import annotations

import sys
from pathlib import Path

from mace.errors import UserError

ORIGINAL = "mace-torch"
"""The other distribution with a package called ``mace``."""

PACKAGE = Path(__file__).parent
_ONLY_IN_ORIGINAL = "__version__.py"
_WAY_OUT = (
    "run 'pip uninstall -y mace-torch', then 'pip install --force-reinstall --no-deps' with the checkout or wheel of "
    "mace-train; programs that require mace-torch are satisfied by its stand-in (documentation: Coming from "
    "mace-torch, Programs that require mace-torch)."
)


def require_own_files(package: Path = PACKAGE) -> None:
    """Make sure that no other distribution has written into, or removed, the files of this one.

    Only what cannot be missed is looked at, as this runs whenever a command or the calculator is imported: a file that
    only mace-torch has, and one that its removal takes along. The stand-in has no files and is no trouble; nor is
    mace-torch in another folder.

    Args:
        package: The folder of the package.

    Raises:
        UserError: If mace-torch was installed into the same folder, or removed from it.
    """
    if (package / _ONLY_IN_ORIGINAL).exists():
        from importlib.metadata import PackageNotFoundError, version  # here, as it is rarely needed

        try:
            found = f"{ORIGINAL} {version(ORIGINAL)}"
        except PackageNotFoundError:
            found = ORIGINAL
        raise UserError(
            f"{found} is installed in this environment ({sys.prefix}) and has the same package 'mace' as mace-train, "
            f"so that files in {package} are not those of this program; {_WAY_OUT}"
        )
    if not (package / "__init__.py").exists():
        raise UserError(
            f"Files of mace-train are missing in {package}, as after 'pip uninstall mace-torch', which has the same "
            f"package 'mace'; {_WAY_OUT}"
        )
