"""Does a file from before the first release of mace-torch give the numbers that mace-torch computes from its weights?

The file is not part of the repository; MACE_OLD_MODELS names the folder it is in.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mace.calculators import MACECalculator

FOLDER = Path(os.environ.get("MACE_OLD_MODELS", Path(__file__).parents[3] / "shared" / "data" / "legacy_models"))
REFERENCES = Path(__file__).parent / "references" / "old" / "mace_2022.npz"
RELATIVE = 1e-12


@pytest.mark.skipif(not (FOLDER / "mace_2022.model").is_file(), reason="MACE_OLD_MODELS names no folder of old models")
def test_numbers_where_buffers_came_later() -> None:
    data = np.load(REFERENCES)
    calculator = MACECalculator(FOLDER / "mace_2022.model")
    seen: set[int] = set()
    for i in range(len({key.partition("/")[0] for key in data if "/" in key})):
        numbers, positions, cell, pbc = (data[f"{i}/{key}"] for key in ("numbers", "positions", "cell", "pbc"))
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc, calculator=calculator)
        seen |= set(numbers.tolist())
        assert atoms.get_potential_energy() == pytest.approx(float(data[f"{i}/energy"]), rel=RELATIVE)
        forces = data[f"{i}/forces"]
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=RELATIVE * np.abs(forces).max())
        if pbc.all():
            stress = data[f"{i}/stress"]
            np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=RELATIVE * np.abs(stress).max())
    assert seen == set(calculator.z_table.zs)
