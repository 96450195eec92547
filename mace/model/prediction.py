"""Energies and dipoles of a batch; forces, stress and virials as derivatives with respect to pair vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.graphs.graph import Graph, pair_vectors
from mace.kernels.gather import (
    forces_of_pairs,
    gather_pairs,
    restore_order,
    strain_of_pairs,
    strains,
    sum_segments,
    sum_slots,
)
from mace.kernels.passes import Pass, differentiating_by
from mace.model.compiled.runs import energies_and_gradient
from mace.model.mace import MACE, AtomicOutput
from mace.processes.devices import using


@dataclass(frozen=True)
class Prediction:
    """Predictions of a model for a batch; ``None`` for what was not requested or is not predicted.

    Attributes:
        energy: Total energy in eV, float64 if the device supports it, ``[structures]``.
        atomic_energies: Reference plus interaction energy of every atom in eV, ``[atoms]``.
        reference_energies: Reference energy of every atom in eV, ``[atoms]``.
        forces: Forces in eV/Angstrom, ``[atoms, 3]``.
        stress: +dE/dstrain/V in eV/Angstrom^3, ``[structures, 3, 3]``; NaN for structures without a volume.
        virials: -dE/dstrain in eV, ``[structures, 3, 3]``.
        atomic_virials: Contribution of each atom to the virials, half of each of its pairs, in eV, ``[atoms, 3, 3]``.
        dipole: Total dipole in e*Angstrom, including that of the given charges, float64 if the device supports it,
            ``[structures, 3]``.
        atomic_dipoles: Learned contribution of each atom, without its charge times its position, ``[atoms, 3]``.
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


def without_padding(prediction: Prediction, graph: Graph) -> Prediction:
    """Return what is predicted for those atoms and structures of a graph that are no padding."""
    if graph.real is None:
        return prediction
    n_atoms, n_structures, found = graph.real.atoms, graph.real.structures, dict[str, Any]()
    for name, value in vars(prediction).items():
        if isinstance(value, Tensor):
            found[name] = value[: n_structures if name in ("energy", "stress", "virials", "dipole") else n_atoms]
        elif value is not None:
            found[name] = [{degree: rows[:n_atoms] for degree, rows in layer.items()} for layer in value]
    return Prediction(**found)


