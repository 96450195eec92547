"""Energies of a model and their gradient by the geometry, by a program of compiled kernels instead of torch's operations.

torch sees a single function of the weights, which it can differentiate once: a loss of energies and forces is
differentiated by weights without ever building a graph of the many operations of a model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.equivariant.activations import SILU_SCALE
from mace.graphs.graph import Graph
from mace.kernels.c_backend import BlockedTable
from mace.kernels.convolution import ConvolutionPath
from mace.kernels.emit import launcher_source
from mace.kernels.emit_contraction import ContractionTerms
from mace.kernels.emit_convolution import ConvolutionLayout
from mace.kernels.emit_geometry import GeometryShape, geometry_source
from mace.kernels.emit_matrices import matrices_source
from mace.kernels.gather import restore_order
from mace.model.interaction import LinearInteraction
from mace.model.plan import ModelPlan
from mace.model.product import Product
from mace.model.readout import LinearReadout, NonlinearReadout, ReadoutOfHeads
from mace.program.contraction import Contract
from mace.program.convolution import Convolve, ConvolveTabulated, Edges
from mace.program.density import Density, Scaled, density_source
from mace.program.geometry import Geometry
from mace.program.linear import Groups, Linear, Map, RadialOutput, Silu, View, Weight
from mace.program.passes import Block, Pass, Sections, Tape, record
from mace.program.record import Array, Extent, Memory, Recording, Workspace

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


def geometry_shape(plan: ModelPlan) -> GeometryShape:
    """Return what the kernels of the geometry depend on."""
    return GeometryShape(
        plan.l_max,
        plan.r_max,
        plan.radial_type,
        plan.num_radial_basis,
        plan.num_cutoff_basis,
        plan.distance_transform,
    )


class _Builder:
    """Builds the blocks of a model.

    Args:
        model: The model.
        tape: The tape.
        head: The only head to be evaluated; None for all.
    """

    def __init__(self, model: MACE, tape: Tape, head: int | None) -> None:
        self.plan, self.model, self.tape = model.plan, model, tape
        self.heads = range(self.plan.n_readout_heads) if head is None or self.plan.n_readout_heads == 1 else [head]
        self.weights: dict[str, Array] = {
            name: Array(name, bytes=tape.bytes, external=True) for name in dict(model.named_parameters())
        }
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._name_of = {parameter: name for name, parameter in self.parameters.items()}
        self.constants: dict[Array, Tensor] = {}
        self.given: dict[str, Array] = {}
        self.groups = Groups(self.of_graph("group starts"), self.of_graph("group index"))
        self.blocks: list[Block] = []
        n = self.plan.n_channels
        self.width = tape.padded(n)
        self.channels = Array("channels", Extent("atoms"), n, tape.bytes, external=True)
        self.energies = tape.new("energies", "atoms", len(self.heads))
        for kind in (Pass.GRADIENT, Pass.ADJOINT):
            tape.use_companion(kind, self.energies, Array(f"{kind.value} of energies", bytes=tape.bytes, external=True))

    def of_graph(self, name: str) -> Array:
        """Return an array of the graph by its name."""
        return self.given.setdefault(name, Array(name, bytes=8, external=True))

    def constant(self, name: str, values: Tensor) -> Array:
        """Return an array that holds a constant."""
        array = Array(name, bytes=self.tape.bytes, external=True)
        self.constants[array] = values.detach().contiguous()
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
            graph["charges"] = self.float64_constant("charges", torch.tensor(plan.atomic_numbers))
        tables = self.model.radial_tables
        has_basis = tables is None or any(kind.normalization == "density" for kind in plan.interactions)
        n_nodes = len(tables[0].values) if tables else 0
        self.geometry = Geometry(shape, graph, self.tape, n_nodes, has_basis, plan.pair_repulsion)
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
        array = Array(name, bytes=8, external=True)
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

    def of_degree(self, name: str, l: int, width: int = 0, n_channels: int = 0, varies: bool = True) -> View:
        """Create features of a degree, ``[atoms, 2 l + 1, channels]``."""
        width, n = width or self.width, n_channels or self.plan.n_channels
        array = self.tape.new(f"{name} {l}", "atoms", (2 * l + 1) * width, varies)
        return View(array, n, (2 * l + 1) * width, width, 2 * l + 1)

    def messages(
        self, layer: int, interaction: LinearInteraction, features: dict[int, View]
    ) -> list[tuple[Array, int, int]]:
        """Append what gives the sums over neighbors; return them by degree, with their number of paths and width."""
        tape, plan, n, n_messages = self.tape, self.plan, self.plan.n_channels, interaction.n_messages
        width = tape.padded(n_messages)
        sent, maps = {}, []
        for place, l in enumerate(interaction.l_messages):
            sent[l] = self.of_degree(f"messages {layer}", l, width, n_messages, varies=layer > 0)
            weight = Weight(self.weight(interaction.linear_up), n, n_messages, offset=place * n * n_messages)
            maps.append(Map(features[l], sent[l], weight, n**-0.5))
        self.blocks.append(Linear(maps, "atoms"))
        paths: tuple[ConvolutionPath, ...] = interaction.convolution.paths
        layout = ConvolutionLayout(paths, interaction.convolution.l_in, plan.l_max)
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
            radial = self.radial(layer, interaction, len(paths), width)
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
        terms = ContractionTerms(contraction.l_max, contraction.l_out, contraction.correlation)
        tables = {}
        for key, values in terms.tables().items():
            table = torch.as_tensor(values).to(self.tape.dtype)
            pair = self.constant("table", table), self.constant("transposed table", table.t())
            tables[key] = (*pair, tuple(table.shape))
        weights = {(int(name[1]), int(name[-1])): self.weight(value) for name, value in product.weights.items()}
        shared = plan.product_of_all_elements
        groups = Groups(self.of_graph("one group"), self.of_graph("one group")) if shared else self.groups
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


_EDGES = ("neighbor_count", "sender_of_slot", "pair_of_slot", "reverse_of_slot")


def _component(array: Array, l: int, n: int, width: int) -> View:
    """Return the view of a degree in an array of all degrees, ``[atoms, (l_max + 1)^2, channels]``."""
    return View(array, n, array.width, width, 2 * l + 1, offset=l * l * width)


@dataclass(frozen=True)
class _Program:
    """A recording with what is needed to run it.

    Attributes:
        recording: The recording.
        sections: The passes in it.
        builder: What it was recorded from.
        tape: The tape.
        gradient: Whether it computes the gradient by the vectors.
        parameters: Parameters that it reads, by their arrays.
        fixed: Addresses of its constants.
        free: Workspaces that no run uses.
        memories: Memory that no run of this or another program of the model uses.
        lock: Held while these two are changed.
    """

    recording: Recording
    sections: Sections
    builder: _Builder
    tape: Tape
    gradient: bool
    parameters: dict[Array, Tensor]
    fixed: dict[Array, int]
    free: list[Workspace]
    memories: list[Memory]
    lock: threading.Lock

    @property
    def n_heads(self) -> int:
        """Number of heads whose energies are computed."""
        return len(self.builder.heads)


class Programs:
    """The programs of a model, made where they are first used; a copy of a model starts without any."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], _Program] = {}
        self._memories: list[Memory] = []
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """Return an empty collection, as programs belong to the parameters they were made for."""
        return Programs()

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        """Pickle as an empty collection."""
        return Programs, ()

    def find(self, model: MACE, trained: bool, gradient: bool, head: int | None) -> _Program:
        """Return the program for a purpose."""
        key = model.dtype, trained, gradient, head
        with self._lock:
            if key not in self._found:
                tape = Tape(model.dtype, trained)
                builder = _Builder(model, tape, head)
                builder.build()
                sections = record(tape, builder.blocks, gradient)
                self._found[key] = self._connected(tape.finish(), sections, builder, tape, gradient)
            return self._found[key]

    def _connected(
        self, recording: Recording, sections: Sections, builder: _Builder, tape: Tape, gradient: bool
    ) -> _Program:
        read = set(recording.arrays)
        parameters = {array: builder.parameters[name] for name, array in builder.weights.items() if array in read}
        constants = {array: value for array, value in builder.constants.items() if array in read}
        fixed = {array: value.data_ptr() for array, value in constants.items()}
        own: list[Workspace] = []
        return _Program(
            recording, sections, builder, tape, gradient, parameters, fixed, own, self._memories, self._lock
        )


