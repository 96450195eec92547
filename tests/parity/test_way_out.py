"""Do models of several heads that were made here give mace-torch the same numbers by head, and come back as they were?

MACE_ORIGINAL_PYTHON names an interpreter that has mace-torch.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mace.calculators import MACECalculator
from mace.compat.exporting import export_to_original
from mace.compat.importing import import_original
from mace.model.plan import ModelPlan
from mace.units import DEBYE_OF_MACE_TORCH

PYTHON = os.environ.get("MACE_ORIGINAL_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="MACE_ORIGINAL_PYTHON does not name an interpreter with mace-torch"),
]

TOLERANCE = 1e-9
TWO, THREE = ("pt_head", "Default"), ("3bpa-ccsd(t)", "a b", "Default")
NONLINEAR = {
    "interactions": [{"messages": "nonlinear", "residual": True, "normalization": "density"}] * 2,
    **{"cutoff_after_network": True, "distance_transform": "Agnesi", "pair_repulsion": True},
    **{"readout_biases": True, "last_readout_only": True, "product_of_all_elements": True},
}
LATE = {"readout_biases": True, "last_readout_only": True, "gate": "tanh"}
NO_SHIFT = {"model": "MACE", "interactions": [{"residual": False}, {"residual": True}]}
CONDITIONS = {"conditions": [files.CHARGE, files.SPIN], "condition_readout": True}
DIPOLES = {"model": "EnergyDipolesMACE", "readout_vectors": 2, "dipole_scale": DEBYE_OF_MACE_TORCH}

EVALUATE = """
import json, sys, warnings
warnings.filterwarnings("ignore")
real, sys.stdout = sys.stdout, sys.stderr
import ase.io
import numpy as np
import torch
from mace.calculators import MACECalculator
torch.set_default_dtype(torch.float64)  # in which it rounds nuclear repulsion, whatever the precision of the model
path, structures, heads, kind, keys = json.loads(sys.argv[1])
told = {}
for head in heads:
    calculator = MACECalculator(path, device="cpu", head=head, model_type=kind, info_keys=keys)
    told[head] = []
    for atoms in ase.io.read(structures, ":"):
        calculator.calculate(atoms)
        found = {name: calculator.results.get(name) for name in ("energy", "forces", "dipole")}
        told[head].append({name: np.asarray(values).tolist() for name, values in found.items() if values is not None})
print(json.dumps(told), file=real)
"""


def plan_of(names: tuple[str, ...], changes: dict[str, Any]) -> ModelPlan:
    """A plan with heads that differ in all that heads can differ in."""
    plan = files.with_heads(*names).model_dump() | changes
    if plan["model"] == "EnergyDipolesMACE":  # whose heads have no scale or shift in mace-torch
        plan["heads"] = [head | {"scale": 1.0, "shift": 0.0} for head in plan["heads"]]
    if plan["model"] == "MACE":
        plan["heads"] = [head | {"shift": 0.0} for head in plan["heads"]]
    return ModelPlan.model_validate(plan)


def structures() -> list[Atoms]:
    made = [molecule("CH3OH"), molecule("H2O", cell=[3.2, 3.4, 3.6], pbc=True)]
    for i, atoms in enumerate(made):
        atoms.rattle(0.1, seed=i)
        atoms.info |= {"total_charge": 1.0 - i, "total_spin": 1.0 + i}
    return made


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        pytest.param(TWO, {}, id="two"),
        pytest.param(THREE, LATE, id="three, late, biases"),
        pytest.param(TWO, NO_SHIFT | {"readout_biases": True}, id="no shift, biases"),
        pytest.param(THREE, NONLINEAR, id="three, nonlinear"),
        pytest.param(TWO, CONDITIONS, id="conditions"),
        pytest.param(THREE, DIPOLES, id="three, dipoles"),
    ],
)
def test_numbers_by_head_stay(names: tuple[str, ...], changes: dict[str, Any], tmp_path: Path) -> None:
    model = files.model(plan_of(names, changes)).requires_grad_(False)
    path, frames = tmp_path / "out.model", tmp_path / "structures.xyz"
    deviations = export_to_original(model, path, PYTHON).deviations
    assert max(deviations.values()) < TOLERANCE and "forces" in deviations
    again = import_original(path).model
    assert again.plan == model.plan
    for name, value in again.named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name
    ase.io.write(frames, structures())
    kind = "EnergyDipoleMACE" if "dipole" in model.plan.outputs else "MACE"
    keys = {condition.name: condition.name for condition in model.plan.conditions}
    arguments = json.dumps([str(path), str(frames), names, kind, keys])
    answer = subprocess.run(
        [PYTHON, "-c", EVALUATE, arguments], check=True, cwd=tmp_path, capture_output=True, text=True, timeout=600
    ).stdout
    told = json.loads(answer.strip().splitlines()[-1])
    calculator = MACECalculator(models=model, head=names[0])
    for i, head in enumerate(model.plan.heads):
        calculator.head = head.name
        energies = dict(zip(model.plan.atomic_numbers, head.reference_energies, strict=True))
        for atoms, theirs in zip(ase.io.read(frames, ":"), told[head.name], strict=True):
            atoms.calc = calculator
            scale = abs(theirs["energy"] - sum(energies[z] for z in atoms.numbers.tolist()))
            rounding = 4 * np.spacing(abs(theirs["energy"]))
            assert abs(atoms.get_potential_energy() - theirs["energy"]) < TOLERANCE * scale + rounding
            forces = np.array(theirs["forces"])
            assert np.abs(atoms.get_forces() - forces).max() < TOLERANCE * np.abs(forces).max()
            if "dipole" in theirs:
                ours = atoms.get_dipole_moment() / DEBYE_OF_MACE_TORCH
                np.testing.assert_allclose(ours, theirs["dipole"], atol=1e-10)
        if i:
            assert told[head.name] != told[names[0]], "heads differ"
