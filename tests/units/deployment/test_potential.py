"""Is a potential what its files and arguments say, and does it see structures that move as it sees new ones?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms

from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.potential.potential import Potential, open_potential
from mace.structures.configuration import Configuration

MakeModel = Callable[..., MACE]


def configuration(atoms: Atoms) -> Configuration:
    return Configuration(atoms.numbers, atoms.positions, atoms.cell.array, tuple(atoms.pbc.tolist()))


def energies(potential: Potential, atoms: Atoms) -> list[float]:
    predictions = potential.evaluate([configuration(atoms)])
    return [float(each.energy[0]) for each in predictions if each.energy is not None]


def test_files_patterns_and_models_are_taken(make_model: MakeModel, tmp_path: Path, crystal: Atoms) -> None:
    models = [make_model(0), make_model(1, r_max=3.5)]
    paths = [save_model(tmp_path / f"{seed}.model", model) for seed, model in enumerate(models)]
    given = [models, paths, str(tmp_path / "?.model"), [str(paths[0]), models[1]]]
    opened = [open_potential(each, kernels="torch") for each in given]
    assert all(energies(each, crystal) == energies(opened[0], crystal) for each in opened)
    assert [member.place for member in opened[1].members] == [str(path) for path in paths]
    with torch.no_grad():
        models[0].embedding.zero_()
    assert energies(opened[0], crystal) == energies(opened[1], crystal), "a model in memory is copied"


def test_what_is_known_of_it(make_model: MakeModel) -> None:
    potential = open_potential([make_model(0), make_model(1, r_max=3.5)], precision="float32", kernels="torch")
    assert potential.elements == (1, 6, 8) and potential.cutoff == 4.0 and potential.heads == ("Default",)
    assert potential.dtype == torch.float32 and potential.device.type == "cpu" and "energy" in potential.outputs
    assert [(member.kernels, member.radial_tables) for member in potential.members] == [("torch", False)] * 2


def test_one_of_several_heads(crystal: Atoms) -> None:
    model = files.model(files.with_heads("low", "Default", "high"))
    atoms = configuration(crystal)
    every = open_potential(model, kernels="torch")
    for head in ("high", 2, None):
        name = "Default" if head is None else "high"
        (expected,) = every.evaluate([replace(atoms, head=name)])
        (found,) = open_potential(model, head=head, one_head=True, kernels="torch").evaluate([atoms])
        torch.testing.assert_close(found.energy, expected.energy)
    with pytest.raises(UserError, match="there is no head 3; the heads are 0 to 2"):
        open_potential(model, head=3)


def test_structures_that_move_are_seen_as_new_ones_are(make_model: MakeModel, crystal: Atoms, water: Atoms) -> None:
    potential, rng = open_potential(make_model(), skin=0.4), np.random.default_rng(0)
    for n_structures in (2, 2, 1, 2):
        for atoms in (crystal, water):
            atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        structures = [configuration(atoms) for atoms in (crystal, water)][:n_structures]
        (moving,), (new,) = (potential.evaluate(structures, follow, stress=True) for follow in (True, False))
        assert torch.equal(moving.forces, new.forces) and torch.equal(moving.energy, new.energy)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"committee": False}, "names 2 models; name one of them"),
        ({"source": []}, "me: the list of models is empty"),
        ({"source": torch.nn.Linear(1, 1)}, "me: the model is a Linear; name a model file"),
        ({"skin": float("nan")}, "me: skin is nan; it must be zero or a positive length"),
        ({"precision": "half"}, "choose float32 or float64"),
        ({"kernels": "fortran"}, "fortran is not one of auto, torch, c"),
    ],
)
def test_what_cannot_be_opened(make_model: MakeModel, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_potential(**({"source": [make_model(0), make_model(1)], "caller": "me"} | arguments))
