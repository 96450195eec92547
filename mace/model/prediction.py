"""Energies and dipoles of a batch, with forces, stress and virials by differentiating with respect to pair vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.graphs.graph import Graph, pair_vectors
from mace.kernels.gather import gather_pairs, restore_order
from mace.kernels.passes import Pass, differentiating_by
from mace.model.mace import MACE, AtomicOutput


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for a batch; what was not asked for or is not predicted is ``None``.

    Attributes:
        energy: Total energy in eV, float64 where the device has it, ``[structures]``.
        atomic_energies: Reference plus interaction energy of every atom in eV, ``[atoms]``.
        reference_energies: Reference energy of every atom in eV, ``[atoms]``.
        forces: eV/Angstrom, ``[atoms, 3]``.
        stress: +dE/dstrain/V in eV/Angstrom^3, ``[structures, 3, 3]``; NaN where there is no volume.
        virials: -dE/dstrain in eV, ``[structures, 3, 3]``.
        atomic_virials: What each atom adds to them, half of every pair it belongs to, ``[atoms, 3, 3]``.
        dipole: e*Angstrom, that of the given charges included, float64 where the device has it, ``[structures, 3]``.
        atomic_dipoles: What each atom adds to it, without its charge times its position, ``[atoms, 3]``.
        features: Output of every layer by degree, ``[atoms, 2 l + 1, channels]``.
    """

    energy: Tensor | None = None
    atomic_energies: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None
    virials: Tensor | None = None
    dipole: Tensor | None = None
    atomic_dipoles: Tensor | None = None
    atomic_virials: Tensor | None = None
    features: list[dict[int, Tensor]] | None = None
    reference_energies: Tensor | None = None


def sum_over_structures(values: Tensor, graph: Graph) -> Tensor:
    """Add up rows of atoms by structure, ``[atoms, ...]`` to ``[structures, ...]``."""
    total = values.new_zeros(graph.n_structures, *values.shape[1:])
    return total.index_add(0, graph.structure_of_atom, values)


def predict(
    model: MACE,
    graph: Graph,
    forces: bool = True,
    stress: bool = False,
    training: bool = False,
    atomic_virials: bool = False,
    features: bool = False,
) -> Prediction:
    """Evaluate a model on a batch.

    Args:
        model: The model.
        graph: Atoms and neighbors, on the model's device.
        forces: Whether forces are wanted; a model without energies has none.
        stress: Whether stress and virials are wanted; likewise.
        training: Keep the graph of operations, so that a loss of the result can be differentiated.
        atomic_virials: Whether the virials of single atoms are wanted; likewise.
        features: Whether the output of the layers is wanted.

    Returns:
        Energies, dipoles and the derivatives asked for.
    """
    vectors = pair_vectors(graph, model.plan.r_max, model.dtype)
    if not (forces or stress or atomic_virials) or "energy" not in model.plan.outputs:
        with torch.set_grad_enabled(training):
            return _assemble(model, graph, vectors, None, features=features)
    vectors.requires_grad_(True)
    with torch.enable_grad():
        return _assemble(model, graph, vectors, training, forces, stress, atomic_virials, features)


def hessian(model: MACE, graph: Graph) -> Tensor:
    """Differentiate the energy twice by the positions.

    Compiled kernels and radial tables know first derivatives by the geometry only; those in torch are used meanwhile.

    Args:
        model: The model.
        graph: One structure, on the model's device.

    Returns:
        eV/Angstrom^2, ``[3 atoms, atoms, 3]``: row ``3 i + k`` differentiates by component ``k`` of atom ``i`` first.
    """
    positions = graph.positions.detach().clone().requires_grad_(True)
    moved = replace(graph, positions=positions)
    with torch.enable_grad(), model.plain_kernels():
        energies = model(moved, pair_vectors(moved, model.plan.r_max, model.dtype)).energies
        if energies is None:
            raise ValueError(f"a {model.plan.model} model has no energy to differentiate")
        energy = energies.sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:  # atoms without neighbors
            return positions.new_zeros(positions.numel(), *positions.shape)
        rows = [torch.autograd.grad(g, positions, retain_graph=True)[0] for g in gradient.flatten().unbind()]
    return torch.stack(rows)


