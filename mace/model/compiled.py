"""Energies of a model and their gradient by the geometry, by a program of compiled kernels instead of torch's operations.

torch sees a single function of the weights, which it can differentiate once: a loss of energies and forces is
differentiated by weights without ever building a graph of the many operations of a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.graphs.graph import Graph
from mace.kernels.convolution import ConvolutionPath
from mace.kernels.emit_contraction import ContractionTerms
from mace.kernels.emit_convolution import ConvolutionLayout
from mace.kernels.emit_geometry import GeometryShape, geometry_source
from mace.kernels.emit_matrices import matrices_source
from mace.kernels.gather import restore_order
from mace.model.activations import SILU_SCALE
from mace.model.interaction import LinearInteraction
from mace.model.plan import ModelPlan
from mace.model.product import Product
from mace.model.readout import LinearReadout, NonlinearReadout, ReadoutOfHeads
from mace.program.contraction import Contract
from mace.program.convolution import Convolve, Edges
from mace.program.geometry import Geometry
from mace.program.linear import Groups, Linear, Map, RadialOutput, Silu, View, Weight
from mace.program.passes import Block, Pass, Sections, Tape, record
from mace.program.record import Array, Extent, Recording, Workspace

if TYPE_CHECKING:
    from mace.model.mace import MACE


def obstacle(plan: ModelPlan) -> str | None:
    """Return why a model has no program, or None if it has one."""
    if plan.outputs[0] != "energy" or "dipole" in plan.outputs:
        return "it predicts dipoles"
    if any(kind.messages != "linear" for kind in plan.interactions):
        return "its messages are not linear"
    if any(kind.normalization != "count" for kind in plan.interactions):
        return "it divides messages by a density"
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
            tape.use_companion(
                kind, self.energies, Array(f"{kind.value} of energies", bytes=tape.bytes, external=True)
            )

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
        graph = {name: self.of_graph(name) for name in (*names, "pair_of_slot", "sign_of_slot", "row_of_atom")}
        if plan.distance_transform != "None" or plan.pair_repulsion:
            graph["radii"] = self.float64_constant("radii", self.model.radial_embedding.covalent_radii)
        if plan.pair_repulsion:
            graph["charges"] = self.float64_constant("charges", torch.tensor(plan.atomic_numbers))
        self.geometry = Geometry(shape, graph, self.tape, repulsion=plan.pair_repulsion)
        self.blocks.append(self.geometry)
        features = {0: View(self.channels, plan.n_channels, plan.n_channels, padded=False)}
        n_read = len(self.model.readouts)
        for layer, (interaction, product) in enumerate(zip(self.model.interactions, self.model.products, strict=True)):
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
            self.by_element(interaction, [features[l] for l in interaction.l_skip], [outputs[l] for l in interaction.l_skip])
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
        radial = self.radial(layer, interaction, len(paths), width)
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
        self.blocks.append(Convolve(layout, coupling, n_coupling, harmonics, radial, arrays, sums, width, edges))
        return [(array, layout.n_paths(l), width) for l, array in enumerate(sums)]

    def radial(self, layer: int, interaction: LinearInteraction, n_paths: int, width: int) -> Array:
        """Append the radial network; return the radial weights."""
        tape = self.tape
        *hidden, last = list(interaction.radial.weights)
        view, scale = View(self.geometry.basis, self.plan.num_radial_basis, self.geometry.basis.width, padded=False), 1.0
        for number, parameter in enumerate(hidden):
            view = self.hidden(f"radial {layer} {number}", view, parameter, scale, "pairs")
            scale = SILU_SCALE
        weights = tape.new(f"radial weights {layer}", "pairs", n_paths * width)
        n_inputs, scale = last.shape[0], scale * last.shape[0] ** -0.5
        self.blocks.append(
            RadialOutput(
                view, weights, self.weight(last), n_inputs, n_paths, interaction.n_messages, scale, tape.lanes
            )
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
        """Append the linear map of the sums to the atomic basis and, without a residual, the matrices of elements."""
        n, width = self.plan.n_channels, self.width
        mixed = basis if interaction.kind.residual else self.tape.new("mixed sums", "atoms", basis.width)
        by_path: list[list[Map]] = []
        for l, (array, n_paths, n_row) in enumerate(sums):
            parameter, n_messages = interaction.linear[l], interaction.n_messages
            scale = max(n_paths * n_messages, 1) ** -0.5 / interaction.avg_num_neighbors
            target = _component(mixed, l, n, width)
            # rows of several paths are contiguous only where channels fill whole vectors
            merged = n_paths if n_messages == n_row or n_paths == 0 else 1
            for path in range(0, max(n_paths, 1), merged or 1):
                n_in = merged * n_messages
                outer = (2 * l + 1) * n_paths * n_row
                source = View(array, n_in, outer, n_paths * n_row, 2 * l + 1, offset=path * n_row)
                weight = Weight(self.weight(parameter), n_in, n, offset=path * n_messages * n)
                while len(by_path) <= path:
                    by_path.append([])
                by_path[path].append(Map(source, target, weight, scale))
        for maps in by_path:
            if maps:
                self.blocks.append(Linear(maps, "atoms", adds=True, partial=len(by_path) > 1))
        if not interaction.kind.residual:
            views = [[_component(array, l, n, width) for l in interaction.l_skip] for array in (mixed, basis)]
            self.by_element(interaction, *views)

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
            one = heads[head]
            view, scale = scalars, len(one.weight) ** -0.5
            if isinstance(one, NonlinearReadout):
                view = self.hidden("readout", scalars, one.hidden, 1.0, "atoms")
                scale = one.scale * (one.n_heads * len(one.weight)) ** -0.5
            else:
                assert isinstance(one, LinearReadout)
            target = View(self.energies, 1, len(self.heads), offset=place, padded=False)
            weight = Weight(self.weight(one.weight), len(one.weight), 1)
            self.blocks.append(Linear([Map(view, target, weight, scale)], "atoms", adds=True))


_EDGES = ("neighbor_count", "sender_of_slot", "pair_of_slot", "reverse_of_slot")


def _component(array: Array, l: int, n: int, width: int) -> View:
    """Return the view of a degree in an array of all degrees, ``[atoms, (l_max + 1)^2, channels]``."""
    return View(array, n, array.width, width, 2 * l + 1, offset=l * l * width)


@dataclass(frozen=True)
class _Program:
    """A recording with what is needed to run it."""

    recording: Recording
    sections: Sections
    builder: _Builder
    tape: Tape
    gradient: bool
    free: list[Workspace]
    lock: threading.Lock

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the model by name."""
        return self.builder.parameters

    @property
    def n_heads(self) -> int:
        """Number of heads whose energies are computed."""
        return len(self.builder.heads)


