"""What mace-torch computes from the weights of a file from before its first release; run by an interpreter that has it.

    /path/to/environment/bin/python tests/parity/make_old_references.py mace_2022.model tests/parity/references/old

The classes of that time had numbers where buffers came later, so that the present ones can unpickle such a file, but
not run it. A present model is built with the same settings and given all weights of the file; what it then lacks must
be those numbers alone. Written are structures, energies, forces and stress in float64.
"""

from __future__ import annotations

import os

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the file is a pickle, of a source that is trusted here

import hashlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")

import mace  # noqa: F401  - the original; must be imported before e3nn
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from e3nn import o3
from mace import modules
from mace.calculators import MACECalculator

NUMBERS_OF_THEN = {"r_max", "atomic_numbers", "num_interactions"}
"""Buffers of the present that were attributes."""


def structures() -> list[Atoms]:
    """Molecules of all ten elements of the file, and a skewed periodic one."""
    rng = np.random.default_rng(11)
    found = [molecule(name) for name in ("CH3CONH2", "CH3SH", "PH3", "CH3Cl", "CCl4")]
    halogens = molecule("CCl4")
    halogens.numbers = [6, 9, 17, 35, 53]
    halogens.positions *= 1.1
    box = molecule("CH3OH", cell=[[4.6, 0.3, 0.0], [0.0, 5.0, 0.4], [-0.2, 0.0, 4.4]], pbc=True)
    for atoms in [*found, halogens, box]:
        atoms.rattle(0.05, rng=rng)
    return [*found, halogens, box]


def rebuilt(old: torch.nn.Module) -> torch.nn.Module:
    """Build a model of the present with the weights of an old one."""
    hidden = o3.Irreps(str(old.products[0].linear.irreps_out))
    energies = old.atomic_energies_fn.atomic_energies.numpy()
    present = modules.ScaleShiftMACE(
        r_max=float(old.r_max), num_bessel=len(old.radial_embedding.bessel_fn.bessel_weights),
        num_polynomial_cutoff=int(old.radial_embedding.cutoff_fn.p), max_ell=old.spherical_harmonics._lmax,
        num_interactions=len(old.interactions), num_elements=len(old.atomic_numbers), hidden_irreps=hidden,
        interaction_cls=type(old.interactions[-1]), interaction_cls_first=type(old.interactions[0]),
        MLP_irreps=o3.Irreps(str(old.readouts[-1].hidden_irreps)), gate=torch.nn.functional.silu,
        avg_num_neighbors=old.interactions[0].avg_num_neighbors, atomic_numbers=[int(z) for z in old.atomic_numbers],
        correlation=old.products[0].symmetric_contractions.contractions[0].correlation, atomic_energies=energies,
        atomic_inter_scale=float(old.scale_shift.scale), atomic_inter_shift=float(old.scale_shift.shift),
        radial_MLP=list(old.interactions[0].conv_tp_weights.hs[1:-1]),
    )  # fmt: skip
    missing, unexpected = present.load_state_dict(old.state_dict(), strict=False)
    filled = {name for name in missing if not name.endswith("_zeroed")}  # flags, false by default
    assert not unexpected and filled <= NUMBERS_OF_THEN, (missing, unexpected)
    return present


def main() -> None:
    """Write the references of a file."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    calculator = MACECalculator(models=[rebuilt(torch.load(path, map_location="cpu"))], device="cpu")
    arrays = {}
    for i, atoms in enumerate(structures()):
        calculator.calculate(atoms)
        told = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
        told |= {name: calculator.results[name] for name in ("energy", "forces")}
        told |= {"stress": calculator.results["stress"]} if atoms.pbc.all() else {}
        arrays |= {f"{i}/{name}": np.asarray(value) for name, value in told.items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    provenance = {"mace-torch": version("mace-torch"), "torch": torch.__version__, "file": path.name, "sha256": digest}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{path.stem}.npz", provenance=json.dumps(provenance), **arrays)
    print(provenance, *(f"{key} {value:.6f}" for key, value in arrays.items() if key.endswith("energy")), sep="\n")


if __name__ == "__main__":
    main()
