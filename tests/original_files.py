"""Files as ``torch.save`` of mace-torch writes them, made without it: classes of the same names with our weights."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mace.compat.couplings import our_polynomials
from mace.compat.exporting import original_arguments
from mace.compat.weights import weights_to_original, written_degrees
from mace.conditions import Condition, spec_of_condition
from mace.equivariant.symmetric_basis import symmetric_basis
from mace.kernels.convolution import convolution_paths
from mace.model.mace import MACE
from mace.model.plan import HeadPlan, InteractionPlan, ModelPlan

PLAN = ModelPlan(
    model="ScaleShiftMACE",
    r_max=4.0,
    num_radial_basis=4,
    l_max=1,
    n_channels=2,
    hidden_l=(0, 1),
    interactions=(InteractionPlan(residual=True),) * 2,
    correlation=(2, 2),
    radial_mlp=(5,),
    readout_channels=3,
    avg_num_neighbors=7.5,
    atomic_numbers=(1, 6, 8),
    reference_energies=(-13.6, -1027.2, -2041.8),
    scale=0.8,
    shift=0.3,
)
"""A model small enough to be written a hundred times."""

CHARGE = Condition(name="total_charge", kind="categorical", per="structure", width=3, n_classes=7, offset=3)
SPIN = Condition(name="total_spin", kind="categorical", per="structure", width=2, n_classes=5)
TEMPERATURE = Condition(name="temperature", kind="continuous", per="structure", width=3)
SITE = Condition(name="site", kind="categorical", per="atom", width=2, n_classes=3, key="kind_of_site")
MOMENTS = Condition(name="moments", kind="continuous", per="atom", width=4, n_values=2, has_biases=False)


def with_heads(*names: str) -> ModelPlan:
    """Return `PLAN` with several heads; the first is as it was, the others are less alike the further on."""
    energies = np.array(PLAN.reference_energies)
    heads = [
        HeadPlan(
            name=name, reference_energies=tuple((energies - 0.5 * i).tolist()), scale=0.8 + 0.3 * i, shift=0.3 - 0.2 * i
        )
        for i, name in enumerate(names)
    ]
    return ModelPlan.model_validate(
        PLAN.model_dump() | {"reference_energies": (), "scale": 1.0, "shift": 0.0, "heads": heads}
    )


def model(plan: ModelPlan = PLAN, dtype: torch.dtype = torch.float64) -> MACE:
    """Return a model with random weights."""
    return MACE(plan, dtype).initialize(torch.Generator().manual_seed(3))


def _class(module: str, name: str) -> type:
    """Make a class that pickles under the name of one of the original's."""
    return type(name, (), {"__module__": module, "__qualname__": name})


def module(name: str, parts: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, **more: Any) -> Any:
    """Return an object that pickles like a module of torch.

    Args:
        name: Dotted name of its class.
        parts: Modules in it.
        tensors: Weights and buffers.
        **more: Further attributes.
    """
    package, _, word = name.rpartition(".")
    made = _class(package, word)()
    made.__dict__ |= {
        "training": True,
        "_parameters": OrderedDict((k, v) for k, v in (tensors or {}).items() if isinstance(v, torch.nn.Parameter)),
        "_buffers": OrderedDict((k, v) for k, v in (tensors or {}).items() if not isinstance(v, torch.nn.Parameter)),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(parts or {}),
        **more,
    }
    return made


def coupling_tensor(plan: ModelPlan, degree: int, order: int) -> torch.Tensor:
    """Return coupling coefficients as the original stores them, equal monomials in one place."""
    n = (plan.l_max + 1) ** 2
    polynomials = our_polynomials(plan.l_max, degree, order)  # [paths, 2 l + 1, monomials]
    result = np.zeros((2 * degree + 1, *[n] * order, len(polynomials)))
    for place, monomial in enumerate(combinations_with_replacement(range(n), order)):
        result[(slice(None), *monomial)] = polynomials[:, :, place].T
    return torch.tensor(result if degree else result[0])


