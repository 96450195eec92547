r"""The MACE model: atomic energies and dipoles from many-body messages.

Source:
    Batatia, Kovacs, Simm, Ortner, Csanyi, NeurIPS 2022, arXiv:2206.07697.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace.equivariant.spherical_harmonics import spherical_harmonics
from mace.graphs.graph import Graph
from mace.kernels.gather import directed_edges, gather_pairs, restore_order
from mace.model.condition_embedding import ConditionChannels
from mace.model.interaction import EdgeGeometry, Interaction
from mace.model.nonlinear import GatedMixing
from mace.model.plan import ModelPlan
from mace.model.product import Product
from mace.model.radial import NuclearRepulsion, RadialEmbedding
from mace.model.radial_network import NormalizedRadialNetwork
from mace.model.readout import (
    BiasedReadout,
    GatedDipoleReadout,
    LinearDipoleReadout,
    LinearReadout,
    NonlinearReadout,
    ReadoutOfHeads,
)

_OF_HEADS = {"reference_energies": "reference_energies", "scale": "scales", "shift": "shifts"}
"""Constants of heads, and the buffers that hold them."""

LARGEST_ELEMENT_EMBEDDING = 0.001
"""Bound of what radial weights of a non-linear interaction know of the elements at the start of a training."""


@dataclass(frozen=True)
class AtomicOutput:
    """What the model says of every atom; ``None`` stands for what it does not predict.

    Attributes:
        energies: Energy of every atom without its reference energy in eV, ``[atoms]``.
        dipoles: Learned dipole in e*Angstrom, without that of the charges, ``[atoms, 3]``.
        layers: Output of every layer by degree, rows in the order of elements, ``[atoms, 2 l + 1, channels]``.
    """

    energies: Tensor | None
    dipoles: Tensor | None
    layers: list[dict[int, Tensor]]


class MACE(nn.Module):
    """A model with uninitialized weights; call `initialize` or load weights.

    Args:
        plan: The plan, kept as an attribute.
        dtype: Precision of weights and constants; torch's default precision if none is given.

    Attributes:
        plan: The plan.
        every_head: Its heads, a single one for a model that does not have several.
        reference_energies: eV, float64, ``[heads, elements]``.
        scales: eV, ``[heads]``.
        shifts: eV, ``[heads]``.
        inversion: Sign of each harmonic of the opposite direction.
    """

    reference_energies: Tensor
    scales: Tensor
    shifts: Tensor
    inversion: Tensor

    def __init__(self, plan: ModelPlan, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.plan = plan
        n = plan.n_channels
        self.embedding = nn.Parameter(torch.empty(plan.n_elements, n))
        self.radial_embedding = RadialEmbedding(plan)
        self.repulsion = NuclearRepulsion(plan) if plan.pair_repulsion else None
        self.interactions = nn.ModuleList(Interaction(plan, layer) for layer in range(plan.n_layers))
        self.products = nn.ModuleList(Product(plan, layer) for layer in range(plan.n_layers))
        self.readouts = nn.ModuleList(_energy_readouts(plan) if "energy" in plan.outputs else ())
        self.dipole_readouts = nn.ModuleList(_dipole_readouts(plan) if "dipole" in plan.outputs else ())
        self.conditions = ConditionChannels(plan) if plan.conditions else None
        self.condition_readout = _of_heads(plan, lambda: LinearReadout(n)) if plan.condition_readout else None
        self.every_head = plan.every_head
        for name in ("reference_energies", "scale", "shift"):
            values = torch.tensor([getattr(head, name) for head in self.every_head], dtype=torch.float64)
            self.register_buffer(_OF_HEADS[name], values, persistent=False)
        signs = [(-1.0) ** l for l in range(plan.l_max + 1) for _ in range(2 * l + 1)]
        self.register_buffer("inversion", torch.tensor(signs), persistent=False)
        self._carry_to(dtype or torch.get_default_dtype())

    def to_precision(self, dtype: torch.dtype) -> MACE:
        """Carry weights and constants to a precision; reference energies stay float64 where the device has it.

        Constants are computed anew for a higher precision, so that they are as exact as if it had been built in it.
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
        self.reference_energies = reference if reference.device.type != "mps" else reference.to(torch.float32)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.dtype

    @property
    def r_max(self) -> Tensor:
        """Cutoff in Angstrom, as a tensor as in mace-torch, of no dimension; `plan` has all numbers."""
        return torch.tensor(self.plan.r_max, dtype=torch.float64)

    @property
    def atomic_numbers(self) -> Tensor:
        """The elements in rising order, as a tensor as in mace-torch, ``[elements]``."""
        return torch.tensor(self.plan.atomic_numbers)

    @property
    def heads(self) -> list[str]:
        """Names of the heads, as in mace-torch."""
        return list(self.plan.head_names)

    @property
    def num_interactions(self) -> Tensor:
        """Number of layers, as a tensor as in mace-torch, of no dimension."""
        return torch.tensor(self.plan.n_layers)

    def reference_of_atoms(self, graph: Graph) -> Tensor:
        """Look up the reference energy of every atom by element and head, ``[atoms]``."""
        head = graph.head_of_atoms()
        if isinstance(head, int):
            return self.reference_energies[head].index_select(0, graph.element)
        return self.reference_energies.flatten().index_select(0, head * self.plan.n_elements + graph.element)

    def use_compiled_kernels(self, compiled: bool) -> MACE:
        """Choose between the compiled kernels, on the CPU only, and those in torch, which define them."""
        for part in (*self.interactions, *self.products):
            part.compiled = compiled
        return self.use_radial_tables(None)

    @contextmanager
    def plain_kernels(self) -> Iterator[None]:
        """Use the kernels in torch and the radial networks inside a ``with`` block, whatever was chosen before."""
        parts = [part for part in self.modules() if isinstance(part, (Interaction, Product))]
        before = [(part, part.compiled) for part in parts]
        tables = [(part, part.take_table()) for part in parts if isinstance(part, Interaction)]
        for part in parts:
            part.compiled = False
        try:
            yield
        finally:
            for part, compiled in before:
                part.compiled = compiled
            for interaction, table in tables:
                interaction.use_table(table)

    def use_radial_tables(self, n_nodes: int | None) -> MACE:
        """Read radial weights from tables made of the present weights, for inference; None for the networks again.

        Precision, device and kernels must have been chosen before. Energies can then be differentiated once, by the
        geometry.

        Args:
            n_nodes: Number of nodes of each table.

        Raises:
            ValueError: If the radial weights depend on more than the length.
        """
        if n_nodes is not None and not self.has_radial_functions_of_length:
            raise ValueError("the radial weights depend on the atoms too")
        for interaction in self.interactions:
            assert isinstance(interaction, Interaction)
            interaction.use_table(None if n_nodes is None else interaction.tabulate(self.radial_embedding, n_nodes))
        return self

    @property
    def has_radial_functions_of_length(self) -> bool:
        """Whether the radial weights of a pair depend on its length alone."""
        directed = any(kind.is_directed for kind in self.plan.interactions)
        return self.plan.distance_transform == "None" and not directed

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> MACE:
        """Draw unit-normal weights; those of a contraction are divided by their number of paths.

        Where the original begins otherwise, in non-linear interactions and with biases, so does this.

        Args:
            generator: Source of the random numbers, on the CPU.
        """
        for name, parameter in self.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if ".weights.l" in name:
                values /= parameter.shape[1]
            if name.endswith(("source_embedding", "target_embedding")):
                values = LARGEST_ELEMENT_EMBEDDING * torch.erf(values / 2**0.5)  # uniform
            if name.startswith("readouts.") and name.endswith("bias"):
                values.zero_()
            parameter.copy_(values)
        for module in self.modules():
            if isinstance(module, NormalizedRadialNetwork):
                module.initialize(generator)
            if isinstance(module, GatedMixing):
                module.initialize()
            if isinstance(module, ConditionChannels):
                module.initialize(generator)
        return self

    def forward(self, graph: Graph, vectors: Tensor) -> AtomicOutput:
        """Evaluate the interaction energy and the dipole of every atom.

        Args:
            graph: Atoms and neighbors.
            vectors: From sender to receiver of every pair in Angstrom, ``[pairs, 3]``.

        Returns:
            Energies, dipoles and features; only descriptors read these, so nothing is spent on their order.
        """
        geometry = self._geometry(graph, vectors)
        channels = self._channels(graph)
        features = {0: channels.unsqueeze(1)}
        layers = []
        for interaction, product in zip(self.interactions, self.products, strict=True):
            atomic_basis, residual = interaction(features, geometry, graph)
            features = product(atomic_basis, residual, graph)
            layers.append(features)
        energies, dipoles = self._energies(layers, geometry.lengths, graph), self._dipoles(layers)
        if energies is not None and self.condition_readout is not None:
            energies = energies + self._read(self.condition_readout, channels, graph)
        return AtomicOutput(
            None if energies is None else restore_order(energies, graph),
            None if dipoles is None else restore_order(dipoles, graph),
            layers,
        )

    def _channels(self, graph: Graph) -> Tensor:
        """Return what enters the first layer, of elements and conditions, rows in order of element, ``[atoms, n]``."""
        element = graph.element.index_select(0, graph.atoms_by_element)
        channels = self.embedding.index_select(0, element) * self.plan.n_elements**-0.5
        return channels if self.conditions is None else channels + self.conditions(graph)

    def _geometry(self, graph: Graph, vectors: Tensor) -> EdgeGeometry:
        """Compute what all layers need to know of the edges."""
        lengths = vectors.norm(dim=-1)
        needed = any(interaction.needs_basis for interaction in self.interactions)
        basis, envelope = self.radial_embedding(lengths, graph) if needed else (lengths, None)
        harmonics = spherical_harmonics(vectors / lengths.unsqueeze(-1), self.plan.l_max)
        # the reverse of an edge has the opposite direction: odd harmonics change sign
        signs = torch.where(graph.sign_of_slot.unsqueeze(1) > 0, 1.0, self.inversion)
        directed = directed_edges(graph) if any(kind.is_directed for kind in self.plan.interactions) else None
        return EdgeGeometry(lengths, basis, envelope, gather_pairs(harmonics, graph) * signs, directed)

    def _energies(self, layers: list[dict[int, Tensor]], lengths: Tensor, graph: Graph) -> Tensor | None:
        """Read the energies out of all layers, rows in order of element, ``[atoms]``."""
        if "energy" not in self.plan.outputs:
            return None
        energies = self._repulsion(lengths, graph)
        for readout, features in zip(self.readouts, layers[-len(self.readouts) :], strict=True):
            energies = energies + self._read(readout, features[0].squeeze(1), graph)
        head = graph.head_of_atoms(graph.atoms_by_element)
        if isinstance(head, int):
            return energies * self.every_head[head].scale + self.every_head[head].shift
        return energies * self.scales[head] + self.shifts[head]

    def _read(self, readout: nn.Module, scalars: Tensor, graph: Graph) -> Tensor:
        """Read an energy for the head of each atom, rows in order of element, ``[atoms]``."""
        heads = (graph.head_of_atoms(graph.atoms_by_element),) if self.plan.n_readout_heads > 1 else ()
        energies: Tensor = readout(scalars, *heads)
        return energies

    def _dipoles(self, layers: list[dict[int, Tensor]]) -> Tensor | None:
        """Read the dipoles out of all layers that have a readout, rows in order of element, ``[atoms, 3]``."""
        if "dipole" not in self.plan.outputs:
            return None
        dipoles = layers[0][1].new_zeros(layers[0][1].shape[:2])
        for readout, features in zip(self.dipole_readouts, layers, strict=False):
            dipoles = dipoles + readout(features[0].squeeze(1), features[1])
        return dipoles * self.plan.dipole_scale

    def _repulsion(self, lengths: Tensor, graph: Graph) -> Tensor:
        """Return each row's share of the nuclear repulsion, ``[atoms]``."""
        if self.repulsion is None:
            return lengths.new_zeros(graph.n_atoms)
        shares = gather_pairs(self.repulsion(lengths, graph), graph)
        return shares.view(graph.n_atoms, graph.max_neighbors).sum(1)


