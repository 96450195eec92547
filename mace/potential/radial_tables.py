"""Radial tables for simulations, used if a test shows that they change forces no more than rounding does."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable, covalent_radii
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH
from mace.kernels.compiler import CompilationError
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.structures.condition_values import example_values
from mace.structures.configuration import Configuration

_LOGGER = logging.getLogger(__name__)

LARGEST_ERROR = 1.0e-5
"""Largest change of a force of the test structure allowed for tables, in eV/Angstrom."""

NUMBERS_OF_NODES = (256, 512)
"""Table sizes to try, in this order; the smaller table fits better into the processor's cache."""


def choose_radial_tables(model: MACE, wanted: bool | None = None) -> bool:
    """Let a model that is only evaluated read its radial functions from tables, if these are accurate enough.

    Args:
        model: The model, on its device, in its precision and with its kernels chosen; its parameters must not change
            afterwards.
        wanted: True for tables, False for none; None for tables if the precision is float32, whose rounding errors are
            of the same size, and the kernels are compiled, which read tables fast.

    Returns:
        Whether tables are used.

    Raises:
        UserError: If tables are requested but not possible.
    """
    if wanted is False or (wanted is None and model.dtype != torch.float32):
        return False
    reason = _obstacle(model)
    if reason and wanted is None:
        return False
    if reason:
        raise UserError(f"radial_tables=True is not possible, because {reason}.")
    errors = []
    for n_nodes in NUMBERS_OF_NODES:
        errors.append(largest_error(model, n_nodes))
        if errors[-1] < LARGEST_ERROR:
            model.use_radial_tables(n_nodes)
            _LOGGER.info(
                "Radial functions come from tables of %d points; forces of a test structure change by %.1e eV/A",
                n_nodes,
                errors[-1],
            )
            return True
    text = f"tables of {NUMBERS_OF_NODES[-1]} points change forces of a test structure by {errors[-1]:.1e} eV/A"
    if wanted:
        raise UserError(f"radial_tables=True is not possible, because {text}.")
    _LOGGER.warning("Radial functions are not tabulated, because %s; evaluation is slower", text)
    return False


def _obstacle(model: MACE) -> str | None:
    """Return why a model cannot use tables, or None if it can."""
    if not model.has_radial_functions_of_length:
        return "the radial functions depend on the atoms, not on their distance alone"
    if not model.backend.reads_tables_fast:
        return "the kernels are not compiled"
    try:
        model.backend.prepare(model.kernels(), model.dtype, tables=True)
    except CompilationError as error:
        return str(error)
    return None


def largest_error(model: MACE, n_nodes: int) -> float:
    """Return the largest change that tables cause in forces or dipoles of a test structure, computed in float64.

    Returns:
        The change in eV/Angstrom or e*Angstrom.
    """
    exact = deepcopy(model).requires_grad_(False).use_backend(TORCH).to_precision(torch.float64)
    plan = model.plan
    structures = [replace(disordered_structure(model), head=name) for name in plan.head_names]
    graph = graph_of_structures(structures, ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names)
    from_networks = _of_atoms(exact, graph)
    return float((from_networks - _of_atoms(exact.use_radial_tables(n_nodes), graph)).abs().max())


def _of_atoms(model: MACE, graph: Graph) -> Tensor:
    """Return the forces and atomic dipoles that the model predicts, ``[properties, atoms, 3]``."""
    prediction = predict(model, graph)
    return torch.stack([p for p in (prediction.forces, prediction.atomic_dipoles) if p is not None])


def disordered_structure(model: MACE) -> Configuration:
    """Return a disordered lattice of the model's elements, with a realistic density and longer than the cutoff."""
    known = model.plan.atomic_numbers
    spacing = 1.7 * covalent_radii(known).mean()
    shape = (2, 2, int(model.plan.r_max / spacing) + 3)
    lattice = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3) * spacing
    positions = lattice + np.random.default_rng(0).uniform(-0.2, 0.2, lattice.shape) * spacing
    numbers = np.array(known)[np.arange(len(lattice)) % len(known)]
    conditions = example_values(model.plan.conditions, len(numbers))
    return Configuration(numbers, positions, np.zeros((3, 3)), (False, False, False), conditions=conditions)