def _assemble(
    model: MACE,
    graph: Graph,
    vectors: Tensor,
    keep_graph: bool | None,
    forces: bool = False,
    stress: bool = False,
    atomic_virials: bool = False,
    features: bool = False,
) -> Prediction:
    """Run the model, differentiate if ``keep_graph`` is not None, and collect."""
    output = model(graph, vectors)
    found: dict[str, Any] = _dipoles(model, output, graph, keep_graph is not False)
    if features:
        found["features"] = _features(output, graph)
    if output.energies is None:
        return Prediction(**found)
    reference = model.reference_of_atoms(graph)
    atomic_energies = reference + output.energies.to(reference.dtype)
    if keep_graph is not None:
        with differentiating_by(Pass.GEOMETRY):
            (gradient,) = torch.autograd.grad(output.energies.sum(), vectors, create_graph=keep_graph)
        if not keep_graph:
            atomic_energies = atomic_energies.detach()
        if forces:
            found["forces"] = _forces(gradient, graph)
        if stress:
            strain_gradient = _strain_gradient(gradient, vectors.detach(), graph)
            found |= {"stress": _stress(strain_gradient, graph), "virials": -strain_gradient}
        if atomic_virials:
            found["atomic_virials"] = _atomic_virials(gradient, vectors.detach(), graph)
    return Prediction(
        energy=sum_over_structures(atomic_energies, graph),
        atomic_energies=atomic_energies,
        reference_energies=reference,
        **found,
    )


def _features(output: AtomicOutput, graph: Graph) -> list[dict[int, Tensor]]:
    """Bring the output of the layers into the order of the atoms."""
    return [{degree: restore_order(rows, graph) for degree, rows in layer.items()} for layer in output.layers]


def _dipoles(model: MACE, output: AtomicOutput, graph: Graph, keep_graph: bool) -> dict[str, Tensor]:
    """Add up the dipoles of the atoms and the given charges times the positions; by structure and by atom."""
    if output.dipoles is None:
        return {}
    precision = model.reference_energies.dtype
    learned = output.dipoles.to(precision) if keep_graph else output.dipoles.detach().to(precision)
    of_charges = graph.charges.to(precision).unsqueeze(1) * graph.positions.to(precision)
    return {"dipole": sum_over_structures(learned + of_charges, graph), "atomic_dipoles": learned}


def _forces(gradient: Tensor, graph: Graph) -> Tensor:
    """Carry the gradient of each pair to its two atoms."""
    toward_receiver = gather_pairs(gradient, graph) * graph.sign_of_slot.to(gradient.dtype).unsqueeze(1)
    return -restore_order(toward_receiver.view(graph.n_atoms, graph.max_neighbors, 3).sum(1), graph)


def _stress(strain_gradient: Tensor, graph: Graph) -> Tensor:
    """Divide by the volume; NaN without one, put in afterwards so that no derivative of it becomes NaN."""
    volume = graph.volume.to(strain_gradient.dtype).view(-1, 1, 1)
    missing = volume.isnan()
    return (strain_gradient / volume.masked_fill(missing, 1.0)).masked_fill(missing, float("nan"))


def _strain_gradient(gradient: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Differentiate the energy by a symmetric strain, ``[structures, 3, 3]``.

    A strain moves every pair vector ``v`` to ``(1 + strain) v``, so each pair adds the symmetric part of the product
    of its vector and its gradient.
    """
    product = _symmetric_products(gradient, vectors)
    structure_of_pair = graph.structure_of_atom.index_select(0, graph.pair_sender)
    total = gradient.new_zeros(graph.n_structures, 3, 3)
    return total.index_add(0, structure_of_pair[:-1], product)


def _atomic_virials(gradient: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Divide the virials among the atoms, half of each pair for either of its two, ``[atoms, 3, 3]``."""
    halves = -0.5 * _symmetric_products(gradient, vectors)
    total = gradient.new_zeros(graph.n_atoms, 3, 3)
    return total.index_add(0, graph.pair_sender[:-1], halves).index_add(0, graph.pair_receiver[:-1], halves)


def _symmetric_products(gradient: Tensor, vectors: Tensor) -> Tensor:
    """Return the symmetric part of the product of vector and gradient of every pair but the padding."""
    product = vectors[:-1].unsqueeze(2) * gradient[:-1].unsqueeze(1)
    return 0.5 * (product + product.transpose(1, 2))


def nonsense(results: Mapping[str, Any]) -> str | None:
    """Say which results of a structure hold NaN or infinite numbers, and what to think of it; None if none does."""
    names = [name for name, values in results.items() if not np.isfinite(values).all()]
    if not names:
        return None
    return (
        f"the model gives {', '.join(names[:3])} with numbers that are NaN or infinite; are atoms on top of each "
        "other, or is the model damaged or of a training that diverged?"
    )
