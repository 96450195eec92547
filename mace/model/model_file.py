"""The model file: weights and plan in one safetensors file that holds numbers and JSON, never code.

The only metadata entry, `METADATA_KEY`, is a JSON document::

    {"version": 1, "plan": {...}, "units": {...}, "metadata": {...}}

It is a single entry because safetensors writes several ones in random order, and equal models are to give equal bytes.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

import mace
from mace.errors import UserError
from mace.model.durable_file import write_durably
from mace.model.mace import MACE
from mace.model.plan import ModelPlan

FORMAT_VERSION = 1
"""Version of the files written; a change that older programs would misread raises it."""

METADATA_KEY = "mace"
"""The entry of the safetensors metadata that holds the document."""

UNITS = {
    "energy": "eV",
    "length": "Angstrom",
    "forces": "eV/Angstrom",
    "stress": "eV/Angstrom^3",
    "dipole": "e*Angstrom",
}
"""What the numbers of every model file mean."""

Document = dict[str, Any]
Upgrade = Callable[[Document, dict[str, Tensor]], tuple[Document, dict[str, Tensor]]]

UPGRADES: dict[int, Upgrade] = {}
"""From a version to the function that turns its document and weights into those of the next version."""

PRECISIONS = (torch.float32, torch.float64)
"""Precisions a model may be stored in."""

_TORCH_SAVE_MAGIC = (b"PK\x03\x04", b"\x80")
_PROGRAMS = ("torch", "numpy", "ase", "vesin", "safetensors")


def _versions() -> dict[str, str]:
    """Collect the versions of everything that a result may depend on."""
    found = {"mace": mace.__version__, "python": platform.python_version()}
    for program in _PROGRAMS:
        try:
            found[program] = version(program)
        except PackageNotFoundError:  # a program put on the path without having been installed
            found[program] = "unknown"
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class ModelMetadata(BaseModel):
    """Where a model comes from; nothing of it changes what the model predicts.

    Attributes:
        name: Name of the run.
        created: When, ISO 8601 in UTC.
        versions: Versions of this program, Python and the libraries that made the model.
        settings: The settings of the run.
        seed: Seed of the run.
        data_hash: Fingerprint of the training data.
        epoch: Epoch the weights are from, counted from zero.
        stage: ``"one"`` or ``"two"`` of the training.
        metrics: Errors by the name of the set, in eV and Angstrom, for example ``{"valid": {"rmse_f": 0.02}}``.
        shortest_distances: Shortest distance in the training data in Angstrom, by pair of elements such as ``H-O``;
            a pair that is missing was never within the cutoff. Empty where it is not known.
        comment: Anything worth telling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = None
    created: str = Field(default_factory=_now)
    versions: dict[str, str] = Field(default_factory=_versions)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | None = None
    data_hash: str | None = None
    epoch: int | None = None
    stage: str | None = None
    metrics: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    shortest_distances: dict[str, float] = Field(default_factory=dict)
    comment: str | None = None

    @field_validator("settings", "metrics", mode="after")
    @classmethod
    def _only_json_numbers(cls, value: Any) -> Any:
        """Replace NaN and infinity, which JSON lacks, by null."""
        return _without_nonfinite(value)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class LoadedModel:
    """What a model file holds.

    Attributes:
        model: The model, ready to predict or to be trained further.
        metadata: Where it comes from.
        stored_dtype: Precision of the file, in which the model was trained.
        heads: Names of the heads of the model; a file of another program may call a single one something.
    """

    model: MACE
    metadata: ModelMetadata
    stored_dtype: torch.dtype
    heads: tuple[str, ...]


def save_model(path: str | Path, model: MACE, metadata: ModelMetadata | None = None) -> Path:
    """Write a model; a reader sees the old file or the complete new one, never a part.

    Equal models and metadata give equal bytes on every device.

    Args:
        path: The file, usually ``<name>.model``; its folder is created.
        model: The model; it is not changed.
        metadata: Where it comes from.

    Returns:
        The path.

    Raises:
        UserError: If a weight is NaN or infinite, or the file cannot be written.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
    _check_finite(weights, path, "the model is not saved; go back to weights from before training diverged")
    if model.dtype not in PRECISIONS:
        raise UserError(f"{path}: a model in {model.dtype} cannot be saved; carry it to float32 or float64 first.")
    document = {
        "version": FORMAT_VERSION,
        "plan": model.plan.model_dump(mode="json"),
        "units": UNITS,
        "metadata": _checked(metadata or ModelMetadata()).model_dump(mode="json"),
    }
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    _write(path, safetensors_bytes(weights, {METADATA_KEY: text}))
    return path


def _checked(metadata: ModelMetadata) -> ModelMetadata:
    """Check once more: `model_copy` lets anything in, NaN too."""
    return ModelMetadata.model_validate(metadata.model_dump())


def _write(path: Path, content: bytes) -> None:
    """Write the file and make sure it is on the disk."""
    try:
        write_durably(path, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: the model cannot be written ({reason}); check the folder and the disk.") from error


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Read a model.

    Args:
        path: A file written by `save_model`, of this or an older version of the format.
        device: Where the model is to live; it must exist.
        dtype: Precision of the model; without it, the one it was stored in.

    Returns:
        The model and its metadata.

    Raises:
        UserError: If the file is missing, is something else, is damaged, or was written by a newer program.
    """
    path = Path(path)
    _check_kind(path)
    document, weights = _upgraded(*_read(path), path)
    plan, metadata = _parsed(ModelPlan, document, "plan", path), _parsed(ModelMetadata, document, "metadata", path)
    stored_dtype = _precision(weights, path)
    model = MACE(plan, stored_dtype)
    _check_names_and_shapes(dict(model.named_parameters()), weights, path)
    _check_finite(weights, path, "the file is damaged or its training diverged; use another one")
    model.load_state_dict(weights)
    return LoadedModel(carry_to(model, device, dtype or stored_dtype), metadata, stored_dtype, plan.head_names)


