"""Small models with programs, their batches, and what torch and programs say of their energies and derivatives."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph, pair_vectors
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.model.compiled.runs import energies_and_gradient
from mace.model.mace import MACE
from mace.model.plan import HeadPlan, InteractionPlan, ModelPlan
from mace.structures.configuration import Configuration

SMALL: dict[str, Any] = {"n_channels": 5, "l_max": 1, "correlation": 2, "radial_mlp": (6, 5)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
HEADS = tuple(
    HeadPlan(name=name, reference_energies=(0.0,) * 3, scale=scale, shift=shift)
    for name, scale, shift in (("one", 1.3, 0.2), ("two", 0.4, -0.1), ("three", 2.0, 0.0))
)
OF_HEADS = {"heads": HEADS, "reference_energies": (), "scale": 1.0, "shift": 0.0}


def build(dtype: torch.dtype = torch.float64, layers: int = 2, residual: bool = False, **changes: Any) -> MACE:
    """Make a model of layers of which the first has a residual or not, with compiled kernels."""
    normalization = changes.pop("normalization", "count")
    settings: dict[str, Any] = {"atomic_numbers": (1, 6, 8), "hidden_l": (0, 1), "scale": 1.3, "shift": 0.2} | changes
    settings["correlation"] = (settings["correlation"],) * layers
    settings.setdefault("reference_energies", (0.0,) * len(settings["atomic_numbers"]))
    interactions = [InteractionPlan(residual=residual or n > 0, normalization=normalization) for n in range(layers)]
    plan = ModelPlan(
        model="ScaleShiftMACE", r_max=4.0, avg_num_neighbors=8.0, interactions=tuple(interactions), **settings
    )
    model = MACE(plan, dtype).initialize(torch.Generator().manual_seed(0)).use_backend(C)
    assert model.has_program
    return model


def structure(model: MACE, n_atoms: int, rng: np.random.Generator, head: str = "Default") -> Configuration:
    """Draw a structure of atoms that are not too close to each other."""
    grid = np.stack(np.meshgrid(*(np.arange(int(np.ceil(n_atoms ** (1 / 3)))),) * 3), axis=-1).reshape(-1, 3)
    positions = 1.6 * grid[rng.permutation(len(grid))[:n_atoms]] + rng.uniform(-0.3, 0.3, (n_atoms, 3))
    conditions = {
        each.name: rng.integers(0, 3, 1).astype(float) if each.per == "structure" else rng.normal(size=(n_atoms, 2))
        for each in model.plan.conditions
    }
    numbers = rng.choice(model.plan.atomic_numbers, n_atoms)
    return Configuration(numbers, positions, np.eye(3) * 20.0, (False,) * 3, head=head, conditions=conditions)


def batch(model: MACE, sizes: tuple[int, ...] = (15, 9, 1), seed: int = 0, heads: tuple[str, ...] = ()) -> Graph:
    """Draw a batch of structures."""
    rng, plan = np.random.default_rng(seed), model.plan
    names = heads or (plan.head_names[0],)
    structures = [structure(model, size, rng, names[n % len(names)]) for n, size in enumerate(sizes)]
    return graph_of_structures(structures, ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names)


def relative(found: Tensor | None, expected: Tensor | None, name: str) -> float:
    """Return the largest deviation relative to the largest number."""
    assert found is not None and expected is not None, f"{name}: only one of the two depends on it"
    assert found.shape == expected.shape and torch.isfinite(found).all(), name
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-300) if found.numel() else 0.0


@dataclass
class Derivatives:
    """Energies, gradient by the vectors, and derivatives of a random sum of both by the parameters."""

    energies: Tensor
    gradient: Tensor | None
    of_parameters: dict[str, Tensor | None]

    def differ(self, other: Derivatives) -> float:
        """Return the largest deviation of anything."""
        worst = relative(self.energies, other.energies, "energies")
        if other.gradient is not None:
            worst = max(worst, relative(self.gradient, other.gradient, "gradient"))
        for name, expected in other.of_parameters.items():
            found = self.of_parameters[name]
            if expected is None and (found is None or not found.any()):
                continue
            worst = max(worst, relative(found, expected, name))
        return worst

    def to(self, dtype: torch.dtype) -> Derivatives:
        """Round everything."""
        rounded = {name: None if value is None else value.to(dtype) for name, value in self.of_parameters.items()}
        return Derivatives(self.energies.to(dtype), None if self.gradient is None else self.gradient.to(dtype), rounded)

    def equal(self, other: Derivatives) -> bool:
        """Return whether all bits are the same."""
        mine = [self.energies, self.gradient, *self.of_parameters.values()]
        theirs = [other.energies, other.gradient, *other.of_parameters.values()]
        return all(a is None if b is None else torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def derive(model: MACE, energies: Tensor, gradient: Tensor | None, retain: bool = False, only: str = "") -> Derivatives:
    """Differentiate a random sum of energies, of gradients, or of both."""
    generator = torch.Generator().manual_seed(1)
    of_energies, of_vectors = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(energies)
        for shape in (energies.shape, (1 if gradient is None else len(gradient), 3))
    )
    total = energies.new_zeros(())
    if only != "forces":
        total = total + (of_energies * energies).sum()
    if gradient is not None and only != "energies":
        total = total + (of_vectors[:-1] * gradient[:-1]).sum()
    free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(total, list(free.values()), allow_unused=True, retain_graph=retain)
    return Derivatives(
        energies.detach(), None if gradient is None else gradient.detach(), dict(zip(free, found, strict=True))
    )


def by_torch(model: MACE, graph: Graph, gradient: bool = True, only: str = "") -> Derivatives:
    """Let torch differentiate the plain model."""
    backend = model.backend
    vectors = pair_vectors(graph, model.plan.r_max, model.dtype).requires_grad_(True)
    energies = model.use_backend(TORCH)(graph, vectors).energies
    assert energies is not None
    (of_vectors,) = torch.autograd.grad(
        energies.sum(), vectors, create_graph=True, allow_unused=True, materialize_grads=True
    )
    model.use_backend(backend)
    return derive(model, energies, of_vectors if gradient else None, only=only)


def by_program(model: MACE, graph: Graph, gradient: bool = True, only: str = "") -> Derivatives:
    """Run the program."""
    energies, _, of_vectors = energies_and_gradient(model, graph, gradient, training=True)
    return derive(model, energies, of_vectors, only=only)


def check(model: MACE, graph: Graph) -> None:
    """Compare program and torch, with all derivatives and without, in training and in evaluation."""
    expected, tolerance = by_torch(model, graph), TOLERANCE[model.dtype]
    if model.dtype == torch.float32:
        plain, expected = expected, by_torch(deepcopy(model).to_precision(torch.float64), graph).to(model.dtype)
        tolerance = max(tolerance, 2.0 * plain.differ(expected))
    assert by_program(model, graph).differ(expected) < tolerance
    with torch.no_grad():
        for _ in range(2):  # the second time, with what the first has prepared
            energies, vectors, gradient = energies_and_gradient(model, graph, True, training=False)
            assert relative(energies, expected.energies, "energies") < tolerance
            assert relative(gradient, expected.gradient, "gradient") < tolerance
        assert relative(vectors, pair_vectors(graph, model.plan.r_max, model.dtype), "vectors") < tolerance
        energies, _, nothing = energies_and_gradient(model, graph, False, training=False)
        assert nothing is None and relative(energies, expected.energies, "energies") < tolerance
