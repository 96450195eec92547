"""Published foundation models: where they are, where they are kept on this machine, and how they get there."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mace.compat.archives import is_torch_file
from mace.errors import UserError

_LOGGER = logging.getLogger(__name__)
TIMEOUT = 120.0
"""Seconds without a byte after which a download is given up."""
_CHUNK = 1 << 18
_RELEASES = "https://github.com/ACEsuit/{}/releases/download"
_MP, _FOUNDATIONS = _RELEASES.format("mace-mp"), _RELEASES.format("mace-foundations")
_OFF = "https://raw.githubusercontent.com/ACEsuit/mace-off/main/mace_off23"
_ASL = "the Academic Software License, which does not permit commercial use (https://github.com/gabor1/ASL)"

ADDRESSES: dict[str, dict[str, str]] = {
    "mace_mp": {
        "small": f"{_MP}/mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model",
        "medium": f"{_MP}/mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model",
        "large": f"{_MP}/mace_mp_0/MACE_MPtrj_2022.9.model",
        "small-0b": f"{_MP}/mace_mp_0b/mace_agnesi_small.model",
        "medium-0b": f"{_MP}/mace_mp_0b/mace_agnesi_medium.model",
        "small-0b2": f"{_MP}/mace_mp_0b2/mace-small-density-agnesi-stress.model",
        "medium-0b2": f"{_MP}/mace_mp_0b2/mace-medium-density-agnesi-stress.model",
        "large-0b2": f"{_MP}/mace_mp_0b2/mace-large-density-agnesi-stress.model",
        "medium-0b3": f"{_MP}/mace_mp_0b3/mace-mp-0b3-medium.model",
        "medium-mpa-0": f"{_MP}/mace_mpa_0/mace-mpa-0-medium.model",
        "small-omat-0": f"{_MP}/mace_omat_0/mace-omat-0-small.model",
        "medium-omat-0": f"{_MP}/mace_omat_0/mace-omat-0-medium.model",
        "mace-matpes-pbe-0": f"{_FOUNDATIONS}/mace_matpes_0/MACE-matpes-pbe-omat-ft.model",
        "mace-matpes-r2scan-0": f"{_FOUNDATIONS}/mace_matpes_0/MACE-matpes-r2scan-omat-ft.model",
        "mh-0": f"{_FOUNDATIONS}/mace_mh_1/mace-mh-0.model",
        "mh-1": f"{_FOUNDATIONS}/mace_mh_1/mace-mh-1.model",
    },
    "mace_off": {size: f"{_OFF}/MACE-OFF23_{size}.model" for size in ("small", "medium", "large")},
    "mace_omol": {"extra_large": f"{_FOUNDATIONS}/mace_omol_0/MACE-omol-0-extra-large-1024.model"},
    "mace_anicc": {
        "ani500k_large_CC": "https://raw.githubusercontent.com/ACEsuit/mace/main/mace/calculators/foundations_models/"
        "ani500k_large_CC.model"
    },
}
"""Where the models of each loader are published, by the names that scripts already use."""

DEFAULTS = {
    "mace_mp": "medium-mpa-0",
    "mace_off": "medium",
    "mace_omol": "extra_large",
    "mace_anicc": "ani500k_large_CC",
}
_RESTRICTED = {"small-omat-0", "medium-omat-0", "mace-matpes-pbe-0", "mace-matpes-r2scan-0"}
TRAINING_NAMES: dict[str, tuple[str, str]] = {
    **{name: ("mace_mp", name) for name in ADDRESSES["mace_mp"]},
    **{f"{name}_off": ("mace_off", name) for name in ADDRESSES["mace_off"]},
    "mace_omol": ("mace_omol", "extra_large"),
}
"""What ``--foundation_model`` calls them, with loader and name."""


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be downloaded.

    Attributes:
        loader: ``mace_mp``, ``mace_off``, ``mace_omol`` or ``mace_anicc``.
        address: Where it is published.
        license_note: What has to be known of its license.
    """

    loader: str
    address: str
    license_note: str = ""

    @property
    def places(self) -> tuple[Path, ...]:
        """Where it may lie on this machine: first where mace-torch keeps it too, then under its own name."""
        name = self.address.rpartition("/")[2].partition("?")[0]
        # mace-torch leaves all but letters, digits and underscores out of the names of these
        short = "".join(c for c in name if c.isalnum() or c == "_")
        names = (short, name) if self.loader == "mace_mp" else (name,)
        return tuple(cache_folder() / each for each in names)


def cache_folder() -> Path:
    """Return the folder that mace-torch keeps downloaded models in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mace"


def published_model(loader: str, name: str | None) -> PublishedModel:
    """Find a model by the name that scripts use.

    Args:
        loader: A key of `ADDRESSES`.
        name: Its name, None for the default, or an address beginning with ``https:``.

    Raises:
        UserError: If there is none of this name.
    """
    known = ADDRESSES[loader]
    if name is not None and name.startswith("https:"):
        return PublishedModel(loader, name)
    name = name or DEFAULTS[loader]
    if name not in known:
        raise UserError(f"{loader}: there is no published model '{name}' and no such file; choose {', '.join(known)}.")
    restricted = loader in ("mace_off", "mace_omol") or name in _RESTRICTED
    return PublishedModel(loader, known[name], _ASL if restricted else "")


def locate(model: PublishedModel) -> Path:
    """Return the file of a published model, downloading it if it is not on this machine.

    Raises:
        UserError: If it cannot be downloaded; the message says which file to put where.
    """
    for place in model.places:
        if place.is_file():
            return place
    target = model.places[0]
    if model.license_note:
        _LOGGER.warning(
            "%s is distributed under %s; by using it you accept the license", target.name, model.license_note
        )
    _LOGGER.info("Downloading %s to %s", model.address, target)
    try:
        digest = _download(model.address, target)
    except (OSError, ValueError, EOFError) as error:  # urllib's errors are OSErrors; a bad address is a ValueError
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{model.loader}: the model is not on this machine and cannot be downloaded ({reason}); download "
            f"{model.address} elsewhere and put the file at {target}."
        ) from error
    _LOGGER.info("Downloaded %s, SHA-256 %s", target, digest)
    return target


def _download(address: str, target: Path) -> str:
    """Fetch a file, complete or not at all, and return its SHA-256.

    Raises:
        OSError: If it cannot be fetched.
        EOFError: If it is cut off, or no model but for example a page about one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response, part.open("wb") as stream:
            expected = response.headers.get("Content-Length")
            while block := response.read(_CHUNK):
                stream.write(block)
                digest.update(block)
                size += len(block)
        if expected is not None and int(expected) != size:
            raise EOFError(f"only {size} of {expected} bytes arrived")
        if not is_torch_file(part):
            raise EOFError("what arrived is no model")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def foundation_file(name: str) -> Path:
    """Return the file that ``--foundation_model`` means: a published model or any model file.

    Raises:
        UserError: If it is neither, or cannot be downloaded.
    """
    if name in TRAINING_NAMES:
        return locate(published_model(*TRAINING_NAMES[name]))
    if name.startswith("https:"):
        return locate(published_model("mace_mp", name))
    if name.startswith("polar-1"):
        raise UserError(f"--foundation_model={name}: models with long-range electrostatics do not exist here.")
    if not Path(name).is_file():
        raise UserError(
            f"--foundation_model={name}: there is no such file and no published model of this name; name a file or "
            f"one of {', '.join(TRAINING_NAMES)}."
        )
    return Path(name)