def state_of(original: MACE, heads: int = 1) -> dict[str, torch.Tensor]:
    """Return weights and buffers by the names of the original; with several heads all are alike."""
    plan, dtype = original.plan, original.dtype
    arrays = {name: value.detach().numpy() for name, value in original.named_parameters()}
    weights = weights_to_original(arrays, plan)
    state: dict[str, torch.Tensor] = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in weights.items()}
    if "energy" in plan.outputs:
        energies = torch.tensor([head.reference_energies for head in plan.every_head] * heads, dtype=dtype)
        state["atomic_energies_fn.atomic_energies"] = energies
    if "dipole" not in plan.outputs:
        for name in ("scale", "shift"):
            values = torch.tensor([getattr(head, name) for head in plan.every_head], dtype=dtype)
            state[f"scale_shift.{name}"] = values if plan.heads else values[0]
    state |= {
        "atomic_numbers": torch.tensor(plan.atomic_numbers),
        "r_max": torch.tensor(plan.r_max, dtype=dtype),
        "num_interactions": torch.tensor(plan.n_layers),
        "radial_embedding.cutoff_fn.p": torch.tensor(plan.num_cutoff_basis, dtype=torch.int),
    }
    state["radial_embedding.bessel_fn.bessel_weights"] = (
        torch.arange(1, plan.num_radial_basis + 1, dtype=torch.float64) * (torch.pi / plan.r_max)
    ).to(dtype)
    for layer in range(plan.n_layers):
        for place, degree in enumerate(written_degrees(plan, layer)):
            for order in range(1, plan.correlation[layer] + 1):
                name = f"products.{layer}.symmetric_contractions.contractions.{place}.U_matrix_{order}"
                if symmetric_basis(plan.l_max, degree, order).n_paths:
                    state[name] = coupling_tensor(plan, degree, order).to(dtype)
    return state


_PACKAGES = {
    "interactions": "torch.nn.modules.container.ModuleList",
    "products": "torch.nn.modules.container.ModuleList",
    "readouts": "torch.nn.modules.container.ModuleList",
    "scale_shift": "mace.modules.blocks.ScaleShiftBlock",
    "radial_embedding": "mace.modules.blocks.RadialEmbeddingBlock",
}


def tree_of(original: MACE, state: dict[str, torch.Tensor] | None = None, kind: str | None = None, **more: Any) -> Any:
    """Return a whole model as an object of modules, with the attributes that shapes do not tell."""
    plan = original.plan
    kind = kind or (plan.model if "dipole" in plan.outputs else "ScaleShiftMACE")
    state = state_of(original) if state is None else state
    words = original_arguments(plan)

    def build(prefix: str, attributes: dict[str, Any]) -> Any:
        names = {n[len(prefix) :] for n in state if n.startswith(prefix)}
        own = {n: state[prefix + n] for n in names if "." not in n}
        parts = {p: build(f"{prefix}{p}.", {}) for p in sorted({n.split(".")[0] for n in names if "." in n})}
        path = prefix.rstrip(".")
        last = 0 if plan.last_readout_only else plan.n_layers - 1
        name = _PACKAGES.get(path, "mace.modules.blocks.Part")
        first, _, rest = path.partition(".")
        if first == "interactions" and rest.isdigit():
            word = words["interaction_cls_first" if rest == "0" else "interaction_cls"]
            name, attributes = f"mace.modules.blocks.{word}", {"avg_num_neighbors": plan.avg_num_neighbors}
        if path.endswith("conv_tp_weights"):
            attributes = {"hs": [1, 2]}
        if path == "radial_embedding":
            attributes = {"apply_cutoff": not plan.cutoff_after_network}
        if path == f"readouts.{last}" and plan.n_layers > 1:
            if plan.readout_biases:
                name = "mace.modules.blocks.NonLinearBiasReadoutBlock"
            act = module(
                "e3nn.math._normalize_activation.normalize2mom", f=torch.nn.functional.silu, cst=1.6791767923989418
            )
            acts = module("torch.nn.modules.container.ModuleList", {"0": act})
            activation = module("e3nn.nn._activation.Activation", {"acts": acts})
            if "dipole" in plan.outputs:
                parts["equivariant_nonlin"] = module("e3nn.nn._gate.Gate", {"act_gates": activation})
            else:
                parts["non_linearity"] = activation
        if not path:
            attributes = {"apply_cutoff": not plan.cutoff_after_network, **attributes}
            if plan.conditions:
                specs = {condition.name: spec_of_condition(condition) for condition in plan.conditions}
                attributes = {"embedding_specs": specs, **attributes}
            name = f"mace.modules.models.{kind}"
        return module(name, parts, own, **attributes)

    tree = build("", more)
    for layer in range(plan.n_layers):
        paths = convolution_paths(plan.l_of_messages(layer), plan.l_max)
        convolution = _convolution(plan, layer, paths)
        tree._modules["interactions"]._modules[str(layer)]._modules["conv_tp"] = convolution
    return tree


