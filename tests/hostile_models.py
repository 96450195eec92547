"""Model files and checkpoints of this program that are wrong or meant to harm, and what must be said of each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import hostile_files
import original_files
import torch
from safetensors.torch import save

from mace.model.model_file import METADATA_KEY
from mace.training import checkpoints

Files = dict[str, tuple[Callable[[], bytes], str]]

PLAN = original_files.PLAN.model_copy(update={"pair_repulsion": True})
WEIGHTS = {name: value.detach() for name, value in original_files.model(PLAN).named_parameters()}
DOCUMENT: dict[str, Any] = {"version": 1, "plan": PLAN.model_dump(mode="json"), "units": {}, "metadata": {}}
NAN, INFINITE = float("nan"), float("inf")


def model_file(text: str | None = None, **changes: Any) -> bytes:
    """Return a model file with another document, or with other entries in it."""
    return save(WEIGHTS, {METADATA_KEY: json.dumps({**DOCUMENT, **changes}) if text is None else text})


def _with_plan(**changes: Any) -> bytes:
    return model_file(plan={**DOCUMENT["plan"], **changes})


def _of_weights(weights: dict[str, torch.Tensor]) -> bytes:
    return save(weights, {METADATA_KEY: json.dumps(DOCUMENT)})


def _with_weight(name: str, weight: torch.Tensor) -> bytes:
    return _of_weights({**WEIGHTS, name: weight})


def _with_header(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _of_one_tensor(shape: list[int], end: int) -> bytes:
    """Return a file of one tensor that may be described badly."""
    header = {
        "__metadata__": {METADATA_KEY: json.dumps(DOCUMENT)},
        "embedding": {"dtype": "F64", "shape": shape, "data_offsets": [0, end]},
    }
    return _with_header(json.dumps(header).encode(), data=bytes(min(end, 1 << 12)))


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _condition(number: int, width: int) -> dict[str, Any]:
    return {"name": f"c{number}", "kind": "categorical", "per": "atom", "width": width, "n_classes": 1_000_000}


def _heads(count: int) -> dict[str, Any]:
    heads = [{"name": str(i), "reference_energies": [0.0] * 3} for i in range(count)]
    return {"heads": heads, "reference_energies": [], "scale": 1.0, "shift": 0.0}


def _bad_numbers() -> Iterator[tuple[str, dict[str, Any], str]]:
    """List changes of a plan, each with the field that is named."""
    bad = {"nan": NAN, "infinite": INFINITE, "huge": 1e300, "text": "far", "list": [1.0]}
    for word, value in (bad | {"a-million": 1e6, "negative": -4.0, "zero": 0}).items():
        yield f"cutoff-{word}", {"r_max": value}, "plan.r_max' is not valid"
    for word, value in (bad | {"zero": 0.0, "negative": -1}).items():
        yield f"neighbors-{word}", {"avg_num_neighbors": value}, "plan.avg_num_neighbors' is not valid"
    for word, value in bad.items():
        yield f"energy-{word}", {"reference_energies": [0.0, 0.0, value]}, "plan.reference_energies.2' is not valid"
        yield f"scale-{word}", {"scale": value}, "plan.scale' is not valid"
        yield f"shift-{word}", {"shift": value}, "plan.shift' is not valid"
    for field in ("n_channels", "readout_channels", "readout_vectors", "num_radial_basis", "num_cutoff_basis", "l_max"):
        yield f"{field}-huge", {field: 10**12}, f"plan.{field}' is not valid"
    yield "elements-zero", {"atomic_numbers": [0, 6, 8]}, "plan.atomic_numbers.0' is not valid"
    yield "elements-huge", {"atomic_numbers": [1, 6, 10**9]}, "plan.atomic_numbers.2' is not valid"
    yield "messages-wide", {"message_channels": [10**12, 2]}, "plan.message_channels.0' is not valid"
    yield "conditions-huge", {"conditions": [_condition(0, 10**12)]}, "plan.conditions.0.width' is not valid"
    yield "word-unknown", {"model": "MACELES"}, "plan.model' is not valid"


def _bad_plans() -> Iterator[tuple[str, dict[str, Any], str]]:
    """List changes that ask for too much or contradict each other, each with what is said."""
    kinds = DOCUMENT["plan"]["interactions"]
    yield "energies-too-many", {"reference_energies": [0.0] * 100_000}, "at most 118 items"
    yield "energies-too-few", {"reference_energies": [0.0] * 2}, "one reference energy per element is needed"
    yield "elements-falling", {"atomic_numbers": [8, 6, 1]}, "atomic numbers must rise"
    yield "elements-too-many", {"atomic_numbers": list(range(1, 140_000))}, "atomic_numbers.118' is not valid"
    yield "elements-far-too-many", {"atomic_numbers": list(range(1, 400_000))}, "larger or deeper than that of any"
    yield "elements-other", {"atomic_numbers": [1, 6], "reference_energies": [0, 0]}, r"has the shape \[3, 2\], but"
    yield "channels-of-terabytes", {"n_channels": 100_000}, "do not fit the plan .* the plan says"
    yield "network-of-terabytes", {"radial_mlp": [100_000] * 8}, "do not fit the plan .* it lacks"
    yield "network-too-deep", {"radial_mlp": [1] * 1_000}, "plan.radial_mlp' is not valid .*at most 100"
    yield "layers-too-many", {"interactions": kinds * 500}, "plan.interactions' is not valid .*at most 100"
    yield "layers-claimed", {"interactions": kinds * 45, "correlation": [2] * 90}, "for 90 layers"
    yield "heads-claimed", _heads(1000), "for 2 layers and 1000 heads"
    yield "heads-too-many", _heads(10_000), "plan.heads' is not valid .*at most 1000"
    yield "correlation-and-degrees", {"correlation": [4, 4], "l_max": 4, "hidden_l": [0, 1, 2, 3, 4]}, "do not fit"
    yield "correlation-huge", {"correlation": [10**9, 2]}, "correlation orders lie between 1 and 4"
    yield "degrees-too-many", {"hidden_l": list(range(100_000))}, "plan.hidden_l"
    yield "conditions-too-many", {"conditions": [_condition(i, 8) for i in range(10_000)]}, "plan.conditions' is not"
    yield "conditions-of-terabytes", {"conditions": [_condition(i, 10**6) for i in range(6)]}, "do not fit the plan"
    yield "plan-with-escapes", {"\x1b[2J": 1}, "Extra inputs are not permitted"
    yield "plan-of-many-keys", {f"k{i}": 0 for i in range(100_000)}, "Extra inputs are not permitted"


_NOT_COMPLETE, _NOT_JSON = "this is no complete model file", "the description of the model is not JSON"

MODELS: Files = (
    {
        name: (lambda changes=changes: _with_plan(**changes), said)  # type: ignore[misc]
        for name, changes, said in (*_bad_numbers(), *_bad_plans())
    }
    | {
        "json-nested": (lambda: model_file('{"version": 1, "plan": ' + "[" * 1_000_000), _NOT_JSON),
        "json-nested-tables": (lambda: model_file('{"a":' * 300_000), _NOT_JSON),
        "json-half": (lambda: model_file('{"version": 1'), _NOT_JSON),
        "json-none": (lambda: model_file(""), _NOT_JSON),
        "settings-nested": (lambda: model_file(metadata={"settings": {"a": _nested(900)}}), "larger or deeper"),
        "metadata-wrong": (lambda: model_file(metadata={"seed": "x"}), "'metadata.seed' is not valid"),
        "metadata-of-many-errors": (
            lambda: model_file(metadata={"metrics": {f"m{i}": {"x": "y"} for i in range(70_000)}}),
            "'metadata.metrics.m0.x' is not valid",
        ),
        "version-of-many-digits": (lambda: model_file('{"version": 1' + "0" * 5000 + "}"), _NOT_JSON),
        "version-huge": (lambda: model_file(version=10**4000), "has no version"),
        "version-text": (lambda: model_file(version="1"), "has no version"),
        "version-newer": (lambda: model_file(version=2), "install a newer mace-train"),
        "version-negative": (lambda: model_file(version=-1), "never existed"),
        "document-a-list": (lambda: model_file("[1]"), "has no version"),
        "plan-a-list": (lambda: model_file(plan=[1, 2]), "'plan' is not valid"),
        "plan-missing": (lambda: model_file(plan=None), "'plan' is not valid"),
        "header-of-100-megabytes": (lambda: _with_header(b" " * 99_000_000), "its header has 99000000 bytes"),
        "header-beyond-the-end": (lambda: _with_header(b"{}", 1 << 62), _NOT_COMPLETE),
        "header-empty": (lambda: _with_header(b""), _NOT_COMPLETE),
        "header-no-json": (lambda: _with_header(b"{" * 1000), _NOT_COMPLETE),
        "header-nested": (lambda: _with_header(b'{"a":' * 100_000), _NOT_COMPLETE),
        "tensor-beyond-the-end": (lambda: _of_one_tensor([3, 1 << 30], 3 << 33), _NOT_COMPLETE),
        "tensor-with-a-huge-shape": (lambda: _of_one_tensor([1 << 62, 4], 1 << 12), _NOT_COMPLETE),
        "tensor-too-short": (lambda: _of_one_tensor([3, 3], 16), _NOT_COMPLETE),
        "weights-cut": (lambda: model_file()[:-1], _NOT_COMPLETE),
        "weights-longer": (lambda: model_file() + bytes(8), _NOT_COMPLETE),
        "weights-none": (lambda: _of_weights({}), "file has no weights"),
        "weights-missing": (lambda: _of_weights({"embedding": WEIGHTS["embedding"]}), "do not fit the plan"),
        "weights-many": (
            lambda: _of_weights(WEIGHTS | {f"w{i}": torch.zeros(1).double() for i in range(20_000)}),
            "unknown 'w0'.*19997 more",
        ),
        "weights-nan": (
            lambda: _with_weight("embedding", torch.full((3, 2), NAN).double()),
            "'embedding' are NaN or inf",
        ),
        "weights-integers": (lambda: _of_weights({n: w.long() for n, w in WEIGHTS.items()}), "the file has int64"),
        "weights-half": (lambda: _of_weights({n: w.half() for n, w in WEIGHTS.items()}), "the file has float16"),
        "weights-of-two-precisions": (lambda: _with_weight("embedding", torch.zeros(3, 2)), "has float32, float64"),
        "weights-wide": (
            lambda: _with_weight("embedding", torch.zeros(3, 3).double()),
            r"shape \[3, 3\], but the plan",
        ),
        "weights-with-a-long-name": (lambda: _with_weight("x" * 100_000, torch.zeros(1).double()), "unknown 'x{60}'"),
        "nothing": (lambda: b"", "the model file is empty"),
        "noise": (lambda: bytes(range(1, 256)) * 20, _NOT_COMPLETE),
        "other-safetensors": (lambda: save({"x": torch.zeros(2)}), "no model written by mace_run_train"),
    }
)


def checkpoint(**changes: Any) -> bytes:
    """Return best weights with other content, and the checksum of its bytes; an ellipsis takes something away."""
    content = {"kind": "weights", "plan": PLAN.model_dump_json(), "weights": WEIGHTS, "average": None, **changes}
    return checkpoints.encode({name: value for name, value in content.items() if value is not ...})


def _checkpoint_plan(**changes: Any) -> bytes:
    return checkpoint(plan=json.dumps({**DOCUMENT["plan"], **changes}))


def _checkpoint_weight(name: str, weight: Any) -> bytes:
    return checkpoint(weights={**WEIGHTS, name: weight})


def _sealed(content: Any) -> bytes:
    """Return anything that torch saves, with the checksum of a checkpoint."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return _signed(stream.getvalue())


