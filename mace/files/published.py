"""Published foundation models and structures to replay: addresses, places on this machine, and the download."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

from mace.errors import UserError
from mace.files.archives import MAX_FILE, is_torch_file, read_torch_file, sha256_of

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

_OF_MACE_MP = {
    "small": "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
    "medium": "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
    "large": "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
    "small-0b": "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    "medium-0b": "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    "small-0b2": "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
    "medium-0b2": "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
    "large-0b2": "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
    "medium-0b3": "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    "medium-mpa-0": "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
    "small-omat-0": "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
    "medium-omat-0": "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
    "mace-matpes-pbe-0": "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
    "mace-matpes-r2scan-0": "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
    "mh-0": "d62ff8f293664e6556cfa49364b28ee72a70cf1e6150f3c111a578397fed609d",
}
DIGESTS = {ADDRESSES["mace_mp"][name]: digest for name, digest in _OF_MACE_MP.items()} | {
    ADDRESSES["mace_off"]["small"]: "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f",
    ADDRESSES["mace_off"]["medium"]: "4842c52ad210d6e1f84d6cf1ffa70fae25a7e0d755ed55cf223f43913f587db7",
    ADDRESSES["mace_off"]["large"]: "a29e397dbf3e7a24ac50a9b0dfc919bd5a62efa346f5895a6237b0950c1d76f4",
    ADDRESSES["mace_omol"]["extra_large"]: "9b64b4fd5153ca578c694abc57806d8111050de6ff652e695c9b525bc4d36469",
}
"""SHA-256 of the files at the addresses that are known by name.

Their publishers give none. These are what public projects wrote down of the files that they downloaded there, and they
agree: among them the list of deepmd-gnn for MACE-OFF23, and those of symmetrix and Phydrax for nearly all. Of
`mace_anicc` none was found and of ``mh-1`` two that differ, so that these are logged and not compared.
"""

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


REPLAY_SETS: dict[str, str] = {
    "mp": f"{_FOUNDATIONS}/mace_mp_0b/mp_traj_combined.xyz",
    "omat": f"{_FOUNDATIONS}/mace_omat_0/mp_traj_combined_omat.xyz",
    "matpes_pbe": f"{_FOUNDATIONS}/mace_matpes_0/matpes-pbe-replay-data.xyz",
    "matpes_r2scan": f"{_FOUNDATIONS}/mace_matpes_0/matpes-r2scan-replay-data.extxyz",
}
"""Where structures that models were trained on are published, by the names ``--pt_train_file`` calls them."""

Blocks = Iterable[bytes]
Progress = Callable[[Blocks, str, int | None], Blocks]
"""Wraps the blocks of a download, given what is downloaded and, if it is known, the number of blocks."""


def without_progress(blocks: Blocks, description: str, total: int | None) -> Blocks:
    """Show nothing."""
    return blocks


@dataclass(frozen=True)
class PublishedFile:
    """A file that can be downloaded.

    Attributes:
        loader: Who asks for it, for messages: for models ``mace_mp``, ``mace_off``, ``mace_omol`` or ``mace_anicc``.
        address: The URL it is published at.
        license_note: What users have to know about its license.
    """

    what: ClassVar[str] = "file"
    """What it is, for messages."""

    names_differ: ClassVar[bool] = False
    """Whether the place at which mace-torch keeps it says what it is, although its SHA-256 is unknown."""

    loader: str
    address: str
    license_note: str = ""

    def check(self, path: Path) -> None:
        """Check that what arrived is such a file, and that its end is there.

        Raises:
            EOFError: If it is something else, for example a web page, or cut off.
        """

    @property
    def place(self) -> Path:
        """Path of the file on this machine; its name is derived from the whole address."""
        key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return cache_folder() / f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '', self._last_part)[-80:]}"

    @property
    def places_of_mace_torch(self) -> tuple[Path, ...]:
        """Paths at which mace-torch and earlier versions keep it, named after the last part of the address.

        Other files may have the same name. For `mace_mp` and structures, mace-torch drops all but letters, digits and
        underscores.
        """
        short = "".join(c for c in self._last_part if c.isalnum() or c == "_")
        names = (
            (self._last_part,) if self.loader in ("mace_off", "mace_omol", "mace_anicc") else (short, self._last_part)
        )
        return tuple(cache_folder() / name for name in names if name)

    @property
    def _last_part(self) -> str:
        return self.address.rpartition("/")[2].partition("?")[0]

    @property
    def digest(self) -> str | None:
        """SHA-256 of the file; None if unknown."""
        return DIGESTS.get(self.address)


class PublishedModel(PublishedFile):
    """A model that can be downloaded."""

    what = "model"

    def check(self, path: Path) -> None:
        """Check that what arrived is a complete model.

        Raises:
            EOFError: If it is not.
        """
        if not is_torch_file(path):
            raise EOFError("what arrived is no model")
        try:  # the end may be missing without any sign of it in the server's response
            read_torch_file(path)
        except UserError as error:
            raise EOFError(f"what arrived is no complete model{str(error).removeprefix(str(path))}") from error


class PublishedStructures(PublishedFile):
    """Labeled structures in a file of extended XYZ that can be downloaded."""

    what = "file of structures"
    names_differ = True

    def check(self, path: Path) -> None:
        """Check that what arrived has a comment and as many atoms as it says for every structure.

        Raises:
            EOFError: If it has not.
        """
        with path.open("rb") as lines:
            count = 0
            for line in filter(bytes.strip, lines):
                if not line.strip().isdigit():
                    raise EOFError(f"what arrived is no extended XYZ, at its structure {count}")
                if not all(next(lines, b"").endswith(b"\n") for _ in range(int(line) + 1)):
                    raise EOFError(f"what arrived ends within its structure {count}")
                count += 1
        if not count:
            raise EOFError("what arrived is empty")


def cache_folder() -> Path:
    """Return the folder in which mace-torch keeps what it downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mace"