def sum_over_structures(values: Tensor, graph: Graph) -> Tensor:
    """Sum values of atoms over each structure, ``[atoms, ...]`` to ``[structures, ...]``."""
    return sum_segments(values, graph.structure_of_atom, graph.n_structures)


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
        graph: The graph of atoms and neighbors, on the model's device.
        forces: Whether to compute forces; a model without energies has none.
        stress: Whether to compute stress and virials; a model without energies has none.
        training: Whether to keep the graph of operations, so that a loss of the result can be differentiated.
        atomic_virials: Whether to compute the virials of individual atoms; a model without energies has none.
        features: Whether to return the output of the layers.

    Returns:
        Energies, dipoles and the requested derivatives.
    """
    differentiated = "energy" in model.plan.outputs and (forces or stress or atomic_virials)
    # programs are differentiated by weights alone, and not with radial tables
    by_torch = (
        features
        or training
        and (graph.positions.requires_grad or graph.cell.requires_grad or model.radial_tables is not None)
    )
    by_program, gradient = model.has_program and not by_torch, None
    found: dict[str, Any] = {}
    with using(model.embedding.device), torch.set_grad_enabled(training or (differentiated and not by_program)):
        if by_program:
            energies, vectors, gradient = energies_and_gradient(model, graph, differentiated, training)
            output = AtomicOutput(energies, None, [])
        else:
            vectors = pair_vectors(graph, model.plan.r_max, model.dtype)
            if differentiated:
                vectors.requires_grad_(True)
            output = model(graph, vectors)
        if features:
            found["features"] = [
                {degree: restore_order(rows, graph) for degree, rows in layer.items()} for layer in output.layers
            ]
        if output.dipoles is not None:
            precision = model.reference_energies.dtype
            learned = (output.dipoles.detach() if differentiated and not training else output.dipoles).to(precision)
            of_charges = graph.charges.to(precision).unsqueeze(1) * graph.positions.to(precision)
            found |= {"dipole": sum_over_structures(learned + of_charges, graph), "atomic_dipoles": learned}
        if output.energies is None:
            return Prediction(**found)
        reference = model.reference_of_atoms(graph)
        atomic_energies = reference + output.energies  # in the precision of the reference energies
        if differentiated:
            if not by_program:
                with differentiating_by(Pass.GEOMETRY):
                    ones = torch.ones_like(output.energies)
                    (gradient,) = torch.autograd.grad(output.energies, vectors, ones, create_graph=training)
            assert gradient is not None
            if not training:
                atomic_energies = atomic_energies.detach()
            if forces:
                found["forces"] = forces_of_pairs(gradient, graph)
            if stress or atomic_virials:
                found |= _virials(gradient, vectors.detach(), graph, stress, atomic_virials)
        return Prediction(
            energy=sum_over_structures(atomic_energies, graph),
            atomic_energies=atomic_energies,
            reference_energies=reference,
            **found,
        )


def _virials(gradient: Tensor, vectors: Tensor, graph: Graph, stress: bool, atomic_virials: bool) -> dict[str, Tensor]:
    """Differentiate the energy by a symmetric strain; return stress and virials, atomic virials, or both.

    In the atomic virials, each atom of a pair gets half.
    """
    found: dict[str, Tensor] = {}
    if stress:
        by_strain = strain_of_pairs(gradient, vectors, graph)
        volume = graph.volume.to(gradient.dtype).view(-1, 1, 1)
        missing = volume.isnan()
        # NaN is filled in last, so that no derivative becomes NaN
        per_volume = (by_strain / volume.masked_fill(missing, 1.0)).masked_fill(missing, float("nan"))
        found |= {"stress": per_volume, "virials": -by_strain}
    if atomic_virials:
        halves = -0.5 * strains(gradient, vectors, graph)
        found["atomic_virials"] = restore_order(sum_slots(gather_pairs(halves, graph), graph), graph)
    return found


def hessian(model: MACE, graph: Graph, n_copies: int = 1) -> Tensor:
    """Compute the second derivatives of the energy with respect to positions.

    Compiled kernels and radial tables only provide first derivatives with respect to geometry, so torch kernels and
    radial networks are used here.

    Args:
        model: The model.
        graph: One structure, or copies of one, on the model's device.
        n_copies: Number of copies; each backward pass gives a row for every one.

    Returns:
        eV/Angstrom^2, ``[3 atoms, atoms, 3]``; row ``3 i + k`` is the derivative by component ``k`` of atom ``i``.
    """
    n_atoms = graph.n_atoms // n_copies
    positions = graph.positions.detach().clone().requires_grad_(True)
    moved = graph.moved(positions)
    with using(model.embedding.device), torch.enable_grad(), model.plain_kernels():
        energies = model(moved, pair_vectors(moved, model.plan.r_max, model.dtype)).energies
        if energies is None:
            raise ValueError(f"a {model.plan.model} model has no energy to differentiate")
        energy = energies.sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:  # atoms without neighbors
            return positions.new_zeros(3 * n_atoms, n_atoms, 3)
        rows = list[Tensor]()
        components = gradient.view(n_copies, 3 * n_atoms).unbind()
        for first in range(0, 3 * n_atoms, n_copies):
            chosen = [of_copy[first + copy] for copy, of_copy in enumerate(components) if first + copy < 3 * n_atoms]
            (found,) = torch.autograd.grad(chosen, positions, retain_graph=True)
            rows += found.view(n_copies, n_atoms, 3)[: len(chosen)].unbind()
    return torch.stack(rows)


ATOMS_OF_COPIES = 256
"""Atoms of all copies of a structure whose second derivatives are computed at a time on a device."""


def copies_for_hessian(n_atoms: int, device: torch.device) -> int:
    """Return how many copies of a structure `hessian` should be given; one on a CPU, which they do not keep busier."""
    return 1 if device.type == "cpu" else min(3 * n_atoms, max(1, ATOMS_OF_COPIES // n_atoms))


def nonsense(results: Mapping[str, Any]) -> str | None:
    """Describe which results of a structure are NaN or infinite, with possible causes; None if all are finite."""
    names = [name for name, values in results.items() if not np.isfinite(values).all()]
    if not names:
        return None
    return (
        f"the model gives {', '.join(names[:3])} with numbers that are NaN or infinite; are atoms on top of each "
        "other, or is the model damaged or of a training that diverged?"
    )
