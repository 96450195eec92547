"""One labeled atomic structure, as read from a file and before any neighbor search."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

DEFAULT_HEAD = "Default"
"""Head of a structure of which nothing else is said, and of a model that has one."""

DEFAULT_TYPE = "Default"
"""The config_type of a structure that names none, and in weights what stands for all types that are not named."""

ISOLATED_ATOM_TYPES = ("isolatedatom", "isolated_atom")
"""The config_type of single atoms whose energies are references, in lower case."""

HEAD_KEY = "head"
"""Entry of ``Atoms.info`` with the head that a structure is for, where a model has several."""


@dataclass(frozen=True)
class Configuration:
    """A structure with its labels; a label that is absent is ``None``, never zero.

    Attributes:
        atomic_numbers: ``[atoms]``, int64.
        positions: Angstrom, ``[atoms, 3]``, float64.
        cell: Rows are the lattice vectors in Angstrom, ``[3, 3]``; all zero when there is none.
        pbc: Whether each lattice direction repeats.
        energy: Total energy in eV.
        forces: eV/Angstrom, ``[atoms, 3]``.
        stress: +dE/dstrain/V in eV/Angstrom^3, ``[3, 3]``.
        virials: -dE/dstrain in eV, ``[3, 3]``.
        dipole: e*Angstrom, ``[3]``.
        polarizability: e^2*Angstrom^2/eV, ``[3, 3]``.
        charges: Elementary charges, ``[atoms]``.
        conditions: Further inputs the energy depends on, by name: ``[1]`` for the structure or ``[atoms, values]``.
        weight: Weight of the whole configuration in the loss.
        property_weights: Weight of each of `mace.properties.PROPERTIES`; a missing key means one.
        atom_weights: Weight of each atom in the loss terms of its labels, by property, ``[atoms]``; a missing key means
            one for all atoms.
        config_type: The group to which the structure belongs in weights and tables.
        head: Name of the readout head the labels belong to.
        file: The file it was read from, as the user named it.
        index: Its index in that file, counted from zero.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    virials: np.ndarray | None = None
    dipole: np.ndarray | None = None
    polarizability: np.ndarray | None = None
    charges: np.ndarray | None = None
    conditions: dict[str, np.ndarray] = field(default_factory=dict)
    weight: float = 1.0
    property_weights: dict[str, float] = field(default_factory=dict)
    atom_weights: dict[str, np.ndarray] = field(default_factory=dict)
    config_type: str = DEFAULT_TYPE
    head: str = DEFAULT_HEAD
    file: str = ""
    index: int = 0

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    @property
    def is_isolated_atom(self) -> bool:
        """Whether it is a single atom with the ``config_type`` of isolated atoms."""
        return self.n_atoms == 1 and self.config_type.lower() in ISOLATED_ATOM_TYPES

    def has_weight(self, name: str) -> bool:
        """Return whether the label of a property exists and has weight in the loss, for at least one atom."""
        return (
            getattr(self, name) is not None
            and self.weight * self.property_weights.get(name, 1.0) > 0.0
            and bool(np.any(self.atom_weights.get(name, 1.0)))
        )

    def where(self) -> str:
        """Return the structure's name in error messages, for example ``train.xyz: structure 17``."""
        return f"{self.file}: structure {self.index}" if self.file else f"structure {self.index}"