def published_model(loader: str, name: str | None) -> PublishedModel:
    """Find a model by the name that scripts use.

    Args:
        loader: A key of `ADDRESSES`.
        name: The model's name, None for the default, or an address beginning with ``https:``.

    Raises:
        UserError: If there is no model of this name.
    """
    known = ADDRESSES[loader]
    if name is not None and name.startswith("https:"):
        return PublishedModel(loader, name)
    name = name or DEFAULTS[loader]
    if name not in known:
        raise UserError(f"{loader}: there is no published model '{name}' and no such file; choose {', '.join(known)}.")
    restricted = loader in ("mace_off", "mace_omol") or name in _RESTRICTED
    return PublishedModel(loader, known[name], _ASL if restricted else "")


def replay_file(name: str, progress: Progress = without_progress) -> Path:
    """Return the file of a published set of structures, downloading it if it is not on this machine.

    Args:
        name: A key of `REPLAY_SETS`.
        progress: Shows the download.

    Raises:
        UserError: If there is no set of this name; see also `locate`.
    """
    if name not in REPLAY_SETS:
        raise UserError(f"There are no published structures named '{name}'; choose {', '.join(REPLAY_SETS)}.")
    return locate(PublishedStructures(name, REPLAY_SETS[name]), progress)


def locate(model: PublishedFile, progress: Progress = without_progress) -> Path:
    """Return a published file, downloading it if it is not on this machine.

    A file that only shares the last part of the address is used if its SHA-256 is known to be the published one, and
    structures if they are complete: the names of their files differ.

    Args:
        model: The published model or structures.
        progress: Shows the download.

    Raises:
        UserError: If it cannot be downloaded (the message says which file to put where), or if the downloaded file is
            not the published one.
    """
    target = model.place
    if target.is_file():
        if model.digest not in (None, sha256_of(target)):
            raise UserError(
                f"{target}: this is not the file that was published at {model.address} (SHA-256 {model.digest}); "
                "delete it, to download it again."
            )
        return target
    for place in model.places_of_mace_torch:
        if place.is_file():
            if model.digest is not None and sha256_of(place) == model.digest:
                return place
            if model.names_differ and _is_whole(model, place):
                _LOGGER.info("%s, where mace-torch keeps %s, is used", place, model.address)
                return place
            _LOGGER.warning("%s is left alone: it is not known to be the file at %s", place, model.address)
    if model.license_note:
        _LOGGER.warning(
            "%s is distributed under %s; by using it you accept the license", target.name, model.license_note
        )
    _LOGGER.info("Downloading %s to %s", model.address, target)
    try:
        digest = _download(model, target, progress)
    # urllib's errors are OSErrors; a bad address is a ValueError
    except (OSError, ValueError, EOFError, HTTPException) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())[:200]
        raise UserError(
            f"{model.loader}: the {model.what} is not on this machine and cannot be downloaded ({reason}); download "
            f"{model.address} elsewhere and put the file at {target}."
        ) from error
    known = "as expected" if model.digest else "which nothing is known to compare with"
    _LOGGER.info("Downloaded %s, SHA-256 %s, %s", target, digest, known)
    return target