def _irreps(terms: list[tuple[int, int]]) -> Any:
    """Return irreps that pickle like those of e3nn."""
    kinds = {word: _tuple_class("e3nn.o3._irreps", word) for word in ("Irreps", "_MulIr", "Irrep")}
    return kinds["Irreps"](kinds["_MulIr"]((n, kinds["Irrep"]((l, (-1) ** l)))) for n, l in terms)


def _tuple_class(package: str, name: str) -> Any:
    return type(name, (tuple,), {"__module__": package, "__qualname__": name})


def _convolution(plan: ModelPlan, layer: int, paths: Any) -> Any:
    """Return a tensor product with its paths."""
    instruction = _tuple_class("e3nn.o3._tensor_product._instruction", "Instruction")
    inside, n_channels = list(plan.l_of_messages(layer)), plan.channels_of_messages(layer)
    found = [
        instruction((inside.index(p.l1), p.l2, i, "uvu", True, (2 * p.l3 + 1) ** 0.5, (n_channels, 1)))
        for i, p in enumerate(paths)
    ]
    return module(
        "e3nn.o3._tensor_product._tensor_product.TensorProduct",
        instructions=found,
        irreps_in1=_irreps([(n_channels, l) for l in inside]),
        irreps_in2=_irreps([(1, l) for l in range(plan.l_max + 1)]),
        irreps_out=_irreps([(n_channels, p.l3) for p in paths]),
        __codegen__={"_compiled_main_left_right": b"PK\x03\x04" + b"x" * 100_000},
    )


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, whose check of names can be left out
    """Writes classes by name without looking whether they can be imported."""

    def __init__(self, stream: io.BytesIO, storages: list[torch.Tensor]) -> None:
        super().__init__(stream, protocol=2)
        self.storages = storages

    def save_global(self, obj: Any, name: str | None = None) -> None:
        word = name or obj.__qualname__
        self.write(b"c" + f"{obj.__module__}\n{word}\n".encode())
        self.memoize(obj)

    def save_type(self, obj: Any) -> None:
        self.save_global(obj)

    def save_tensor(self, tensor: torch.Tensor) -> None:
        flat = tensor.detach().contiguous()
        kinds = {torch.float64: "DoubleStorage", torch.float32: "FloatStorage", torch.int64: "LongStorage"}
        kind = _class("torch", kinds.get(flat.dtype, "IntStorage"))
        key = str(len(self.storages))
        self.storages.append(flat)
        rebuild = _class("torch._utils", "_rebuild_tensor_v2")
        self.save_global(rebuild)
        self.write(b"(")
        self.write(b"(")
        for part in ("storage", kind, key, "cpu", flat.numel()):
            self.save(part)
        self.write(b"tQ")
        for part in (0, tuple(flat.shape), tuple(flat.stride()), False, OrderedDict()):
            self.save(part)
        self.write(b"tR")

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]
    dispatch[type] = save_type


def _save_any_tensor(pickler: _Pickler, tensor: torch.Tensor) -> None:
    pickler.save_tensor(tensor)


_Pickler.dispatch[torch.Tensor] = _save_any_tensor
_Pickler.dispatch[torch.nn.Parameter] = _save_any_tensor


def pickled(root: Any) -> tuple[bytes, list[torch.Tensor]]:
    """Return the pickle of an object and the tensors it refers to."""
    stream, storages = io.BytesIO(), []
    _Pickler(stream, storages).dump(root)
    return stream.getvalue(), storages


def archive(data: bytes, storages: list[torch.Tensor], **more: bytes) -> bytes:
    """Return a zip archive as torch writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", data)
        made.writestr("archive/byteorder", b"little")
        for key, tensor in enumerate(storages):
            made.writestr(f"archive/data/{key}", tensor.numpy().tobytes())
        made.writestr("archive/version", b"3\n")
        for name, content in more.items():
            made.writestr(f"archive/{name.replace('__', '/')}", content)
    return stream.getvalue()


def write_original(path: Path, root: Any) -> Path:
    """Write a whole model or a checkpoint."""
    path.write_bytes(archive(*pickled(root)))
    return path


def original_bytes() -> bytes:
    """Return the bytes of a small model."""
    return archive(*pickled(tree_of(model())))
