r"""The MACE model: atomic energies and dipoles from many-body messages.

Source:
    Batatia, Kovacs, Simm, Ortner, Csanyi, NeurIPS 2022, arXiv:2206.07697.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.backend import TORCH, Backend
from mace.kernels.c_source.parts import TYPES
from mace.kernels.convolution import Convolution
from mace.kernels.gather import directed_edges, gather_pairs, restore_order, spread_segments, sum_slots
from mace.kernels.radial_table import RadialTable
from mace.kernels.slopes import lengths_and_harmonics
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.model.compiled.builder import obstacle
from mace.model.compiled.runs import Programs
from mace.model.condition_embedding import ConditionChannels
from mace.model.interaction import AttentionInteraction, EdgeGeometry, Interaction, LinearInteraction
from mace.model.nonlinear import NonlinearInteraction
from mace.model.plan import ModelPlan
from mace.model.product import Product
from mace.model.radial import NuclearRepulsion, RadialEmbedding
from mace.model.radial_network import NormalizedRadialNetwork
from mace.model.readout import LinearReadout, dipole_readouts, energy_readouts, of_heads
from mace.model.roles import declared_roles, learned
from mace.processes.devices import widest

_OF_HEADS = {"reference_energies": "reference_energies", "scale": "scales", "shift": "shifts"}
"""Constants of heads, and the names of the buffers that hold them."""

INTERACTIONS: dict[str, type[Interaction]] = {
    "linear": LinearInteraction,
    "attention": AttentionInteraction,
    "nonlinear": NonlinearInteraction,
}
"""Interaction classes by their kind of messages."""


@dataclass(frozen=True)
class AtomicOutput:
    """Output of the model for every atom; ``None`` for what it does not predict.

    Attributes:
        energies: Energy of every atom in eV, without its reference energy, ``[atoms]``.
        dipoles: Learned atomic dipoles in e*Angstrom, without the contribution of the charges, ``[atoms, 3]``.
        layers: Output of every layer by degree, rows sorted by element, ``[atoms, 2 l + 1, channels]``.
    """

    energies: Tensor | None
    dipoles: Tensor | None
    layers: list[dict[int, Tensor]]


class MACE(nn.Module):
    """A MACE model with uninitialized weights; call `initialize` or load weights.

    Args:
        plan: The plan, kept as an attribute.
        dtype: Precision of weights and constants; torch's default precision if none is given.

    Attributes:
        plan: The plan.
        roles: Roles of the parameters, by name; see `mace.model.roles.Role`.
        backend: The back end that evaluates the inner loops; see `use_backend`.
        tf32: Whether kernels may round the factors of products in radial networks and linear maps to TensorFloat-32, if
            the weights are float32 and the device has it.
        radial_tables: Radial tables of every layer; None if networks are evaluated; see `use_radial_tables`.
        every_head: Plans of its heads; a single one for a model without several.
        reference_energies: Energies of isolated atoms in eV, float64, ``[heads, elements]``.
        scales: Factors on the learned energies in eV, ``[heads]``.
        shifts: Constants added to the learned energies in eV, ``[heads]``.
        inversion: Sign of each harmonic under inversion of the direction.
    """

    reference_energies: Tensor
    scales: Tensor
    shifts: Tensor
    inversion: Tensor

    def __init__(self, plan: ModelPlan, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.backend: Backend = TORCH
        self.tf32 = False
        self.programs = Programs()
        self.radial_tables: tuple[RadialTable, ...] | None = None
        n = plan.n_channels
        self.embedding = learned(plan.n_elements, n, group="embedding", element_axis=0)
        self.radial_embedding = RadialEmbedding(plan)
        self.repulsion = NuclearRepulsion(plan) if plan.pair_repulsion else None
        self.interactions = nn.ModuleList(
            INTERACTIONS[kind.messages](plan, layer) for layer, kind in enumerate(plan.interactions)
        )
        self.products = nn.ModuleList(Product(plan, layer) for layer in range(plan.n_layers))
        self.readouts = nn.ModuleList(energy_readouts(plan) if "energy" in plan.outputs else ())
        self.dipole_readouts = nn.ModuleList(dipole_readouts(plan) if "dipole" in plan.outputs else ())
        self.conditions = ConditionChannels(plan) if plan.conditions else None
        self.condition_readout = (
            of_heads(plan, lambda: LinearReadout(n, "conditions")) if plan.condition_readout else None
        )
        self.roles = declared_roles(self)
        self.every_head = plan.every_head
        for name in ("reference_energies", "scale", "shift"):
            values = torch.tensor([getattr(head, name) for head in self.every_head], dtype=torch.float64)
            self.register_buffer(_OF_HEADS[name], values, persistent=False)
        signs = [(-1.0) ** l for l in range(plan.l_max + 1) for _ in range(2 * l + 1)]
        self.register_buffer("inversion", torch.tensor(signs), persistent=False)
        self._carry_to(dtype or torch.get_default_dtype())

    def to_precision(self, dtype: torch.dtype) -> MACE:
        """Convert weights and constants to a precision; reference energies stay float64 if the device supports it.

        For a higher precision, constants are recomputed, so that they are as exact as if built in that precision.
        """
        rounded = torch.finfo(self.dtype).eps > torch.finfo(dtype).eps
        self._carry_to(dtype)
        if rounded:
            for name, constant in MACE(self.plan, dtype).named_buffers():
                self.get_buffer(name).copy_(constant)
        return self

    def _carry_to(self, dtype: torch.dtype) -> MACE:
        reference = self.reference_energies
        self.use_radial_tables(None)
        self.to(dtype)
        self.reference_energies = reference.to(widest(reference.device))
        return self

    def move(self, device: torch.device | str) -> MACE:
        """Carry the model to a device, in place; its reference energies get the widest precision that this has."""
        self.reference_energies = self.reference_energies.to(widest(torch.device(device)))
        return self.to(device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.dtype

    @property
    def r_max(self) -> Tensor:
        """Cutoff in Angstrom, as a scalar tensor as in mace-torch; `plan` has all numbers."""
        return torch.tensor(self.plan.r_max, dtype=torch.float64)

    @property
    def atomic_numbers(self) -> Tensor:
        """The elements in increasing order, as a tensor as in mace-torch, ``[elements]``."""
        return torch.tensor(self.plan.atomic_numbers)

    @property
    def heads(self) -> list[str]:
        """Names of the heads, as in mace-torch."""
        return list(self.plan.head_names)

    @property
    def num_interactions(self) -> Tensor:
        """Number of layers, as a scalar tensor as in mace-torch."""
        return torch.tensor(self.plan.n_layers)

    def reference_of_atoms(self, graph: Graph) -> Tensor:
        """Look up the reference energy of every atom by element and head, ``[atoms]``."""
        head = graph.head_of_atoms()
        if isinstance(head, int):
            return self.reference_energies[head].index_select(0, graph.element)
        return self.reference_energies.flatten().index_select(0, head * self.plan.n_elements + graph.element)

    def kernels(self) -> list[Convolution | SymmetricContraction]:
        """List the convolutions and contractions that a back end evaluates."""
        return [module for module in self.modules() if isinstance(module, (Convolution, SymmetricContraction))]

    def use_backend(self, backend: Backend) -> MACE:
        """Choose the back end that evaluates the inner loops, as defined in `mace.kernels.backend`."""
        self.backend, self.radial_tables = backend, None
        return self

    @property
    def has_program(self) -> bool:
        """Whether energies and their gradient are computed by one program of compiled kernels."""
        runs = self.dtype in TYPES and self.backend.has_programs(self.embedding.device)
        return runs and obstacle(self.plan) is None

    @contextmanager
    def plain_kernels(self) -> Iterator[None]:
        """Use torch kernels and radial networks inside a ``with`` block, regardless of earlier choices."""
        before = self.backend, self.radial_tables
        self.use_backend(TORCH)
        try:
            yield
        finally:
            self.backend, self.radial_tables = before

    def use_radial_tables(self, n_nodes: int | None) -> MACE:
        """Read radial weights from tables made from the current parameters, for inference only.

        Precision, device and kernels must be chosen before. Energies can then be differentiated only once, with respect
        to the geometry.

        Args:
            n_nodes: Number of nodes of each table; None to return to the radial networks.

        Raises:
            ValueError: If the radial weights depend on more than the distance.
        """
        if n_nodes is not None and not self.has_radial_functions_of_length:
            raise ValueError("the radial weights depend on the atoms too")
        self.radial_tables, self.programs = None, Programs()
        if n_nodes is not None:
            layers = (layer for layer in self.interactions if isinstance(layer, Interaction))
            tables = (layer.tabulate(self.radial_embedding, n_nodes) for layer in layers)
            self.radial_tables = tuple(self.backend.prepare_table(table) for table in tables)
        return self

    @property
    def has_radial_functions_of_length(self) -> bool:
        """Whether the radial weights of a pair depend on its distance alone."""
        return self.plan.distance_transform == "None" and not self.plan.is_directed

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> MACE:
        """Draw weights from a unit normal; those of a contraction are divided by their number of paths.

        Non-linear interactions, conditions and biases are initialized differently, as in the original.

        Args:
            generator: Source of the random numbers, on the CPU.
        """
        for name, parameter in self.named_parameters():
            values, start = (
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64),
                self.roles[name].start,
            )
            parameter.copy_(values if start is None else start(values))
        for module in self.modules():
            if isinstance(module, (NormalizedRadialNetwork, ConditionChannels)):  # these overwrite the values
                module.initialize(generator)
        return self

    def forward(self, graph: Graph, vectors: Tensor) -> AtomicOutput:
        """Evaluate the interaction energy and the dipole of every atom.

        Args:
            graph: The graph of atoms and neighbors.
            vectors: Vector from sender to receiver of every pair in Angstrom, ``[pairs, 3]``.

        Returns:
            Energies, dipoles and features; features stay sorted by element, as only descriptors need them.
        """
        geometry = self._geometry(graph, vectors)
        channels = self.channels(graph)
        features = {0: channels.unsqueeze(1)}
        layers, tables = [], self.radial_tables or [None] * self.plan.n_layers
        for interaction, product, table in zip(self.interactions, self.products, tables, strict=True):
            atomic_basis, residual = interaction(features, geometry, graph, self.backend, table)
            features = product(atomic_basis, residual, graph, self.backend)
            layers.append(features)
        energies, dipoles = self._energies(layers, geometry.lengths, graph), self._dipoles(layers)
        if energies is not None and self.condition_readout is not None:
            energies = energies + self.read(self.condition_readout, channels, graph)
        return AtomicOutput(
            None if energies is None else restore_order(energies, graph),
            None if dipoles is None else restore_order(dipoles, graph),
            layers,
        )

    def channels(self, graph: Graph) -> Tensor:
        """Return the input of the first layer from elements and conditions, rows sorted by element, ``[atoms, n]``."""
        element = graph.element.index_select(0, graph.atoms_by_element)
        channels = spread_segments(self.embedding, element) * self.plan.n_elements**-0.5
        return channels if self.conditions is None else channels + self.conditions(graph)

    def _geometry(self, graph: Graph, vectors: Tensor) -> EdgeGeometry:
        """Compute the geometry of the edges that all layers share."""
        lengths, harmonics = lengths_and_harmonics(vectors, self.plan.l_max)
        # radial tables do not need the basis, unless a learned density depends on it
        needed = self.radial_tables is None or any(kind.normalization == "density" for kind in self.plan.interactions)
        basis, envelope = self.radial_embedding(lengths, graph) if needed else (lengths, None)
        # the reverse of an edge has the opposite direction, so odd harmonics change sign
        signs = torch.where(graph.sign_of_slot.unsqueeze(1) > 0, 1.0, self.inversion)
        directed = directed_edges(graph) if self.plan.is_directed else None
        return EdgeGeometry(lengths, basis, envelope, gather_pairs(harmonics, graph) * signs, directed)

    def _energies(self, layers: list[dict[int, Tensor]], lengths: Tensor, graph: Graph) -> Tensor | None:
        """Sum the energy readouts of all layers, scaled and shifted, rows sorted by element, ``[atoms]``."""
        if "energy" not in self.plan.outputs:
            return None
        energies = lengths.new_zeros(graph.n_atoms)
        if self.repulsion is not None:
            energies = sum_slots(gather_pairs(self.repulsion(lengths, graph), graph), graph)
        for readout, features in zip(self.readouts, layers[-len(self.readouts) :], strict=True):
            energies = energies + self.read(readout, features[0].squeeze(1), graph)
        head = graph.head_of_atoms(graph.atoms_by_element)
        if isinstance(head, int):
            return energies * self.every_head[head].scale + self.every_head[head].shift
        return energies * self.scales[head] + self.shifts[head]

    def read(self, readout: nn.Module, scalars: Tensor, graph: Graph) -> Tensor:
        """Apply a readout with the head of each atom, rows sorted by element, ``[atoms]``."""
        heads = (graph.head_of_atoms(graph.atoms_by_element),) if self.plan.n_readout_heads > 1 else ()
        energies: Tensor = readout(scalars, *heads)
        return energies

    def _dipoles(self, layers: list[dict[int, Tensor]]) -> Tensor | None:
        """Sum the dipole readouts of all layers that have one, scaled, rows sorted by element, ``[atoms, 3]``."""
        if "dipole" not in self.plan.outputs:
            return None
        dipoles = layers[0][1].new_zeros(layers[0][1].shape[:2])
        for readout, features in zip(self.dipole_readouts, layers, strict=False):
            dipoles = dipoles + readout(features[0].squeeze(1), features[1])
        return dipoles * self.plan.dipole_scale