def _signed(payload: bytes) -> bytes:
    return payload + checkpoints._MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n"


class _Command:
    """Runs a command if anybody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 3",)


_ALIEN, _DAMAGED = "is no checkpoint of a run", "the checkpoint cannot be read; it is damaged or no checkpoint"
_MISFIT = "do not fit the plan beside them"

_MOVED = {"base": {"embedding": WEIGHTS["embedding"]}, "scale": 1.0}

CHECKPOINTS: Files = {
    "plan-missing": (lambda: checkpoint(plan=...), _ALIEN),
    "plan-a-number": (lambda: checkpoint(plan=7), f"'plan' is not valid|{_ALIEN}"),
    "plan-no-json": (lambda: checkpoint(plan="{"), "'plan' is not valid .Invalid JSON"),
    "plan-nested": (lambda: checkpoint(plan="[" * 100_000), "'plan' is not valid .Invalid JSON"),
    "plan-a-list": (lambda: checkpoint(plan="[]"), "'plan' is not valid"),
    "plan-with-a-huge-cutoff": (lambda: _checkpoint_plan(r_max=1e6), "'plan.r_max' is not valid"),
    "plan-with-nan": (lambda: _checkpoint_plan(scale=NAN), "'plan.scale' is not valid"),
    "plan-of-terabytes": (lambda: _checkpoint_plan(n_channels=100_000), _MISFIT),
    "plan-of-many-heads": (lambda: _checkpoint_plan(**_heads(1000)), _MISFIT),
    "plan-of-high-order": (lambda: _checkpoint_plan(correlation=[4, 4], l_max=4), _MISFIT),
    "weights-missing": (lambda: checkpoint(weights=...), _ALIEN),
    "weights-a-list": (lambda: checkpoint(weights=[1, 2]), _ALIEN),
    "weights-numbers": (lambda: checkpoint(weights=dict.fromkeys(WEIGHTS, 1.0)), _ALIEN),
    "weights-nothing": (lambda: checkpoint(weights={}), _MISFIT),
    "weights-more": (lambda: _checkpoint_weight("x", torch.zeros(1)), "has the unknown 'x'"),
    "weights-wide": (lambda: _checkpoint_weight("embedding", torch.zeros(3, 9)), r"has the shape \[3, 9\]"),
    "weights-of-terabytes": (
        lambda: _checkpoint_weight("embedding", torch.zeros(1).expand(3, 1 << 40)),
        r"has the shape \[3, 1099511627776\]",
    ),
    "weights-nan": (
        lambda: _checkpoint_weight("embedding", torch.full((3, 2), NAN)),
        "'embedding' are NaN or infinite",
    ),
    "weights-by-number": (lambda: checkpoint(weights=dict(enumerate(WEIGHTS.values()))), f"{_MISFIT}|{_ALIEN}"),
    "average-short": (lambda: checkpoint(average={"averages": [torch.zeros(1)]}), _ALIEN),
    "average-of-others": (lambda: checkpoint(average={"averages": [torch.zeros(1)] * len(WEIGHTS)}), _MISFIT),
    "corrections-of-others": (
        lambda: checkpoint(average={"averages": [torch.zeros(3, 1), torch.zeros(1, 1 << 20)]}, moved=_MOVED),
        f"{_ALIEN}.*do not have its shape",
    ),
    "corrections-of-terabytes": (
        lambda: checkpoint(average={"averages": [torch.zeros(1).expand(3, 1 << 40)] * 2}, moved=_MOVED),
        f"{_ALIEN}.*do not have its shape",
    ),
    "corrections-without-averages": (lambda: checkpoint(average={"averages": []}, moved=_MOVED), _ALIEN),
    "corrections-a-list": (lambda: checkpoint(average={"averages": []}, moved=[1]), _ALIEN),
    "average-a-number": (lambda: checkpoint(average=3), _ALIEN),
    "format-text": (lambda: _sealed({"format": "2"}), _ALIEN),
    "format-later": (lambda: _sealed({"format": 10**9}), "written by a later version"),
    "format-negative": (lambda: _sealed({"format": -5}), _ALIEN),
    "content-a-list": (lambda: _sealed([1]), "not a checkpoint of this program"),
    "content-a-tensor": (lambda: _sealed(torch.zeros(3)), "not a checkpoint of this program"),
    "content-code": (lambda: _sealed({"format": 2, "f": _Command()}), _DAMAGED),
    "content-changed": (lambda: checkpoint().replace(b"weights", b"weighty", 1), "do not have the checksum"),
    "content-cut": (lambda: checkpoint()[:2000], _DAMAGED),
    "content-a-page": (lambda: b"<html></html>", _NOT_COMPLETE),
    "content-of-mace-torch": (lambda: _signed(original_files.original_bytes()), _DAMAGED),
    "content-compressed": (lambda: _signed(hostile_files._of_zip({"a/data.pkl": bytes(200_000_000)}, 8)), _DAMAGED),
}
