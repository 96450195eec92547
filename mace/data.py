"""What other programs import from `mace.data` of mace-torch; anything else says what to use instead.

The code is in `mace.compat`.
"""

import sys
from typing import NoReturn

from mace.compat import functions as neighborhood
from mace.compat.functions import get_neighborhood
from mace.elsewhere import NoFurtherModules, missing_attribute

__all__ = ["get_neighborhood", "neighborhood"]

sys.modules[f"{__name__}.neighborhood"] = neighborhood  # a file of its own there; found here as os.path is
__path__ = NoFurtherModules(__name__)


def __getattr__(name: str) -> NoReturn:
    """Say what to use instead of a name that does not exist here."""
    raise missing_attribute(__name__, name)
