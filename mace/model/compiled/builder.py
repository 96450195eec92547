"""The blocks of a model's program, from the geometry to the energies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mace.equivariant.activations import SILU_SCALE
from mace.kernels.c_source.density import density_source
from mace.kernels.c_source.geometry import GeometryShape, geometry_source
from mace.kernels.c_source.matrices import matrices_source
from mace.kernels.c_source.parts import launcher_source
from mace.kernels.compiled import BlockedTable, layout_of, tables_of, terms_of
from mace.model.interaction import LinearInteraction
from mace.model.plan import ModelPlan
from mace.model.product import Product
from mace.model.readout import LinearReadout, NonlinearReadout, ReadoutOfHeads
from mace.program.contraction import Contract
from mace.program.convolution import Convolve, ConvolveTabulated, Edges
from mace.program.density import Density, Scaled
from mace.program.geometry import Geometry
from mace.program.linear import Groups, Linear, Map, RadialOutput, Silu, View, Weight
from mace.program.passes import Block, Pass, Tape
from mace.program.record import Array, Extent
from mace.program.target import Target

if TYPE_CHECKING:
    from mace.model.mace import MACE


def obstacle(plan: ModelPlan) -> str | None:
    """Return why a model has no program, or None if it has one."""
    if plan.outputs[0] != "energy" or "dipole" in plan.outputs:
        return "it predicts dipoles"
    if any(kind.messages != "linear" for kind in plan.interactions):
        return "its messages are not linear"
    if plan.cutoff_after_network:
        return "its envelope follows the radial network"
    if plan.n_layers > 1 and (plan.readout_biases or plan.gate != "silu"):
        return "its last readout has biases or another activation than silu"
    return None


CHANNELS = "channels"
"""Name of the input of the first layer, where it stands among the names of parameters."""


def geometry_shape(plan: ModelPlan) -> GeometryShape:
    """Return what the kernels of the geometry depend on."""
    return GeometryShape(
        plan.l_max,
        plan.radial_type,
        plan.num_radial_basis,
        plan.num_cutoff_basis,
        plan.distance_transform,
    )


class Builder:
    """Builds the blocks of a model.

    Args:
        model: The model.
        head: The only head to be evaluated; None for all.
        parameters: The model's parameters by name.
        trained: Names of those by which energies and gradient will be differentiated, and `CHANNELS` if by these too.
        target: Where the kernels run.

    Attributes:
        weights: Arrays of the parameters by name.
        channels: Array of the input of the first layer.
        constants: Arrays that hold constants, with their numbers.
        given: Arrays of the graph by name.
    """

    def __init__(
        self,
        model: MACE,
        head: int | None,
        parameters: Mapping[str, Tensor],
        trained: Collection[str],
        target: Target,
    ) -> None:
        self.plan, self.model = model.plan, model
        n, n_bytes = self.plan.n_channels, model.dtype.itemsize
        self.weights = {name: Array(name, bytes=n_bytes, external=True, read_only=True) for name in parameters}
        self._name_of = {parameter: name for name, parameter in parameters.items()}
        self.channels = Array(CHANNELS, Extent("atoms"), n, n_bytes, external=True, read_only=True)
        arrays = self.weights | {CHANNELS: self.channels}
        self.tape = tape = Tape(target, [arrays[name] for name in trained])
        self.heads = range(self.plan.n_readout_heads) if head is None or self.plan.n_readout_heads == 1 else [head]
        self.constants: dict[Array, Tensor] = {}
        self.given: dict[str, Array] = {}
        self.groups = Groups(self.of_graph("group starts"), self.of_graph("group index"), self.plan.n_elements)
        self.blocks: list[Block] = []
        self.width = tape.padded(n)
        self.energies = tape.new("energies", "atoms", len(self.heads))
        for kind in (Pass.GRADIENT, Pass.ADJOINT):
            tape.use_companion(kind, self.energies, Array(f"{kind.value} of energies", bytes=tape.bytes, external=True))

    def of_graph(self, name: str) -> Array:
        """Return an array of the graph by its name."""
        return self.given.setdefault(name, Array(name, bytes=8, external=True, read_only=True))

    def constant(self, name: str, values: Tensor) -> Array:
        """Return an array that holds a constant."""
        array = Array(name, bytes=self.tape.bytes, external=True, read_only=True)
        self.constants[array] = values.detach().to(self.model.embedding.device).contiguous()
        return array

    def weight(self, parameter: Tensor) -> Array:
        """Return the array of a parameter."""
        return self.weights[self._name_of[parameter]]

    def build(self) -> None:
        """Append all blocks."""
        plan = self.plan
        shape = geometry_shape(plan)
        names = ("neighbor_count", "slots_of_pair", "pair_sender", "pair_receiver", "structure_of_atom", "element")
        more = ("pair_of_slot", "sign_of_slot", "row_of_atom", "positions", "cell", "pair_shift")
        graph = {name: self.of_graph(name) for name in (*names, *more)}
        if plan.distance_transform != "None" or plan.pair_repulsion:
            graph["radii"] = self.float64_constant("radii", self.model.radial_embedding.covalent_radii)
        if plan.pair_repulsion:
            numbers = torch.tensor(plan.atomic_numbers, device=self.model.embedding.device)
            graph["charges"] = self.float64_constant("charges", numbers)
        tables = self.model.radial_tables
        has_basis = tables is None or any(kind.normalization == "density" for kind in plan.interactions)
        n_nodes = len(tables[0].values) if tables else 0
        self.geometry = Geometry(shape, plan.r_max, graph, self.tape, n_nodes, has_basis, plan.pair_repulsion)
        self.blocks.append(self.geometry)
        features = {0: View(self.channels, plan.n_channels, plan.n_channels, padded=False)}
        n_read = len(self.model.readouts)
        for layer, (interaction, product) in enumerate(zip(self.model.interactions, self.model.products, strict=True)):
            assert isinstance(interaction, LinearInteraction) and isinstance(product, Product)
            features = self.layer(layer, interaction, product, features)
            number = layer - (plan.n_layers - n_read)
            if number >= 0:
                self.readout(self.model.readouts[number], features[0])

    def float64_constant(self, name: str, values: Tensor) -> Array:
        """Return an array that holds a constant in float64."""
        array = Array(name, bytes=8, external=True, read_only=True)
        self.constants[array] = values.detach().double().contiguous()
        return array

    def layer(
        self, layer: int, interaction: LinearInteraction, product: Product, features: dict[int, View]
    ) -> dict[int, View]:
        """Append the blocks of a layer; return its features by degree."""
        tape, plan, n, width = self.tape, self.plan, self.plan.n_channels, self.width
        sums = self.messages(layer, interaction, features)
        basis = tape.new(f"atomic basis {layer}", "atoms", (plan.l_max + 1) ** 2 * width)
        self.mix(interaction, sums, basis)
        results = [tape.new(f"products {layer} {l}", "atoms", (2 * l + 1) * width) for l in product.l_out]
        self.contract(product, basis, results)
        l_out = product.l_out
        outputs = {l: self.of_degree(f"features {layer + 1}", l) for l in l_out}
        if interaction.kind.residual:
            self.by_element(
                interaction, [features[l] for l in interaction.l_skip], [outputs[l] for l in interaction.l_skip]
            )
        maps = []
        for place, l in enumerate(l_out):
            weight = Weight(self.weight(product.linear), n, n, offset=place * n * n)
            source = View(results[place], n, (2 * l + 1) * width, width, 2 * l + 1)
            maps.append(Map(source, outputs[l], weight, n**-0.5))
        self.blocks.append(Linear(maps, "atoms", adds=True))
        return outputs

    def of_degree(self, name: str, l: int, width: int = 0, n_channels: int = 0) -> View:
        """Create features of a degree, ``[atoms, 2 l + 1, channels]``."""
        width, n = width or self.width, n_channels or self.plan.n_channels
        array = self.tape.new(f"{name} {l}", "atoms", (2 * l + 1) * width)
        return View(array, n, (2 * l + 1) * width, width, 2 * l + 1)

    def messages(
        self, layer: int, interaction: LinearInteraction, features: dict[int, View]
    ) -> list[tuple[Array, int, int]]:
        """Append what gives the sums over neighbors; return them by degree, with their number of paths and width."""
        tape, plan, n, n_messages = self.tape, self.plan, self.plan.n_channels, interaction.n_messages
        width = tape.padded(n_messages)
        sent, maps = {}, []
        for place, l in enumerate(interaction.l_messages):
            sent[l] = self.of_degree(f"messages {layer}", l, width, n_messages)
            weight = Weight(self.weight(interaction.linear_up), n, n_messages, offset=place * n * n_messages)
            maps.append(Map(features[l], sent[l], weight, n**-0.5))
        self.blocks.append(Linear(maps, "atoms"))
        layout = layout_of(interaction.convolution)
        sums = [
            tape.new(f"sums {layer} {l}", "atoms", (2 * l + 1) * layout.n_paths(l) * width)
            for l in range(plan.l_max + 1)
        ]
        coupling = self.constant("coupling", interaction.convolution.coupling)
        edges = Edges(*(self.of_graph(name) for name in _EDGES))
        arrays = [sent[l].array for l in layout.l_in]
        n_coupling = interaction.convolution.coupling.shape[1]
        harmonics = self.geometry.harmonics
        if self.model.radial_tables is None:
            radial = self.radial(layer, interaction, len(layout.paths), width)
            self.blocks.append(Convolve(layout, coupling, n_coupling, harmonics, radial, arrays, sums, width, edges))
        else:
            table, (intervals, factors) = self.model.radial_tables[layer], self.geometry.coefficients
            assert isinstance(table, BlockedTable)
            of_convolve = (layout, coupling, n_coupling, harmonics, factors, arrays, sums, width, edges)
            rows = self.constant("table of radial weights", table.rows)
            self.blocks.append(ConvolveTabulated(rows, len(table.values), intervals, *of_convolve))
        return [(array, layout.n_paths(l), width) for l, array in enumerate(sums)]

    def radial(self, layer: int, interaction: LinearInteraction, n_paths: int, width: int) -> Array:
        """Append the radial network; return the radial weights."""
        tape = self.tape
        *hidden, last = list(interaction.radial.weights)
        view, scale = (
            View(self.geometry.basis, self.plan.num_radial_basis, self.geometry.basis.width, padded=False),
            1.0,
        )
        for number, parameter in enumerate(hidden):
            view = self.hidden(f"radial {layer} {number}", view, parameter, scale, "pairs")
            scale = SILU_SCALE
        weights = tape.new(f"radial weights {layer}", "pairs", n_paths * width)
        n_inputs, scale = last.shape[0], scale * last.shape[0] ** -0.5
        self.blocks.append(
            RadialOutput(view, weights, self.weight(last), n_inputs, n_paths, interaction.n_messages, scale, tape.lanes)
        )
        return weights

    def hidden(self, name: str, source: View, parameter: Tensor, scale: float, rows: str) -> View:
        """Append a hidden layer with SiLU, whose factor is left to the next layer; return its output."""
        n_in, n_out = parameter.shape
        width = self.tape.padded(n_out)
        before, after = (self.tape.new(f"{name} {what}", rows, width) for what in ("before", "after"))
        weight = Weight(self.weight(parameter), n_in, n_out)
        self.blocks.append(Linear([Map(source, View(before, n_out, width), weight, scale * n_in**-0.5)], rows))
        self.blocks.append(Silu(before, after))
        return View(after, n_out, width)

    def mix(self, interaction: LinearInteraction, sums: Sequence[tuple[Array, int, int]], basis: Array) -> None:
        """Append the linear map of the sums to the atomic basis, then the matrices of elements and the density."""
        n, tape, kind = self.plan.n_channels, self.tape, interaction.kind
        by_density = kind.normalization == "density"
        divided = tape.new("not yet divided", "atoms", basis.width) if by_density else basis
        mixed = divided if kind.residual else tape.new("mixed sums", "atoms", basis.width)
        self.mix_paths(interaction, sums, mixed, 1.0 if by_density else interaction.avg_num_neighbors)
        if not kind.residual:
            views = [[_component(array, l, n, self.width) for l in interaction.l_skip] for array in (mixed, divided)]
            self.by_element(interaction, *views)
        if by_density:
            inputs, factors = tape.new("inputs of density", "pairs", 1), tape.new("factors of density", "atoms", 1)
            n_basis = self.plan.num_radial_basis
            source = View(self.geometry.basis, n_basis, n_basis, padded=False)
            weight = Weight(self.weight(interaction.density), n_basis, 1)
            self.blocks.append(Linear([Map(source, View(inputs, 1, 1, padded=False), weight, n_basis**-0.5)], "pairs"))
            slots = self.of_graph("neighbor_count"), self.of_graph("pair_of_slot")
            pairs = [self.of_graph(name) for name in ("pair_sender", "pair_receiver", "row_of_atom")]
            self.blocks.append(Density(inputs, factors, *slots, pairs))
            self.blocks.append(Scaled(factors, divided, basis))

    def mix_paths(
        self, interaction: LinearInteraction, sums: Sequence[tuple[Array, int, int]], mixed: Array, divisor: float
    ) -> None:
        """Append the linear maps of the sums of all paths to each degree."""
        n, n_messages = self.plan.n_channels, interaction.n_messages
        by_path: list[list[Map]] = [[] for _ in range(max(n_paths for _, n_paths, _ in sums))]
        for l, (array, n_paths, n_row) in enumerate(sums):
            scale = max(n_paths * n_messages, 1) ** -0.5 / divisor
            # rows of several paths are contiguous only where channels fill whole vectors
            merged = n_paths if n_messages == n_row or n_paths == 0 else 1
            for path in range(0, max(n_paths, 1), max(merged, 1)):
                outer, inner = (2 * l + 1) * n_paths * n_row, n_paths * n_row
                source = View(array, merged * n_messages, outer, inner, 2 * l + 1, offset=path * n_row)
                parameter = self.weight(interaction.linear[l])
                weight = Weight(parameter, merged * n_messages, n, offset=path * n_messages * n)
                by_path[path].append(Map(source, _component(mixed, l, n, self.width), weight, scale))
        used = [maps for maps in by_path if maps]
        for maps in used:
            self.blocks.append(Linear(maps, "atoms", adds=True, partial=len(used) > 1))

    def by_element(self, interaction: LinearInteraction, sources: Sequence[View], targets: Sequence[View]) -> None:
        """Append the matrices of the elements."""
        n, n_elements = self.plan.n_channels, self.plan.n_elements
        maps = []
        for place, (source, target) in enumerate(zip(sources, targets, strict=True)):
            offset = place * n_elements * n * n
            weight = Weight(self.weight(interaction.skip), n, n, offset=offset, group=n * n)
            maps.append(Map(source, target, weight, (n * n_elements) ** -0.5))
        self.blocks.append(Linear(maps, "atoms", groups=self.groups))

    def contract(self, product: Product, basis: Array, results: Sequence[Array]) -> None:
        """Append the contraction."""
        plan, contraction = self.plan, product.contraction
        terms, tables = terms_of(contraction), {}
        for key, table in tables_of(terms, self.tape.dtype).items():
            pair = self.constant("table", table), self.constant("transposed table", table.t())
            tables[key] = (*pair, tuple(table.shape))
        weights = {(int(name[1]), int(name[-1])): self.weight(value) for name, value in product.weights.items()}
        shared = plan.product_of_all_elements
        groups = Groups(self.of_graph("all rows"), self.of_graph("one group"), 1) if shared else self.groups
        place = self.of_graph("no place" if shared else "place")
        n_groups = Extent("one") if shared else Extent("groups")
        self.blocks.append(
            Contract(terms, weights, tables, basis, results, plan.n_channels, self.width, place, groups, n_groups)
        )

    def readout(self, readout: Any, scalars: View) -> None:
        """Append a readout of every head."""
        heads = list(readout.heads) if isinstance(readout, ReadoutOfHeads) else [readout]
        for place, head in enumerate(self.heads if len(heads) > 1 else [0]):
            one, view = heads[head], scalars
            assert isinstance(one, LinearReadout | NonlinearReadout)
            scale = len(one.weight) ** -0.5
            if isinstance(one, NonlinearReadout):
                view = self.hidden("readout", scalars, one.hidden, 1.0, "atoms")
                scale = one.scale * (one.n_heads * len(one.weight)) ** -0.5
            target = View(self.energies, 1, len(self.heads), offset=place, padded=False)
            weight = Weight(self.weight(one.weight), len(one.weight), 1)
            partial = len(self.heads) > 1
            self.blocks.append(Linear([Map(view, target, weight, scale)], "atoms", adds=True, partial=partial))


_EDGES = ("neighbor_count", "sender_of_slot", "pair_of_slot", "reverse_of_slot", "slots_of_pair")


def _component(array: Array, l: int, n: int, width: int) -> View:
    """Return the view of a degree in an array of all degrees, ``[atoms, (l_max + 1)^2, channels]``."""
    return View(array, n, array.width, width, 2 * l + 1, offset=l * l * width)


def sources(model: MACE) -> list[str]:
    """Return the C files that the programs of a model need besides convolutions and contractions."""
    if obstacle(model.plan):
        return []
    found = [launcher_source(), matrices_source(model.dtype), geometry_source(geometry_shape(model.plan), model.dtype)]
    if any(kind.normalization == "density" for kind in model.plan.interactions):
        found.append(density_source(model.dtype))
    return found
