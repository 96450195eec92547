"""The model file: weights and plan in one safetensors file that holds numbers and JSON, never code.

The only metadata entry, `METADATA_KEY`, is a JSON document::

    {"version": 1, "plan": {...}, "units": {...}, "metadata": {...}}

It is a single entry because safetensors writes several ones in random order, and equal models are to give equal bytes.
"""

from __future__ import annotations

import json
import math
import platform
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
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
from mace.files.durable import write_durably
from mace.model.mace import MACE
from mace.model.plan import ModelPlan, first_problem
from mace.properties import ASCII, COMPARED, PROPERTIES

FORMAT_VERSION = 1
"""Version of the files written; a change that older programs would misread raises it."""

METADATA_KEY = "mace"
"""The entry of the safetensors metadata that holds the document."""

UNITS = {"length": "Angstrom", **{name: PROPERTIES[name].unit.translate(ASCII) for name in COMPARED}}
"""What the numbers of every model file mean."""

Document = dict[str, Any]
Upgrade = Callable[[Document, dict[str, Tensor]], tuple[Document, dict[str, Tensor]]]

UPGRADES: dict[int, Upgrade] = {}
"""From a version to the function that turns its document and weights into those of the next version."""

PRECISIONS = (torch.float32, torch.float64)
"""Precisions a model may be stored in."""

LARGEST_HEADER = 1 << 22
"""Bytes of plan, metadata and names of weights; those of a model are some ten thousand."""

MOST_VALUES, MOST_LEVELS = 150_000, 50
"""Values in a document, and lists and tables in each other; most values are reference energies of many heads."""

_TYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Types of safetensors by name; the others are all called integers in messages, which no weights are."""

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
    check_finite(weights, path, "the model is not saved; go back to weights from before training diverged")
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
    with _opened(path) as stream:
        document = _document(stream, path)
        shapes = {name: _without_values(stream.get_slice(name)) for name in stream.keys()}
        # nothing is allocated before plan and weights, of which there are no more than the file has bytes, agree
        upgraded, described = _upgraded(deepcopy(document), shapes, path)
        plan, metadata = _parsed(ModelPlan, upgraded, "plan", path), _parsed(ModelMetadata, upgraded, "metadata", path)
        stored_dtype = _precision(described, path)
        if problem := misfit(plan, {name: tuple(tensor.shape) for name, tensor in described.items()}):
            raise UserError(f"{path}: the weights do not fit the plan in the same file: {problem}.")
        # copies, so that nothing refers to a file that may change later
        _, weights = _upgraded(document, {name: stream.get_tensor(name).clone() for name in stream.keys()}, path)
    check_finite(weights, path, "the file is damaged or its training diverged; use another one")
    model = MACE(plan, stored_dtype)
    model.load_state_dict(weights)
    return LoadedModel(carry_to(model, device, dtype or stored_dtype), metadata, stored_dtype, plan.head_names)


def misfit(plan: ModelPlan, found: Mapping[str, Sequence[int]]) -> str | None:
    """Compare the shapes of weights with those that a plan says, without taking memory for any of them.

    Args:
        plan: The plan.
        found: Shapes by the names of `mace.model.mace.MACE` parameters.

    Returns:
        What does not fit, in words; None if all do.
    """
    if max(plan.n_layers, plan.n_readout_heads, len(plan.radial_mlp), len(plan.conditions)) > len(found):
        return f"it has {len(found)} weights for {plan.n_layers} layers and {plan.n_readout_heads} heads"
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in MACE(plan, torch.float32).named_parameters()}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has the unknown {_listed(unknown)}"] if unknown else []
        return f"it {' and '.join(parts)}"
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            return f"'{name}' has the shape {list(found[name])[:6]}, but the plan says {list(shape)}"
    return None


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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, after a look at the length of its header, all of which is read at once."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if LARGEST_HEADER < length <= path.stat().st_size:
            raise SafetensorError(f"its header has {length} bytes")
        with safe_open(path, framework="pt", device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: this is no complete model file ({str(error)[:200]}); it was cut off on the way or is something "
            "else."
        ) from error


def _without_values(stored: Any) -> Tensor:
    """Describe a weight that has not been read."""
    return torch.empty(stored.get_shape(), dtype=_TYPES.get(stored.get_dtype(), torch.int64), device="meta")


def _document(stream: Any, path: Path) -> Document:
    """Read the document of an open file."""
    text = (stream.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path}: this is a safetensors file, but no model written by mace_run_train.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the description of the model is not JSON ({error}); the file is damaged.") from error
    if not _is_bounded(document):
        raise UserError(f"{path}: the description of the model is larger or deeper than that of any; it is refused.")
    if not isinstance(document, dict) or type(document.get("version")) is not int or abs(document["version"]) > 10**6:
        raise UserError(f"{path}: the description of the model has no version; the file is damaged.")
    return document


def _is_bounded(document: Any) -> bool:
    """Tell whether nothing that looks at every value of a document, level by level, will run out of anything."""
    level, n_values = [document], 0
    for _ in range(MOST_LEVELS):
        n_values += len(level)
        parts = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list))
        ]
        level = [value for values in parts for value in values]
        if not level or n_values + len(level) > MOST_VALUES:
            break
    return not level and n_values <= MOST_VALUES


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
        raise UserError(f"{path}: in the model file {first_problem(error, key)}.") from error


def _precision(weights: Mapping[str, Tensor], path: Path) -> torch.dtype:
    found = {tensor.dtype for tensor in weights.values()}
    if len(found) != 1 or not found.issubset(PRECISIONS):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found)) or "no weights"
        raise UserError(f"{path}: the weights must all be float32 or all float64, but the file has {names}.")
    return found.pop()


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def check_finite(weights: Mapping[str, Tensor], path: Path, way_out: str) -> None:
    """Make sure that weights are numbers.

    Raises:
        UserError: If some are not; the message ends with the way out.
    """
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{path}: the weights {_listed(bad)} are NaN or infinite; {way_out}.")
