"""Energies of a model and their gradient by the geometry, by a program of compiled kernels instead of torch.

torch sees a single function of the weights, which it can differentiate once: a loss of energies and forces is
differentiated by weights without ever building a graph of the many operations of a model.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mace.graphs.graph import Graph
from mace.kernels.gather import restore_order
from mace.model.compiled.builder import CHANNELS, Builder
from mace.program.capture import current_capture
from mace.program.passes import Pass, Tape, record
from mace.program.record import Array
from mace.program.target import Recording, target_of
from mace.program.workspace import Memory, Workspace

if TYPE_CHECKING:
    from mace.model.mace import MACE


@dataclass(frozen=True)
class _Program:
    """A recording with what is needed to run it.

    Attributes:
        recording: The recording, whose sections are those of `record`.
        builder: What it was recorded from.
        tape: The tape.
        gradient: Whether it computes the gradient by the vectors.
        parameters: Parameters that it reads, by their arrays.
        fixed: Its constants.
        free: Workspaces that no run uses, by what `_queue` returns.
        memories: Memory that no run of this or another program of the model uses, likewise.
        lock: Held while these two are changed.
    """

    recording: Recording
    builder: Builder
    tape: Tape
    gradient: bool
    parameters: dict[Array, Tensor]
    fixed: dict[Array, Tensor]
    free: defaultdict[Hashable, list[Workspace]]
    memories: defaultdict[Hashable, list[Memory]]
    lock: threading.RLock

    def trained(self) -> dict[Array, Tensor]:
        """Return the parameters by which it differentiates, by their arrays."""
        return {array: value for array, value in self.parameters.items() if array in self.tape.trained}

    @property
    def n_heads(self) -> int:
        """Number of heads whose energies are computed."""
        return len(self.builder.heads)


PREPARE, FORWARD, BACKWARD = range(3)
"""The sections of a recording; see `record`."""

LARGE = 1 << 18
"""Number of entries of a parameter from which on its gradient has memory of its own."""


class Programs:
    """The programs of a model, made where they are first used; a copy of a model starts without any."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], _Program] = {}
        self._memories: defaultdict[Hashable, list[Memory]] = defaultdict(list)
        self._parameters: dict[str, Tensor] = {}
        self._owned: list[tuple[Mapping[str, Any], str, Any]] = []
        # reentrant, as a garbage collection inside may end runs
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """Return an empty collection, as programs belong to the parameters they were made for."""
        return Programs()

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        """Pickle as an empty collection."""
        return Programs, ()

    @property
    def n_bytes(self) -> int:
        """Memory that is kept for the arrays of runs, in bytes."""
        with self._lock:
            return sum(memory.n_bytes for memories in self._memories.values() for memory in memories)

    def find(self, model: MACE, trained: frozenset[str], gradient: bool, head: int | None) -> _Program:
        """Return the program for a purpose; see `Builder`."""
        key = model.backend, model.embedding.device, model.dtype, trained, gradient, head, model.radial_tables is None
        with self._lock:
            parameters = self.parameters(model)
            if key not in self._found:
                target = target_of(model.backend.name, model.dtype, model.backend.tf32)
                builder = Builder(model, head, parameters, trained, target)
                builder.build()
                sections = record(builder.tape, builder.blocks, gradient)
                self._found[key] = self._program(builder, target.recording(sections), gradient)
            return self._found[key]

    def parameters(self, model: MACE) -> dict[str, Tensor]:
        """Return the model's parameters by name; programs that were made for others are dropped.

        Looking through all modules takes time, so only what was found there before is compared.
        """
        with self._lock:
            if any(owner.get(name) is not value for owner, name, value in self._owned) or not self._owned:
                self._found, self._memories = {}, defaultdict(list)
                self._parameters = dict(model.named_parameters())
                owners = [owner for module in model.modules() for owner in (module._parameters, module._modules)]
                self._owned = [(owner, name, value) for owner in owners for name, value in owner.items()]
            return self._parameters

    def _program(self, builder: Builder, recording: Recording, gradient: bool) -> _Program:
        read = set(recording.table.arrays)
        names = {array: name for name, array in builder.weights.items() if array in read}
        constants = {array: value for array, value in builder.constants.items() if array in read}
        parameters = {array: self._parameters[name] for array, name in names.items()}
        own: defaultdict[Hashable, list[Workspace]] = defaultdict(list)
        return _Program(
            recording, builder, builder.tape, gradient, parameters, constants, own, self._memories, self._lock
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
        training: Whether energies and gradient will be differentiated by the weights; not with radial tables.
    """
    assert not (training and model.radial_tables), "radial tables do not move with the weights"
    heads = graph.head_of_atoms(graph.atoms_by_element)
    channels = model.channels(graph)
    trained = _trained(model, channels) if training else frozenset[str]()
    program = model.programs.find(model, trained, gradient, heads if isinstance(heads, int) else None)
    scale: float | Tensor
    shift: float | Tensor
    if isinstance(heads, int):
        scale, shift = model.every_head[heads].scale, model.every_head[heads].shift
        seeds = channels.new_full((graph.n_atoms, 1), scale)
    else:
        scale, shift = model.scales.index_select(0, heads), model.shifts.index_select(0, heads)
        seeds = channels.new_zeros(graph.n_atoms, program.n_heads).scatter_(1, heads.unsqueeze(1), scale.unsqueeze(1))
    run = _Run(program, graph, seeds)
    of_heads, of_vectors = _evaluated(run, channels)
    chosen = of_heads if isinstance(heads, int) else of_heads.gather(1, heads.unsqueeze(1))
    energies = chosen.squeeze(1) if run.repulsion is None else chosen.squeeze(1) + run.repulsion
    energies = energies * scale
    if isinstance(shift, Tensor) or shift:  # mostly there is none
        energies = energies + shift
    if model.condition_readout is not None:
        energies = energies + model.read(model.condition_readout, channels, graph)
    return Evaluated(restore_order(energies, graph), run.vectors, of_vectors)


def _trained(model: MACE, channels: Tensor) -> frozenset[str]:
    """Return the names of the parameters that are not frozen, and `CHANNELS` if one is before the first layer."""
    names = {name for name, value in model.programs.parameters(model).items() if value.requires_grad}
    return frozenset(names | {CHANNELS} if channels.requires_grad else names)


def _evaluated(run: _Run, channels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the energies of rows and heads, ``[atoms, heads]``, and the gradient by the vectors."""
    if not run.program.tape.trained:
        return run.forward(channels.detach())
    results = _Energies.apply(run, channels, *run.program.trained().values())
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
        self._is_spent = False
        self._threads = torch.get_num_threads()
        capture = current_capture()
        self._is_captured = capture is not None
        if capture is not None:
            # its memory is among that of the capture, and the repetitions go on using it
            capture.kept.append(program)
            self._workspace, self._memory = program.recording.workspace(program.fixed), Memory(seeds.device)
            return
        queue = _queue(seeds.device)
        with program.lock:
            self._workspaces, self._memories = program.free[queue], program.memories[queue]
            self._workspace = self._workspaces.pop() if self._workspaces else program.recording.workspace(program.fixed)
            self._memory = self._memories.pop() if self._memories else Memory(seeds.device)

    def __del__(self) -> None:
        """Hand the memory to the next run."""
        if self._is_captured:
            return
        self._workspace.disconnect()
        with self.program.lock:
            self._workspaces.append(self._workspace)
            self._memories.append(self._memory)

    def _arrays_of_graph(self) -> dict[str, Tensor]:
        """Return the arrays of the graph that the program reads, by name."""
        graph, names = self._graph, self.program.builder.given
        groups = graph.groups
        made = {"group starts": groups.starts, "group index": groups.index, "place": groups.place}
        if "one group" in names:  # of a contraction whose weights all elements share
            made |= {
                "no place": groups.place.new_zeros(graph.n_atoms),
                "one group": groups.index.new_zeros(1),
                "all rows": groups.starts[:: len(groups.index)],
            }
        found = {name: (made[name] if name in made else getattr(graph, name)).contiguous() for name in names}
        numbers = {"sign_of_slot", "positions", "cell"}
        return {name: value.double() if name in numbers else value.long() for name, value in found.items()}

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
            # an alias, as the tensor itself will hold the function that holds this run
            arrays[geometry.of_vectors] = of_vectors.detach()
        if geometry.repulsion is not None:
            arrays[geometry.weights] = self._seeds.sum(1)
        arrays |= {
            a: value.detach().contiguous() for a, value in program.parameters.items() if not value.is_contiguous()
        }
        self._arrays = arrays
        given = program.parameters | arrays
        self._workspace.connect(self._memory, self._sizes(), given, self._threads)
        self._prepare()
        self._workspace.run(FORWARD)
        if geometry.repulsion is not None:
            self.repulsion = self._copy(geometry.repulsion, graph.n_atoms)
        return self._copy(builder.energies, graph.n_atoms, builder.energies.width), of_vectors

    def backward(self, of_energies: Tensor, changes: Tensor | None) -> tuple[Tensor | None, list[Tensor]]:
        """Run the passes of tangent and adjoint; return the gradients by the channels and by the parameters."""
        program, builder, tape = self.program, self.program.builder, self.program.tape
        parameters = program.trained()
        gradients = _zeros_like(list(parameters.values()))
        arrays = {tape.of(Pass.ADJOINT, builder.energies): of_energies.contiguous()}
        if changes is not None:
            arrays[builder.geometry.changes] = changes.contiguous()
        arrays |= {tape.gradient_of(array): value for array, value in zip(parameters, gradients, strict=True)}
        self._workspace.give(arrays)
        if self._is_spent:
            self._workspace.run(FORWARD)
        self._is_spent = True  # these passes overwrite what the one of the gradient has left
        self._workspace.run(BACKWARD)
        if builder.channels not in tape.trained:
            return None, gradients
        of_channels = tape.of(Pass.ADJOINT, builder.channels)
        return self._copy(of_channels, self._graph.n_atoms, of_channels.width), gradients

    def _sizes(self) -> dict[str, int]:
        graph = self._graph
        return {
            "atoms": graph.n_atoms,
            "neighbors": graph.max_neighbors,
            "pairs": len(graph.pair_sender) - 1,
            "slots": len(graph.pair_of_slot),
            "groups": len(graph.groups.index),
        }

    def _prepare(self) -> None:
        """Compute what depends on the parameters alone, unless the memory is known to hold it."""
        program, parameters = self.program, self.program.parameters.values()
        state = None
        # whoever trains parameters may change them through `Tensor.data`, which is not counted
        if not program.tape.trained and not any(value.is_inference() or value.requires_grad for value in parameters):
            versions = tuple((value.data_ptr(), value._version) for value in parameters)
            state = id(program), self._graph.elements_present, len(self._graph.groups.index), versions
        if state is None or state != self._memory.prepared:
            self._memory.prepared = None
            self._workspace.run(PREPARE)
        self._memory.prepared = state

    def _copy(self, array: Array, *shape: int) -> Tensor:
        return self._workspace.tensor(array, self.program.tape.dtype, *shape).clone()


def _queue(device: torch.device) -> Hashable:
    """Return what kernels wait for each other in: memory that one has used may be given to the next one there."""
    return device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _zeros_like(parameters: list[Tensor]) -> list[Tensor]:
    """Return zeros in the shapes of parameters: small ones together, which takes less time, and large ones alone.

    The C library gets what is very large from the system, page by page, each time.
    """
    if not parameters:
        return []
    sizes = [value.numel() if value.numel() < LARGE else 0 for value in parameters]
    together = parameters[0].new_zeros(sum(sizes)).split(sizes)
    return [
        piece.view_as(value)
        if value.numel() < LARGE
        else torch.zeros_like(value, memory_format=torch.contiguous_format)
        for piece, value in zip(together, parameters, strict=True)
    ]


class _Energies(torch.autograd.Function):
    """Energies and their gradient by the vectors, as a function of channels and weights."""

    @staticmethod
    def forward(ctx: Any, run: _Run, channels: Tensor, *weights: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*weights)
        energies, of_vectors = run.forward(channels)
        return energies if of_vectors is None else (energies, of_vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_energies: Tensor, changes: Tensor | None = None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # an error if one was changed meanwhile
        of_channels, gradients = ctx.run.backward(of_energies, changes)
        return (None, of_channels, *gradients)