class Programs:
    """The programs of a model, made where they are first used; a copy of a model starts without any."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], _Program] = {}
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
                self._found[key] = _Program(tape.finish(), sections, builder, tape, gradient, [], threading.Lock())
            return self._found[key]


def energies_and_gradient(
    model: MACE, graph: Graph, vectors: Tensor, gradient: bool, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Evaluate the energy of every atom and the gradient of their sum by a model's program.

    Args:
        model: A model with a program.
        graph: The graph.
        vectors: Vectors of the pairs in Angstrom, ``[pairs, 3]``.
        gradient: Whether the gradient is wanted.
        training: Whether the results will be differentiated by the weights.

    Returns:
        Energies in eV as `mace.model.mace.AtomicOutput` has them, ``[atoms]``, and their gradient in eV/Angstrom,
        ``[pairs, 3]``, or None.
    """
    heads = graph.head_of_atoms(graph.atoms_by_element)
    channels = model.channels(graph)
    program = model.programs.find(model, training, gradient, heads if isinstance(heads, int) else None)
    scale: float | Tensor
    shift: float | Tensor
    if isinstance(heads, int):
        scale, shift = model.every_head[heads].scale, model.every_head[heads].shift
        seeds = vectors.new_full((graph.n_atoms, 1), scale)
    else:
        scale, shift = model.scales.index_select(0, heads), model.shifts.index_select(0, heads)
        seeds = vectors.new_zeros(graph.n_atoms, program.n_heads)
        seeds.scatter_(1, heads.unsqueeze(1), scale.unsqueeze(1)) if program.n_heads > 1 else seeds.copy_(
            scale.unsqueeze(1)
        )
    run = _Run(program, graph, vectors.detach(), seeds)
    of_heads, of_vectors = _evaluated(run, channels, training)
    chosen = of_heads.squeeze(1) if program.n_heads == 1 else of_heads.gather(1, heads.unsqueeze(1)).squeeze(1)
    if run.repulsion is not None:
        chosen = chosen + run.repulsion
    if model.condition_readout is not None:
        chosen = chosen + model.read(model.condition_readout, channels, graph)
    return restore_order(chosen * scale + shift, graph), of_vectors


