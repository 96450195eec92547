"""The import path of the loaders in scripts that name the file of mace-torch they are in, and the download alone."""

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
"""Where the models of `mace_mp` are published, by name."""

mace_mp_names = [None, *mace_mp_urls]
"""Their names; None stands for the default."""

mace_off_urls = dict(ADDRESSES["mace_off"])
"""Where the models of `mace_off` are published, by name."""


def download_mace_mp_checkpoint(model: str | Path | None = None) -> str:
    """Return the path of the file that `mace_mp` opens for this name, downloading it on first use.

    Raises:
        UserError: If there is no such model, or it cannot be downloaded.
    """
    return str(find_model("mace_mp", model))
