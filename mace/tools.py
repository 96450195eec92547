"""What other programs import from `mace.tools` of mace-torch; anything else says what to use instead.

The code is in `mace.compat`.
"""

import sys
from typing import NoReturn

from mace.compat import arguments as arg_parser
from mace.compat import functions as torch_tools
from mace.compat import functions as utils
from mace.compat.arguments import build_default_arg_parser, build_preprocess_arg_parser
from mace.compat.functions import (
    AtomicNumberTable,
    atomic_numbers_to_indices,
    get_atomic_number_table_from_zs,
    get_cache_dir,
    set_default_dtype,
    set_seeds,
    to_one_hot,
)
from mace.elsewhere import NoFurtherModules, missing_attribute

__all__ = [
    "AtomicNumberTable",
    "arg_parser",
    "atomic_numbers_to_indices",
    "build_default_arg_parser",
    "build_preprocess_arg_parser",
    "get_atomic_number_table_from_zs",
    "get_cache_dir",
    "set_default_dtype",
    "set_seeds",
    "to_one_hot",
    "torch_tools",
    "utils",
]

# files of their own there; found here as os.path is
for _name in ("arg_parser", "torch_tools", "utils"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name]
__path__ = NoFurtherModules(__name__)


def __getattr__(name: str) -> NoReturn:
    """Say what to use instead of a name that does not exist here."""
    raise missing_attribute(__name__, name)
