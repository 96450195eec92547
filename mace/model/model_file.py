"""The model file: weights and plan in one safetensors file that holds numbers and JSON, never code.

The only metadata entry, `METADATA_KEY`, is a JSON document::

    {"version": 1, "plan": {...}, "units": {...}, "metadata": {...}}

It is a single entry because safetensors writes several in random order, and equal models should give equal bytes.
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
from mace.processes.devices import widest
from mace.properties import ASCII, COMPARED, PROPERTIES

FORMAT_VERSION = 1
"""Version of the format written; increased by any change that older programs would misread."""

METADATA_KEY = "mace"
"""The entry of the safetensors metadata that holds the document."""

UNITS = {"length": "Angstrom", **{name: PROPERTIES[name].unit.translate(ASCII) for name in COMPARED}}
"""Units of the numbers in every model file."""

Document = dict[str, Any]
Upgrade = Callable[[Document, dict[str, Tensor]], tuple[Document, dict[str, Tensor]]]

UPGRADES: dict[int, Upgrade] = {}
"""Maps each version to the function that converts its document and weights to the next version."""

PRECISIONS = (torch.float32, torch.float64)
"""Precisions in which a model may be stored."""

LARGEST_HEADER = 1 << 22
"""Limit on the bytes of plan, metadata and names of weights; real models have some ten thousand."""

MOST_VALUES, MOST_LEVELS = 150_000, 50
"""Limits on the number of values and the nesting in a document; most values are reference energies of many heads."""

_TYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Types of safetensors by name; all others are reported as integers in messages, as no weights have them."""

_TORCH_SAVE_MAGIC = (b"PK\x03\x04", b"\x80")
_PROGRAMS = ("torch", "numpy", "ase", "vesin", "safetensors")


def _versions() -> dict[str, str]:
    """Collect the versions of all programs that a result may depend on."""
    found = {"mace": mace.__version__, "python": platform.python_version()}
    for program in _PROGRAMS:
        try:
            found[program] = version(program)
        except PackageNotFoundError:  # a program on the path that was not installed
            found[program] = "unknown"
    return found


class ModelMetadata(BaseModel):
    """Where a model comes from; none of this affects its predictions.

    Attributes:
        name: Name of the run.
        created: Time of creation, ISO 8601 in UTC.
        versions: Versions of this program, Python and the libraries that made the model.
        settings: The settings of the run.
        seed: Seed of the run.
        data_hash: Fingerprint of the training data.
        epoch: Epoch of the weights, counted from zero.
        stage: Stage of the training, ``"one"`` or ``"two"``.
        metrics: Errors by name of the data set, in eV and Angstrom, for example ``{"valid": {"rmse_f": 0.02}}``.
        shortest_distances: Shortest distance in the training data in Angstrom, by pair of elements such as ``H-O``;
            a pair that is missing was never within the cutoff. Empty if unknown.
        comment: Any remark.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = None
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
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
    """Content of a model file.

    Attributes:
        model: The model, ready to predict or to be trained further.
        metadata: Where it comes from.
        stored_dtype: Precision of the file, in which the model was trained.
        heads: Names of the heads of the model; a file of another program may name even a single head.
    """

    model: MACE
    metadata: ModelMetadata
    stored_dtype: torch.dtype
    heads: tuple[str, ...]


def save_model(path: str | Path, model: MACE, metadata: ModelMetadata | None = None) -> Path:
    """Write a model atomically: a reader sees either the old file or the complete new one.

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
    # validate again, because `model_copy` accepts anything, including NaN
    checked = ModelMetadata.model_validate((metadata or ModelMetadata()).model_dump())
    document = {
        "version": FORMAT_VERSION,
        "plan": model.plan.model_dump(mode="json"),
        "units": UNITS,
        "metadata": checked.model_dump(mode="json"),
    }
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    try:
        write_durably(path, safetensors_bytes(weights, {METADATA_KEY: text}))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: the model cannot be written ({reason}); check the folder and the disk.") from error
    return path


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Read a model.

    Args:
        path: A file written by `save_model`, of this or an older version of the format.
        device: Device to load the model to; it must exist.
        dtype: Precision of the model; None for the one it was stored in.

    Returns:
        The model and its metadata.

    Raises:
        UserError: If the file is missing, damaged, not a model file, or written by a newer program.
    """
    path = Path(path)
    _check_kind(path)
    with _opened(path) as stream:
        document = _document(stream, path)
        names = list(stream.keys())
        stored = {name: stream.get_slice(name) for name in names}
        shapes = {
            name: torch.empty(values.get_shape(), dtype=_TYPES.get(values.get_dtype(), torch.int64), device="meta")
            for name, values in stored.items()
        }
        # nothing is allocated until the plan agrees with the weights, which cannot be larger than the file
        upgraded, described = _upgraded(deepcopy(document), shapes, path)
        plan, metadata = _parsed(ModelPlan, upgraded, "plan", path), _parsed(ModelMetadata, upgraded, "metadata", path)
        stored_dtype = _precision(described, path)
        if problem := misfit(plan, {name: tuple(tensor.shape) for name, tensor in described.items()}):
            raise UserError(f"{path}: the weights do not fit the plan in the same file: {problem}.")
        # copies, so that nothing refers to a file that may change later
        _, weights = _upgraded(document, {name: stream.get_tensor(name).clone() for name in names}, path)
    check_finite(weights, path, "the file is damaged or its training diverged; use another one")
    model = MACE(plan, stored_dtype)
    model.load_state_dict(weights)
    return LoadedModel(carry_to(model, device, dtype or stored_dtype), metadata, stored_dtype, plan.head_names)


def misfit(plan: ModelPlan, found: Mapping[str, Sequence[int]]) -> str | None:
    """Compare the shapes of weights with those required by a plan, without allocating them.

    Args:
        plan: The plan.
        found: Shapes by the names of `mace.model.mace.MACE` parameters.

    Returns:
        A description of what does not fit; None if everything does.
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
    """Move a model to a device and convert it to a precision, in place.

    Raises:
        UserError: If the device does not support the precision.
    """
    device = torch.device(device)
    if dtype == torch.float64 and widest(device) != torch.float64:
        raise UserError(f"The device {device} has no float64; ask for default_dtype float32 or for the device cpu.")
    return model.to_precision(dtype).move(device)


def _check_kind(path: Path) -> None:
    """Raise an error unless a path is a readable file, with advice for files often mistaken for models."""
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
    # a safetensors file begins with the length of its header, whose lowest byte may equal the first of a pickle
    if start.startswith(_TORCH_SAVE_MAGIC) and start[8:] != b"{":
        raise UserError(
            f"{path}: this file was written by torch.save, as mace-torch does; convert it with mace_import_model "
            "first, or name a .model file made by mace_run_train."
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after checking the length of its header, which is read in one piece."""
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


def _document(stream: Any, path: Path) -> Document:
    """Read and check the JSON document of an open file."""
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
    """Return whether a document is small and shallow enough to be processed safely; checked level by level."""
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
    """Convert an older file, version by version, to the current one."""
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
    """Check that all weights are finite.

    Raises:
        UserError: If some are not; the message ends with `way_out`.
    """
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{path}: the weights {_listed(bad)} are NaN or infinite; {way_out}.")