def carry_to(model: MACE, device: str | torch.device, dtype: torch.dtype) -> MACE:
    """Carry a model to a device and a precision, in place.

    Raises:
        UserError: If the device has no such precision.
    """
    device = torch.device(device)
    if device.type == "mps":
        if dtype == torch.float64:
            raise UserError("The device mps has no float64; ask for default_dtype float32 or for the device cpu.")
        model.reference_energies = model.reference_energies.to(torch.float32)
    return model.to_precision(dtype).to(device)


def _check_kind(path: Path) -> None:
    """Refuse what is no file, and name the kinds of file that are mistaken for a model most often."""
    if path.is_dir():
        raise UserError(f"{path}: this is a directory; name the model file in it.")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except FileNotFoundError as error:
        plain = path.with_name(path.name.replace("_compiled.model", ".model"))
        hint = f"; models here are not compiled, name {plain}" if plain != path else f", seen from {Path.cwd()}"
        raise UserError(f"{path}: there is no such model file{hint}.") from error
    except OSError as error:
        raise UserError(f"{path}: the model file cannot be opened ({error.strerror}).") from error
    if not start:
        raise UserError(f"{path}: the model file is empty; copy or train it again.")
    # a safetensors file begins with the length of its header, whose lowest byte may be that of a pickle
    if start.startswith(_TORCH_SAVE_MAGIC) and start[8:] != b"{":
        raise UserError(
            f"{path}: this file was written by torch.save, as mace-torch does; convert it with mace_import_model "
            "first, or name a .model file made by mace_run_train."
        )


def _read(path: Path) -> tuple[Document, dict[str, Tensor]]:
    """Read the document and the weights as they stand in the file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY)
            # copies, so that nothing refers to a file that may change later
            weights = {name: stream.get_tensor(name).clone() for name in stream.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: this is no complete model file ({error}); it was cut off on the way or is something else."
        ) from error
    if text is None:
        raise UserError(f"{path}: this is a safetensors file, but no model written by mace_run_train.")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: the description of the model is not JSON ({error}); the file is damaged.") from error
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise UserError(f"{path}: the description of the model has no version; the file is damaged.")
    return document, weights


def _upgraded(document: Document, weights: dict[str, Tensor], path: Path) -> tuple[Document, dict[str, Tensor]]:
    """Bring an older file step by step to the present version."""
    while document["version"] != FORMAT_VERSION:
        found = document["version"]
        if found > FORMAT_VERSION:
            raise UserError(
                f"{path}: this model file has format version {found}, but mace-train {mace.__version__} reads versions "
                f"up to {FORMAT_VERSION}; install a newer mace-train."
            )
        if found not in UPGRADES:
            raise UserError(f"{path}: format version {found} of model files never existed; the file is damaged.")
        document, weights = UPGRADES[found](document, weights)
    return document, weights


def _parsed(kind: type[Any], document: Document, key: str, path: Path) -> Any:
    try:
        return kind.model_validate(document.get(key))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (key, *first["loc"]))
        raise UserError(f"{path}: '{place}' in the model file is not valid ({first['msg']}).") from error


def _precision(weights: Mapping[str, Tensor], path: Path) -> torch.dtype:
    found = {tensor.dtype for tensor in weights.values()}
    if len(found) != 1 or not found.issubset(PRECISIONS):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found)) or "no weights"
        raise UserError(f"{path}: the weights must all be float32 or all float64, but the file has {names}.")
    return found.pop()


def _check_names_and_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has the unknown {_listed(unknown)}"] if unknown else []
        raise UserError(f"{path}: the weights do not fit the plan in the same file: it {' and '.join(parts)}.")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise UserError(
                f"{path}: the weight '{name}' has the shape {list(found[name].shape)}, but the plan in the same file "
                f"says {list(tensor.shape)}."
            )


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _check_finite(weights: Mapping[str, Tensor], path: Path, way_out: str) -> None:
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{path}: the weights {_listed(bad)} are NaN or infinite; {way_out}.")