def _evaluated(run: _Run, channels: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """Return the energies of rows and heads, ``[atoms, heads]``, and the gradient by the vectors."""
    if not training:
        found = run.forward(channels.detach())
        run.release()
        return found
    results = _Energies.apply(run, channels, *run.program.parameters.values())
    return results if run.program.gradient else (results, None)


class _Run:
    """One use of a program, from its forward passes to the end of its backward passes.

    Args:
        program: The program.
        graph: The graph.
        vectors: Vectors of the pairs.
        seeds: Factors on the energies.
    """

    def __init__(self, program: _Program, graph: Graph, vectors: Tensor, seeds: Tensor) -> None:
        self.program, self.graph, self.parameters = program, graph, program.parameters
        self.vectors, self.seeds = vectors.contiguous(), seeds.contiguous()
        self.repulsion: Tensor | None = None
        with program.lock:
            self.workspace = program.free.pop() if program.free else Workspace(program.recording)
        self._released = False
        self._held: list[Any] = []

    def release(self) -> None:
        """Hand the memory to the next run."""
        if not self._released:
            self._released = True
            with self.program.lock:
                self.program.free.append(self.workspace)

    def __del__(self) -> None:
        """Hand back the memory of a run that was never finished."""
        self.release()

    def _addresses(self, channels: Tensor, of_vectors: Tensor | None) -> dict[Array, int]:
        builder, graph, tape = self.program.builder, self.graph, self.program.tape
        counts = np.array(graph.element_counts, dtype=np.int64)
        arrays: dict[str, Any] = {
            "group starts": np.concatenate([[0], np.cumsum(counts)]),
            "group index": np.array(graph.elements_present, dtype=np.int64),
            "place": np.repeat(np.arange(len(counts)), counts),
            "no place": np.zeros(graph.n_atoms, dtype=np.int64),
            "one group": np.zeros(2, dtype=np.int64),
        }
        found: dict[Array, int] = {}
        for name, array in builder.given.items():
            value = arrays.get(name)
            if value is None:
                value = getattr(graph, name)
                value = value.double() if name == "sign_of_slot" else value
                value = value.contiguous()
                self._held.append(value)
                found[array] = value.data_ptr()
            else:
                self._held.append(value)
                found[array] = value.ctypes.data
        found |= {array: value.data_ptr() for array, value in builder.constants.items()}
        found |= {builder.weights[name]: value.data_ptr() for name, value in self.parameters.items()}
        geometry = builder.geometry
        self._held.append(channels)
        found[builder.channels], found[geometry.vectors] = channels.data_ptr(), self.vectors.data_ptr()
        found[tape.of(Pass.GRADIENT, builder.energies)] = self.seeds.data_ptr()
        if of_vectors is not None:
            found[geometry.of_vectors] = of_vectors.data_ptr()
        return found

    def forward(self, channels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the passes of value and gradient."""
        program, graph, builder = self.program, self.graph, self.program.builder
        of_vectors = torch.empty_like(self.vectors) if program.gradient else None
        self._given = self._addresses(channels.contiguous(), of_vectors)
        if builder.geometry.repulsion is not None:
            total = self.seeds.sum(1)
            self._held.append(total)
            self._given[builder.geometry.weights] = total.data_ptr()
        self._sizes = {
            "atoms": graph.n_atoms,
            "neighbors": graph.max_neighbors,
            "pairs": len(graph.pair_sender) - 1,
            "slots": len(graph.pair_of_slot),
            "groups": len(graph.elements_present),
        }
        self.workspace.connect(self._sizes, self._given)
        self.workspace.run(program.sections.prepare[0], program.sections.gradient[1])
        dtype = program.tape.dtype
        energies = self.workspace.tensor(builder.energies, dtype, graph.n_atoms, builder.energies.width).clone()
        if builder.geometry.repulsion is not None:
            self.repulsion = self.workspace.tensor(builder.geometry.repulsion, dtype, graph.n_atoms).clone()
        return energies, of_vectors

    def backward(self, of_energies: Tensor, changes: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the passes of tangent and adjoint; return the gradients by the channels and by the weights."""
        program, builder, tape = self.program, self.program.builder, self.program.tape
        sizes = [value.numel() for value in self.parameters.values()]
        flat = of_energies.new_zeros(sum(sizes))
        gradients = {
            name: piece.view(value.shape)
            for (name, value), piece in zip(self.parameters.items(), flat.split(sizes), strict=True)
        }
        given = dict(self._given)
        of_energies = of_energies.contiguous()
        given[tape.of(Pass.ADJOINT, builder.energies)] = of_energies.data_ptr()
        if changes is not None:
            changes = changes.contiguous()
            given[builder.geometry.changes] = changes.data_ptr()
        for name, array in builder.weights.items():
            given[tape.gradient_of(array)] = gradients[name].data_ptr()
        self.workspace.connect(self._sizes, given)
        self.workspace.run(program.sections.tangent[0], program.sections.adjoint[1])
        of_channels = tape.of(Pass.ADJOINT, builder.channels)
        n = builder.channels.width
        result = self.workspace.tensor(of_channels, tape.dtype, self.graph.n_atoms, n).clone()
        return result, gradients


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
        ctx.run.release()
        return (None, of_channels, *gradients.values())


def sources(model: MACE) -> Iterator[tuple[Callable[..., str], tuple[Any, ...]]]:
    """Yield what the programs of a model need besides convolutions and contractions: function and arguments."""
    yield matrices_source, ()
    yield geometry_source, (geometry_shape(model.plan),)