class Evaluated(NamedTuple):
    """Results of a program.

    Attributes:
        energies: Energy of every atom in eV, without its reference energy, ``[atoms]``.
        vectors: Vector from sender to receiver of every pair in Angstrom, ``[pairs, 3]``.
        gradient: Gradient of the sum of the energies by the vectors in eV/Angstrom, ``[pairs, 3]``, if wanted.
    """

    energies: Tensor
    vectors: Tensor
    gradient: Tensor | None


def energies_and_gradient(model: MACE, graph: Graph, gradient: bool, training: bool) -> Evaluated:
    """Evaluate the energy of every atom and the gradient of their sum by a model's program.

    Args:
        model: A model with a program.
        graph: The graph.
        gradient: Whether the gradient is wanted.
        training: Whether energies and gradient will be differentiated by the weights.
    """
    heads = graph.head_of_atoms(graph.atoms_by_element)
    channels = model.channels(graph)
    program = model.programs.find(model, training, gradient, heads if isinstance(heads, int) else None)
    scale: float | Tensor
    shift: float | Tensor
    if isinstance(heads, int):
        scale, shift = model.every_head[heads].scale, model.every_head[heads].shift
        seeds = channels.new_full((graph.n_atoms, 1), scale)
    else:
        scale, shift = model.scales.index_select(0, heads), model.shifts.index_select(0, heads)
        seeds = channels.new_zeros(graph.n_atoms, program.n_heads).scatter_(1, heads.unsqueeze(1), scale.unsqueeze(1))
    run = _Run(program, graph, seeds)
    of_heads, of_vectors = _evaluated(run, channels, training)
    chosen = of_heads if isinstance(heads, int) else of_heads.gather(1, heads.unsqueeze(1))
    energies = chosen.squeeze(1) if run.repulsion is None else chosen.squeeze(1) + run.repulsion
    energies = energies * scale + shift
    if model.condition_readout is not None:
        energies = energies + model.read(model.condition_readout, channels, graph)
    return Evaluated(restore_order(energies, graph), run.vectors, of_vectors)