def _is_whole(model: PublishedFile, path: Path) -> bool:
    try:
        model.check(path)
    except EOFError:
        return False
    return True


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to a less secure scheme, where the file could be replaced by another."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow one redirect."""
        before, after = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if before == "https" != after:
            raise urllib.error.URLError(f"it is redirected from https to {after}, which is not secure")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_address(address: str) -> Any:
    """Open an address; redirects must be as secure as the address itself."""
    return urllib.request.build_opener(_SecureRedirects).open(address, timeout=TIMEOUT)


def _download(model: PublishedFile, target: Path, progress: Progress) -> str:
    """Download a file, completely or not at all, and return its SHA-256.

    Raises:
        OSError: If it cannot be fetched.
        HTTPException: If the server violates HTTP, or its response is shorter than announced.
        EOFError: If the file is cut off, or is something else, for example a web page about it.
        UserError: If its SHA-256 is not the known one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with open_address(model.address) as response, part.open("wb") as stream:
            expected = response.headers.get("Content-Length")
            total = -(-int(expected) // _CHUNK) if expected is not None else None
            for block in progress(iter(lambda: response.read(_CHUNK), b""), f"Downloading {model.loader}", total):
                stream.write(block)
                digest.update(block)
                size += len(block)
                if size > MAX_FILE:
                    raise EOFError(f"it does not end after {size} bytes, more than any published file has")
            stream.flush()
            os.fsync(stream.fileno())
        if expected is not None and int(expected) != size:
            raise EOFError(f"only {size} of {expected} bytes arrived")
        found = digest.hexdigest()
        if model.digest not in (None, found):
            raise UserError(
                f"{model.loader}: the file at {model.address} has SHA-256 {found}, not {model.digest}, which is that "
                "of the published one, and is not kept; if it was published anew, download it and name the file."
            )
        model.check(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return found


def foundation_file(name: str, flag: str = "--foundation_model") -> Path:
    """Return the file that ``--foundation_model`` refers to: a published model or any model file.

    Args:
        name: The name of either.
        flag: Where it was given, for messages.

    Raises:
        UserError: If it is neither, or the model cannot be downloaded.
    """
    if name in TRAINING_NAMES:
        return locate(published_model(*TRAINING_NAMES[name]))
    if name.startswith("https:"):
        return locate(published_model("mace_mp", name))
    if name.startswith("polar-1"):
        raise UserError(f"{flag}={name}: models with long-range electrostatics do not exist here.")
    if not Path(name).is_file():
        raise UserError(
            f"{flag}={name}: there is no such file and no published model of this name; name a file or "
            f"one of {', '.join(TRAINING_NAMES)}."
        )
    return Path(name)
