"""The loaders and the download function under the module name that they have in mace-torch, for scripts."""

from __future__ import annotations

from pathlib import Path

from mace.calculators.foundation_models import find_model, mace_anicc, mace_mp, mace_off, mace_omol, mace_polar
from mace.compat.functions import get_cache_dir
from mace.files.published import ADDRESSES

__all__ = [
    "download_mace_mp_checkpoint",
    "get_cache_dir",
    "mace_anicc",
    "mace_mp",
    "mace_mp_names",
    "mace_mp_urls",
    "mace_off",
    "mace_off_urls",
    "mace_omol",
    "mace_polar",
]

mace_mp_urls = dict(ADDRESSES["mace_mp"])
"""URLs of the models of `mace_mp`, by name."""

mace_mp_names = [None, *mace_mp_urls]
"""Names of the models of `mace_mp`; None stands for the default."""

mace_off_urls = dict(ADDRESSES["mace_off"])
"""URLs of the models of `mace_off`, by name."""


def download_mace_mp_checkpoint(model: str | Path | None = None) -> str:
    """Return the path of the model file that `mace_mp` opens for a name, downloading it on first use.

    Raises:
        UserError: If there is no such model, or it cannot be downloaded.
    """
    return str(find_model("mace_mp", model))