def _energy_readouts(plan: ModelPlan) -> list[nn.Module]:
    """Build a linear readout for every layer but the last of several, which has a hidden layer.

    The other layers may go without.
    """
    n, several = plan.n_channels, plan.n_layers > 1
    linear = [_of_heads(plan, lambda: LinearReadout(n)) for _ in range(plan.n_layers - several)]
    if not several:
        return linear
    kind = BiasedReadout if plan.readout_biases else NonlinearReadout
    last = _of_heads(plan, lambda: kind(n, plan.readout_channels, plan.gate, plan.n_readout_heads))
    return [last] if plan.last_readout_only else [*linear, last]


def _of_heads(plan: ModelPlan, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a readout for every head."""
    n_heads = plan.n_readout_heads
    return ReadoutOfHeads([build() for _ in range(n_heads)]) if n_heads > 1 else build()


def _dipole_readouts(plan: ModelPlan) -> list[nn.Module]:
    """Build the same for dipoles; a hidden layer without vectors reads nothing and is left out."""
    n, several = plan.n_channels, plan.n_layers > 1
    linear: list[nn.Module] = [LinearDipoleReadout(n) for _ in range(plan.n_layers - several)]
    gated = several and plan.readout_vectors > 0
    return [*linear, GatedDipoleReadout(n, plan.readout_vectors, plan.gate)] if gated else linear
