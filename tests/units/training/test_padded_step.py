"""Is the step of a padded batch that of the batch, for every loss and kind of label, and does a step never wait?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mace.elements import ElementTable
from mace.graphs.bucket import Bucket
from mace.graphs.dataset import Batch
from mace.graphs.feeding import Feeding
from mace.graphs.graph import carry
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.model.mace import MACE
from mace.model.plan import HeadPlan, InteractionPlan, ModelPlan
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage
from mace.training.step import loss_gradient, update_parameters

LOSSES = ("weighted", "ef", "forces_only", "stress", "virials", "huber", "universal", "l1l2energyforces")
DIPOLE_LOSSES = ("dipole", "energy_forces_dipole")
WEIGHTS = {"energy": 2.0, "forces": 50.0, "stress": 10.0, "virials": 10.0, "dipole": 3.0}


def model_of(heads: Sequence[str] = (), **changes: Any) -> MACE:
    """A small model, of dipoles too if asked for."""
    of_heads: dict[str, Any] = {"reference_energies": (-1.0, -2.0, -3.0), "scale": 1.3, "shift": 0.1}
    if heads:
        plans = tuple(HeadPlan(name=h, reference_energies=(0.1, 0.2, n), scale=1.0 + n) for n, h in enumerate(heads))
        of_heads = {"heads": plans, "reference_energies": ()}
    settings: dict[str, Any] = {
        "model": "ScaleShiftMACE", "r_max": 3.0, "l_max": 1, "n_channels": 3, "hidden_l": (0, 1), "radial_mlp": (4,),
        "interactions": (InteractionPlan(residual=True),) * 2, "correlation": (2, 2), "avg_num_neighbors": 3.0,
        "atomic_numbers": (1, 6, 8),
    }  # fmt: skip
    return MACE(ModelPlan(**settings | of_heads | changes), torch.float64).initialize(torch.Generator().manual_seed(0))


def structures(heads: Sequence[str] = ("Default",), large: float = 1.0) -> list[Configuration]:
    """Crystals and a molecule; each lacks another label, some weigh nothing, and the last has no label at all."""
    rng = np.random.default_rng(7)
    made = []
    for place in range(6):
        n, stress = 2 + place % 3, rng.normal(size=(3, 3))
        labels: dict[str, Any] = {
            "energy": rng.normal(), "forces": large * rng.normal(size=(n, 3)), "stress": stress + stress.T,
            "virials": stress + stress.T, "dipole": rng.normal(size=3),
        }  # fmt: skip
        missing = [[], ["forces"], ["stress", "virials"], ["energy"], ["dipole"], list(labels)][place]
        if place == 2:
            labels["forces"][0] = 250.0  # beyond the steps of the universal loss
        made.append(
            Configuration(
                rng.choice([1, 8], n),
                rng.uniform(0.0, 2.6, (n, 3)),
                np.eye(3) * (3.5 if place != 2 else 0.0),
                (place != 2,) * 3,
                head=heads[place % len(heads)],
                weight=[1.0, 2.0, 0.5, 1.0, 0.0, 1.0][place],
                property_weights={"energy": 1.0 + place, "forces": float(place != 3)},
                atom_weights={"forces": rng.uniform(0.0, 2.0, n)},
                charges=rng.normal(size=n),
                **{name: value for name, value in labels.items() if name not in missing},
            )  # fmt: skip
        )
    return made


def batch_of(model: MACE, members: Sequence[Configuration], chosen: Sequence[int] = range(6)) -> Batch:
    """Gather a batch."""
    table, plan = ElementTable(model.plan.atomic_numbers), model.plan
    return InMemoryDataset(members, table, plan.r_max, heads=plan.head_names).batch(list(chosen))


def buckets(model: MACE, batch: Batch) -> list[Bucket]:
    """The bucket of a batch, and a larger one."""
    first = Bucket.of(batch.graph, model.plan.n_elements, len(model.plan.head_names))
    return [first, replace(first, atoms=first.atoms + 5, neighbors=first.neighbors + 2, pairs=first.pairs + 9,
                           structures=first.structures + 3, elements=3)]  # fmt: skip


def step(model: MACE, batch: Batch, word: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and its gradient."""
    value = loss_gradient(model, batch, make_loss(word, WEIGHTS))
    return value, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model: MACE, batch: Batch, word: str) -> None:
    """Compare the step of a batch with those of the same in two buckets."""
    expected, gradients = step(model, batch, word)
    assert expected > 0.0 and gradients
    scale = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient.numel())
    for bucket in buckets(model, batch):
        value, found = step(model, batch.padded(bucket), word)
        assert float(value) == pytest.approx(float(expected), rel=1e-13)
        for name, gradient in gradients.items():
            assert float((found[name] - gradient).abs().max()) <= 1e-12 * scale, name


