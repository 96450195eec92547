"""Is a model whose weights are numbers and whose predictions are not refused, with the structure named?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.build
import ase.io
import pytest
import torch
from ase import Atoms

from mace.calculators import MACECalculator
from mace.cli import eval_configs
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import save_model

NONSENSE = r"the model gives [\w, ]+ with numbers that are NaN or infinite"


@pytest.fixture(params=["weights", "single weight", "neighbors"])
def senseless(request: pytest.FixtureRequest, make_model: Callable[..., MACE], tmp_path: Path) -> Path:
    """A model file with which nothing is wrong but that products of its numbers are too large."""
    model = make_model()
    with torch.no_grad():
        if request.param == "weights":
            for weight in model.parameters():
                weight.fill_(1e150)
        if request.param == "single weight":
            model.embedding[0, 0] = 1e250
    if request.param == "neighbors":
        model.plan = model.plan.model_copy(update={"avg_num_neighbors": 1e-300})
    return save_model(tmp_path / "senseless.model", model)


def structures() -> list[Atoms]:
    return [Atoms("O"), ase.build.molecule("CO2"), ase.build.molecule("H2O"), ase.build.molecule("CH4")]


def test_the_calculator_raises(senseless: Path) -> None:
    water = ase.build.molecule("H2O")
    water.calc = MACECalculator(senseless, radial_tables=False)
    for ask in (water.get_potential_energy, water.get_forces):
        with pytest.raises(UserError, match=NONSENSE):
            ask()
    assert "energy" not in water.calc.results


def test_the_structure_of_a_list_is_named(senseless: Path) -> None:
    with pytest.raises(UserError, match=rf"Structure [123] of the list: {NONSENSE}"):
        MACECalculator(senseless, radial_tables=False).evaluate(structures())


def test_no_file_is_written(senseless: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.xyz", structures())
    output = tmp_path / "out.xyz"
    with pytest.raises(UserError, match=rf"in.xyz: structure [123]: {NONSENSE}"):
        eval_configs.run([f"--configs={tmp_path / 'in.xyz'}", f"--model={senseless}", f"--output={output}"])
    assert not output.exists()
