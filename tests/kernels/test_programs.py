"""Do programs of compiled kernels give what torch and autograd give, whatever the model and the batch?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program_models import OF_HEADS, SMALL, TOLERANCE, batch, build, by_program, by_torch, check

from mace.conditions import Condition
from mace.kernels.compiler import find_compiler

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine"),
    pytest.mark.usefixtures("poisoned_memory", "threads_given_back"),
]

CONDITIONS = (
    Condition(name="spin", kind="categorical", per="structure", width=3, n_classes=3),
    Condition(name="field", kind="continuous", per="atom", width=4, n_values=2),
)
QUICK: dict[str, dict[str, Any]] = {
    "default": {},
    "float32": {"dtype": torch.float32},
    "whole vectors": {"n_channels": 16},
    "one layer": {"layers": 1},
    "residual first": {"residual": True},
    "scalars": {"hidden_l": (0,)},
    "many channels of messages": {"message_channels": (9, 17)},
    "degrees of messages": {"message_l": (1,)},
    "shared products": {"product_of_all_elements": True},
    "density": {"normalization": "density"},
    "repulsion": {"distance_transform": "Agnesi", "pair_repulsion": True},
    "no hidden layer": {"radial_mlp": ()},
    "last readout only": {"last_readout_only": True},
    "one element": {"atomic_numbers": (14,)},
    "one head of several": OF_HEADS,
    "conditions": {"conditions": CONDITIONS, "condition_readout": True},
}
THOROUGH: dict[str, dict[str, Any]] = {
    **{f"{n} channels": {"n_channels": n, "l_max": 2} for n in (1, 20, 64, 300)},
    **{f"degree {l}": {"l_max": l, "hidden_l": (0, 1, 2)[: l + 1]} for l in (0, 2, 3, 4)},
    **{f"correlation {n}": {"correlation": n, "l_max": 2} for n in (1, 3, 4)},
    "three layers": {"layers": 3, "hidden_l": (0, 1, 2), "l_max": 2},
    "three layers with density": {"layers": 3, "normalization": "density", "residual": True},
    "odd degrees": {"hidden_l": (0, 2), "l_max": 2, "message_l": (2,)},
    "one degree of three": {"hidden_l": (0, 1, 2), "l_max": 2, "message_l": (0, 2), "layers": 3},
    "few channels of messages": {"n_channels": 20, "message_channels": (1, 33)},
    "soft": {"distance_transform": "Soft", "pair_repulsion": True, "normalization": "density"},
    "gaussian": {"radial_type": "gaussian", "num_radial_basis": 13},
    "chebyshev": {"radial_type": "chebyshev", "num_radial_basis": 1},
    "wide network": {"radial_mlp": (1, 300, 17)},
    "wide readout": {"readout_channels": 300},
    "narrow readout": {"readout_channels": 1},
    "many elements": {"atomic_numbers": tuple(range(1, 90))},
    "many elements and channels": {"atomic_numbers": tuple(range(1, 90)), "n_channels": 40, "layers": 3},
    "heads and density": OF_HEADS | {"normalization": "density", "layers": 3, "pair_repulsion": True},
    "heads of the last": OF_HEADS | {"last_readout_only": True, "residual": True},
    "conditions, one layer": {"conditions": CONDITIONS, "layers": 1, "residual": True},
}


@pytest.mark.parametrize("name", QUICK)
def test_family(name: str) -> None:
    model = build(**SMALL | QUICK[name])
    check(model, batch(model))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", QUICK | THOROUGH)
def test_whole_family(name: str, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    model = build(**SMALL | (QUICK | THOROUGH)[name] | {"dtype": dtype})
    check(model, batch(model))
    check(model, batch(model, (150,), seed=3))


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2,), (1, 40)], ids=str)
@pytest.mark.parametrize("name", ["default", "density", "repulsion", "shared products"])
def test_batches_without_much(sizes: tuple[int, ...], name: str) -> None:
    model = build(**SMALL | QUICK[name])
    check(model, batch(model, sizes))


@pytest.mark.parametrize("heads", [("one", "two", "three"), ("three", "two"), ("two",)], ids=str)
def test_heads(heads: tuple[str, ...]) -> None:
    model = build(**SMALL | OF_HEADS)
    check(model, batch(model, (5, 4, 1, 3), heads=heads))


@pytest.mark.parametrize("only", ["energies", "forces"])
def test_part_of_a_loss(only: str) -> None:
    model = build(**SMALL)
    graph = batch(model)
    assert by_program(model, graph, only=only).differ(by_torch(model, graph, only=only)) < 1e-12


def test_energies_alone() -> None:
    model = build(**SMALL)
    graph = batch(model)
    assert by_program(model, graph, gradient=False).differ(by_torch(model, graph, gradient=False)) < 1e-12
