"""What a proposal depends on: numbers about the training structures, and the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mace.elements import chemical_symbol
from mace.graphs.pairs import find_pairs
from mace.properties import PROPERTIES
from mace.structures.configuration import Configuration
from mace.structures.reading import ReadResult

CUTOFFS = (4.0, 4.5, 5.0, 5.5, 6.0)
"""Angstrom; the cutoffs that are compared."""

_SAMPLE = 200


@dataclass(frozen=True)
class Neighborhood:
    """What atoms see within a cutoff.

    Attributes:
        mean: Neighbors of an atom on average.
        alone: Share of the atoms that have none.
    """

    mean: float
    alone: float


@dataclass(frozen=True)
class Facts:
    """Numbers about the training structures, isolated atoms left out.

    Attributes:
        structures: How many there are.
        mean_atoms: Atoms of a structure on average.
        largest: Atoms of the largest structure.
        elements: Atomic numbers, ascending.
        labeled: Structures with each of `PROPERTIES`.
        periodic: Structures that repeat in at least one direction.
        types: Different values of ``config_type``.
        isolated: Elements with an isolated atom of known energy.
        neighbors: By cutoff in Angstrom, on a sample of the structures.
        rms_forces: eV/Angstrom, of all components; None without forces.
        rms_stress: eV/Angstrom^3, of all components; None without stress.
        determines_energies: Whether the compositions determine an energy for each element.
    """

    structures: int
    mean_atoms: float
    largest: int
    elements: tuple[int, ...]
    labeled: Mapping[str, int]
    periodic: int
    types: int
    isolated: tuple[int, ...]
    neighbors: Mapping[float, Neighborhood]
    rms_forces: float | None
    rms_stress: float | None
    determines_energies: bool

    def symbols(self) -> str:
        """The elements in words."""
        return " ".join(chemical_symbol(number) for number in self.elements)

    def line(self) -> str:
        """Describe all of it in one line."""
        labels = ", ".join(
            name if count == self.structures else f"{name} ({count} of {self.structures})"
            for name, count in self.labeled.items()
            if count
        )
        isolated = " ".join(chemical_symbol(number) for number in self.isolated) or "none"
        return (
            f"{self.structures} structures of {self.mean_atoms:.3g} atoms on average (largest {self.largest}), "
            f"elements {self.symbols()}, {self.periodic} periodic, {self.types} config_type{'s' * (self.types > 1)}, "
            f"labels: {labels or 'none'}, isolated atoms: {isolated}"
        )


def gather_facts(training: ReadResult) -> Facts:
    """Measure what was read from the training files; there must be at least one structure."""
    configurations = training.configurations
    sizes = np.array([c.n_atoms for c in configurations])
    elements = sorted({int(z) for c in configurations for z in np.unique(c.atomic_numbers)})
    counts = np.array([[np.count_nonzero(c.atomic_numbers == z) for z in elements] for c in configurations])
    return Facts(
        structures=len(configurations),
        mean_atoms=float(sizes.mean()),
        largest=int(sizes.max()),
        elements=tuple(elements),
        labeled={name: sum(getattr(c, name) is not None for c in configurations) for name in PROPERTIES},
        periodic=sum(any(c.pbc) for c in configurations),
        types=len({c.config_type for c in configurations}),
        isolated=tuple(
            sorted({int(c.atomic_numbers[0]) for c in training.isolated_atoms if c.energy is not None} & set(elements))
        ),
        neighbors=count_neighbors(configurations),
        rms_forces=_rms([c.forces for c in configurations if c.forces is not None]),
        rms_stress=_rms([c.stress for c in configurations if c.stress is not None]),
        determines_energies=int(np.linalg.matrix_rank(counts)) == len(elements),
    )


def count_neighbors(configurations: Sequence[Configuration]) -> dict[float, Neighborhood]:
    """Count neighbors within each of `CUTOFFS` in structures spread evenly over all."""
    places = np.unique(np.linspace(0, len(configurations) - 1, _SAMPLE).round().astype(int))
    counts = []
    for configuration in (configurations[place] for place in places.tolist()):
        cell, positions = configuration.cell, configuration.positions
        sender, receiver, shift = find_pairs(positions, cell, configuration.pbc, max(CUTOFFS), configuration.where())
        lengths = np.linalg.norm(positions[receiver] - positions[sender] + shift @ cell, axis=1)
        near = [lengths <= cutoff for cutoff in CUTOFFS]
        ends = [np.concatenate([sender[mask], receiver[mask]]) for mask in near]
        counts.append(np.stack([np.bincount(end, minlength=configuration.n_atoms) for end in ends]))
    table = np.concatenate(counts, axis=1)
    return {
        cutoff: Neighborhood(float(row.mean()), float((row == 0).mean()))
        for cutoff, row in zip(CUTOFFS, table, strict=True)
    }


def _rms(arrays: Sequence[np.ndarray]) -> float | None:
    values = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)
    return float(np.sqrt(np.mean(values * values))) if len(values) else None


@dataclass(frozen=True)
class Machine:
    """Where the training will run.

    Attributes:
        device: ``cpu`` or ``cuda``, or as given.
        threads: Of the CPU.
        memory: Bytes of memory of the device; None if nobody says.
    """

    device: str
    threads: int
    memory: int | None

    @property
    def is_cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.device.partition(":")[0] == "cpu"

    def line(self) -> str:
        """Describe it in one line."""
        size = f", {self.memory / 1e9:.3g} GB of memory" if self.memory else ""
        return f"{self.device}, {self.threads} thread{'s' * (self.threads > 1)}{size}"


def look_at_machine(device: str | None, threads: int | None) -> Machine:
    """Find out where to train.

    Args:
        device: As given; None for a GPU of NVIDIA or AMD if there is one, else the CPU.
        threads: As given; None for PyTorch's choice.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    memory: int | None = None
    if device.startswith("cuda") and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    elif device.startswith("xpu") and torch.xpu.is_available():
        memory = torch.xpu.get_device_properties(torch.device(device)).total_memory
    elif device == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(device, threads or torch.get_num_threads(), memory)