def _evaluated(run: _Run, channels: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """Return the energies of rows and heads, ``[atoms, heads]``, and the gradient by the vectors."""
    if not training:
        return run.forward(channels.detach())
    results = _Energies.apply(run, channels, *run.program.parameters.values())
    return results if run.program.gradient else (results, None)


class _Run:
    """One use of a program, from its forward passes to the end of its backward passes, if it has any.

    Args:
        program: The program.
        graph: The graph.
        seeds: Factors on the energies.

    Attributes:
        vectors: Vectors of the pairs, from the forward passes on.
        repulsion: Repulsion of the rows, if the model has one.
    """

    def __init__(self, program: _Program, graph: Graph, seeds: Tensor) -> None:
        self.program, self._graph, self._seeds = program, graph, seeds.contiguous()
        self.vectors = seeds.new_empty(len(graph.pair_sender), 3)
        self.repulsion: Tensor | None = None
        self._threads = torch.get_num_threads()
        with program.lock:
            self._workspace = program.free.pop() if program.free else Workspace(program.recording, program.fixed)
            self._memory = program.memories.pop() if program.memories else Memory()

    def __del__(self) -> None:
        """Hand the memory to the next run."""
        with self.program.lock:
            self.program.free.append(self._workspace)
            self.program.memories.append(self._memory)

    def _arrays_of_graph(self) -> dict[str, Tensor]:
        """Return the arrays of the graph that the program reads, by name."""
        graph = self._graph
        counts = torch.tensor((0, *graph.element_counts))
        made = {
            "group starts": counts.cumsum(0),
            "group index": torch.tensor(graph.elements_present),
            "place": torch.arange(len(counts) - 1).repeat_interleave(counts[1:], output_size=graph.n_atoms),
            "no place": torch.zeros(graph.n_atoms, dtype=torch.int64),
            "one group": torch.zeros(2, dtype=torch.int64),
        }
        names = self.program.builder.given
        found = {name: made[name] if name in made else getattr(graph, name).contiguous() for name in names}
        return found | {name: found[name].double() for name in ("sign_of_slot", "positions", "cell")}

    def forward(self, channels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the passes of value and gradient."""
        program, graph, builder = self.program, self._graph, self.program.builder
        of_vectors = torch.empty_like(self.vectors) if program.gradient else None
        of_graph = self._arrays_of_graph()
        geometry = builder.geometry
        arrays = {builder.given[name]: value for name, value in of_graph.items()}
        arrays |= {builder.channels: channels.contiguous(), geometry.vectors: self.vectors}
        arrays |= {program.tape.of(Pass.GRADIENT, builder.energies): self._seeds}
        if of_vectors is not None:
            arrays[geometry.of_vectors] = of_vectors
        if geometry.repulsion is not None:
            arrays[geometry.weights] = self._seeds.sum(1)
        self._arrays = arrays
        self._sizes = {
            "atoms": graph.n_atoms,
            "neighbors": graph.max_neighbors,
            "pairs": len(graph.pair_sender) - 1,
            "slots": len(graph.pair_of_slot),
            "groups": len(graph.elements_present),
        }
        self._connect({})
        if not self._is_prepared():
            self._workspace.run(*program.sections.prepare)
        self._workspace.run(program.sections.value[0], program.sections.gradient[1])
        if geometry.repulsion is not None:
            self.repulsion = self._copy(geometry.repulsion, graph.n_atoms)
        return self._copy(builder.energies, graph.n_atoms, builder.energies.width), of_vectors

    def backward(self, of_energies: Tensor, changes: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Run the passes of tangent and adjoint; return the gradients by the channels and by the parameters."""
        program, builder, tape = self.program, self.program.builder, self.program.tape
        parameters = program.parameters
        sizes = [value.numel() for value in parameters.values()]
        pieces = of_energies.new_zeros(sum(sizes)).split(sizes)
        gradients = [piece.view_as(value) for piece, value in zip(pieces, parameters.values(), strict=True)]
        arrays = {tape.of(Pass.ADJOINT, builder.energies): of_energies.contiguous()}
        if changes is not None:
            arrays[builder.geometry.changes] = changes.contiguous()
        arrays |= {tape.gradient_of(array): value for array, value in zip(parameters, gradients, strict=True)}
        self._connect(arrays)
        self._workspace.run(program.sections.tangent[0], program.sections.adjoint[1])
        of_channels = tape.of(Pass.ADJOINT, builder.channels)
        return self._copy(of_channels, self._graph.n_atoms, of_channels.width), gradients

    def _connect(self, more: dict[Array, Tensor]) -> None:
        given = {array: value.data_ptr() for array, value in (self.program.parameters | self._arrays | more).items()}
        self._workspace.connect(self._memory, self._sizes, given, self._threads)

    def _is_prepared(self) -> bool:
        """Return whether the memory holds what depends on the parameters alone; note that it will."""
        program, parameters = self.program, self.program.parameters.values()
        if program.tape.is_trained or any(value.is_inference() for value in parameters):
            self._memory.prepared = None
            return False
        versions = tuple((value.data_ptr(), value._version) for value in parameters)
        state = id(program), self._graph.elements_present, versions
        known, self._memory.prepared = self._memory.prepared, state
        return known == state

    def _copy(self, array: Array, *shape: int) -> Tensor:
        return self._workspace.tensor(array, self.program.tape.dtype, *shape).clone()


class _Energies(torch.autograd.Function):
    """Energies and their gradient by the vectors, as a function of channels and weights."""

    @staticmethod
    def forward(ctx: Any, run: _Run, channels: Tensor, *weights: Tensor) -> Any:
        ctx.run = run
        energies, of_vectors = run.forward(channels)
        return energies if of_vectors is None else (energies, of_vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_energies: Tensor, changes: Tensor | None = None) -> tuple[Tensor | None, ...]:
        of_channels, gradients = ctx.run.backward(of_energies, changes)
        return (None, of_channels, *gradients)


def sources(model: MACE) -> list[str]:
    """Return the C files that the programs of a model need besides convolutions and contractions."""
    if obstacle(model.plan):
        return []
    found = [launcher_source(), matrices_source(model.dtype), geometry_source(geometry_shape(model.plan), model.dtype)]
    if any(kind.normalization == "density" for kind in model.plan.interactions):
        found.append(density_source(model.dtype))
    return found