@pytest.mark.parametrize("word", LOSSES)
@pytest.mark.parametrize("kernels", ["torch", "c"])
@pytest.mark.parametrize("heads", [("Default",), ("one", "two")])
def test_every_loss_of_a_padded_batch(word: str, kernels: str, heads: tuple[str, ...]) -> None:
    if kernels == "c" and find_compiler() is None:
        pytest.skip("there is no C compiler on this machine")
    model = model_of(heads if len(heads) > 1 else ()).use_backend(C if kernels == "c" else TORCH)
    members = structures(heads)
    compare(model, batch_of(model, members), word)
    if word == "universal":
        compare(model, batch_of(model, members, [0, 2, 4]), word)  # of one head


@pytest.mark.parametrize("word", DIPOLE_LOSSES)
def test_losses_of_dipoles(word: str) -> None:
    alone: dict[str, Any] = {
        "reference_energies": (),
        "scale": 1.0,
        "shift": 0.0,
        "readout_channels": 0,
        "readout_vectors": 3,
    }
    model = model_of(model="EnergyDipolesMACE") if "energy" in word else model_of(model="AtomicDipolesMACE", **alone)
    compare(model, batch_of(model, structures()), word)


class NoHostNumbers(TorchDispatchMode):
    """Raise an error where numbers would be copied between the memory of the device and that of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if "copy" in str(func):
            kinds = {t.device.type for t in (*args, result) if isinstance(t, Tensor)}
            assert len(kinds) == 1, f"{func} between {kinds}"
        return result


class NoConstants(TorchFunctionMode):
    """Raise an error where a tensor on the device is made from numbers of Python, which are copied there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if getattr(func, "__name__", "") in ("tensor", "as_tensor", "asarray", "new_tensor"):
            assert not (isinstance(result, Tensor) and result.is_meta), f"{func.__name__} on the device"
        return result


MODELS: list[dict[str, Any]] = [
    {},
    {"heads": ("one", "two")},
    {"pair_repulsion": True, "distance_transform": "Agnesi"},
    {"interactions": (InteractionPlan(residual=False), InteractionPlan(residual=True, normalization="density"))},
    {"interactions": (InteractionPlan(residual=True, messages="attention"),) * 2},
    {"interactions": (InteractionPlan(residual=True, normalization="density", messages="nonlinear"),) * 2},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("changes", "word"), [*((each, "universal") for each in MODELS), ({}, "l1l2energyforces"), ({}, "virials")]
)
def test_a_step_never_waits_for_the_device(changes: dict[str, Any], word: str, padded: bool) -> None:
    """The device of torch that has no numbers: whoever asks for one, or mixes devices, gets an error."""
    model = model_of(**changes)
    batch = batch_of(model, structures(model.plan.head_names))
    batch = batch.padded(buckets(model, batch)[1]) if padded else batch
    of_device = carry(batch, "meta")
    model = model.to("meta")
    loss, parameters = make_loss(word, WEIGHTS), list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01, amsgrad=True, foreach=True, capturable=False)
    average = MovingAverage(parameters, 0.99)

    def take() -> None:
        value = loss_gradient(model, of_device, loss)
        assert value.is_meta and update_parameters(model, optimizer, 10.0, average).is_meta

    take()  # constants are carried to a device once
    with NoHostNumbers(), NoConstants():
        take()


def test_waiting_would_be_noticed() -> None:
    """By each of the three ways in which it could be."""
    on_device = torch.zeros(3, device="meta")
    with NoHostNumbers(), NoConstants():
        for wait in (
            lambda: on_device.sum().item(),
            lambda: torch.zeros(3).to("meta"),
            lambda: on_device.copy_(torch.zeros(3)),
            lambda: on_device.new_tensor([1.0]),
            lambda: torch.tensor(1.0, device="meta"),
            lambda: on_device[on_device > 0.0],
        ):
            with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
                wait()


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics processor that torch can use")
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("padded", [False, True])
def test_steps_on_a_device_never_wait(kernels: str, padded: bool) -> None:
    """What is gathered ahead, copied and computed is that of the CPU, and torch sees nobody wait for the device."""
    device, backend = torch.device("cuda", torch.cuda.current_device()), TORCH
    if kernels == "triton":
        backend = pytest.importorskip("mace.kernels.triton_backend").TRITON
    alone, model = model_of(), model_of().to(device).use_backend(backend)
    members, loss = structures(), make_loss("universal", WEIGHTS)
    dataset = InMemoryDataset(members, ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, amsgrad=True, fused=True)
    average, steps = MovingAverage(model.parameters(), 0.99), [np.array([3, 1, 2]), np.array([0, 4, 5])] * 3
    bucket = Bucket(atoms=20, neighbors=40, pairs=300, elements=2, structures=5)
    losses = []
    with Feeding(1, device, bucket_of=(lambda _: bucket) if padded else None).open(dataset, steps) as feed:
        for number, chosen in enumerate(feed):
            torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")  # once everything is compiled
            try:
                batch = feed.batch(chosen).to(device, pinned=True)
                losses.append(loss_gradient(model, batch, loss))
                update_parameters(model, optimizer, 10.0, average)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    expected = [float(loss_gradient(alone, dataset.batch(chosen), loss)) for chosen in steps]
    assert [float(value) for value in losses] == pytest.approx(expected, rel=1e-11)
