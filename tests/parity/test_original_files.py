"""Do files that mace-torch wrote give its own numbers, and files written for it too?

The files are made by make_models.py, in environments of their own, and are not part of the
repository; MACE_COMPAT_FIXTURES names the folder they were written to. MACE_ORIGINAL_PYTHON names an interpreter that
has mace-torch, for the way back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from mace.calculators import MACECalculator
from mace.compat.exporting import export_to_original
from mace.compat.importing import import_original, known_from
from mace.errors import UserError
from mace.model.plan import HeadPlan
from mace.structures.configuration import DEFAULT_HEAD
from mace.units import DEBYE_OF_MACE_TORCH

FOLDER = os.environ.get("MACE_COMPAT_FIXTURES", "")
PYTHON = os.environ.get("MACE_ORIGINAL_PYTHON", "")
REFUSED = {"mirror_images": "use_so3=True", "0.3.8-soft": "Soft transform is the one mace-torch had before 0.3.10"}
"""What is said to files that cannot be converted, by name of the case, after the version if it is that of one only."""

PREDICTED = ("energy", "forces", "stress", "dipole")
METHANOL, SILICON, SLAB = range(3)
RELATIVE = 1e-9


def found() -> list[Any]:
    """One case per file; a single skipped one if there are none."""
    paths = sorted(Path(FOLDER).glob("*/*.model")) if FOLDER else []
    if not paths:
        reason = "MACE_COMPAT_FIXTURES does not name a folder of model files of mace-torch"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in paths]


def refusal_of(path: Path) -> str | None:
    """What is said to a file, if it cannot be converted."""
    return REFUSED.get(path.stem, REFUSED.get(f"{path.parent.name}-{path.stem}"))


def references(path: Path) -> Any:
    """What mace-torch computed from the file."""
    return np.load(path.with_suffix(".npz"))


def structure(data: Any, prefix: str) -> Atoms:
    numbers, positions, cell, pbc = (data[f"{prefix}/{key}"] for key in ("numbers", "positions", "cell", "pbc"))
    atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
    if f"{prefix}/charges" in data:
        atoms.set_array("Qs", data[f"{prefix}/charges"])
    for key in data:
        place, _, name = key.removeprefix(f"{prefix}/").partition("/")
        if key.startswith(prefix) and place == "info":
            atoms.info[name] = data[key].item()
        if key.startswith(prefix) and place == "arrays":
            atoms.set_array(name, data[key])
    return atoms


def variants(data: Any) -> list[tuple[int, str]]:
    """Each structure, and the same under other conditions, with what the keys of its numbers begin with."""
    return [
        (i, prefix)
        for i in (METHANOL, SILICON, SLAB)
        for prefix in (f"{i}", *(f"{i}/{j}" for j in range(1, 9)))
        if f"{prefix}/numbers" in data
    ]


def deviation(ours: Any, theirs: Any, scale: float | None = None) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / (scale or np.abs(theirs).max()))


@pytest.mark.parametrize("path", found())
def test_the_numbers_are_those_of_the_original(path: Path) -> None:
    """Energies without the isolated atoms, forces, dipoles, and the stress of the crystal.

    The original divides the stress of a slab by the volume of an inflated cell, so that one is not compared.
    """
    data = references(path)
    if refusal := refusal_of(path):
        with pytest.raises(UserError, match=refusal):
            import_original(path)
        return
    model = import_original(path).model.to_precision(torch.float64)
    heads = json.loads(str(data["settings"]))["heads"]
    assert list(model.plan.head_names) == (heads or [DEFAULT_HEAD])
    calculator = MACECalculator(models=model, head=model.plan.head_names[0])
    for head in model.plan.every_head:
        calculator.head = head.name
        of_head = f"head {head.name}/" if heads else ""
        for i, prefix in variants(data):
            expected = {key: data.get(f"{of_head}{prefix}/{key}") for key in PREDICTED}
            check(calculator, head, structure(data, prefix), expected, stress=i == SILICON)


def check(calculator: MACECalculator, head: HeadPlan, atoms: Atoms, expected: dict[str, Any], stress: bool) -> None:
    """Compare what is computed of a structure, for one head."""
    (model,) = calculator.models
    atoms.calc = calculator
    if "dipole" in model.plan.outputs:
        assert deviation(atoms.get_dipole_moment() / DEBYE_OF_MACE_TORCH, expected["dipole"]) < RELATIVE
    if "energy" not in model.plan.outputs:
        return
    energies = dict(zip(model.plan.atomic_numbers, head.reference_energies, strict=True))
    interaction = abs(expected["energy"] - sum(energies[z] for z in atoms.numbers.tolist()))
    # the stored sum is rounded, which may be more than that where the atoms interact by less than a meV
    rounding = 2 * np.spacing(abs(expected["energy"]))
    assert abs(atoms.get_potential_energy() - expected["energy"]) < RELATIVE * interaction + rounding
    assert deviation(atoms.get_forces(), expected["forces"]) < RELATIVE
    if stress:
        assert deviation(atoms.get_stress(), expected["stress"]) < RELATIVE


@pytest.mark.parametrize("path", found())
def test_the_way_back(path: Path, tmp_path: Path) -> None:
    """Written for the original and evaluated by it, the numbers are still the same; `export_to_original` compares."""
    if not PYTHON:
        pytest.skip("MACE_ORIGINAL_PYTHON does not name an interpreter with mace-torch")
    if refusal_of(path):
        pytest.skip("this model does not exist here")
    model = import_original(path).model.to_precision(torch.float64).requires_grad_(False)
    export = export_to_original(model, tmp_path / "back.model", PYTHON)
    assert max(export.deviations.values()) < RELATIVE
    again = import_original(tmp_path / "back.model").model
    assert again.plan == model.plan
    for name, value in again.named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name


@pytest.mark.parametrize("path", found())
def test_checkpoints_equal_their_models(path: Path) -> None:
    """A training checkpoint, with the model of the same run beside it, gives the same model."""
    checkpoints = sorted(path.parent.glob(f"{path.stem}_run-*.pt"))
    if not checkpoints:
        pytest.skip("no checkpoint was written for this case")
    model = import_original(path).model
    again = import_original(checkpoints[0], known=known_from(path)).model
    assert again.plan == model.plan
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in again.named_parameters())


@pytest.mark.skipif(not PYTHON, reason="MACE_ORIGINAL_PYTHON does not name an interpreter with mace-torch")
def test_files_are_made_by_the_script(tmp_path: Path) -> None:
    """The script of the fixtures runs, and what it writes can be opened."""
    script = Path(__file__).with_name("make_models.py")
    subprocess.run([PYTHON, script, tmp_path, "one_layer"], check=True, cwd=tmp_path, capture_output=True, timeout=600)
    (path,) = tmp_path.glob("*/one_layer.model")
    assert import_original(path).model.plan.n_layers == 1
    assert "mace.modules.models" not in sys.modules
