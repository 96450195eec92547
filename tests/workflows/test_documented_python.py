"""Does the Python in the documentation run? What the reader is supposed to have lies in a folder, made in a moment."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ase.build import molecule
from ase.io import write
from documentation_blocks import Block, all_blocks
from original_files import CHARGE, PLAN, SPIN, tree_of, with_heads, write_original
from original_files import model as model_of

from mace.model.model_file import ModelMetadata, save_model
from mace.reporting.records import RecordWriter, results_path

EXECUTED_ELSEWHERE = {"README.md": "test_readme.py", "docs/tutorial.md": "test_tutorial.py"}
"""Pages that other tests go through from beginning to end."""

NOT_EXECUTED = {"mace_mp(": "it downloads a model"}
"""What a block contains, and why it is not executed."""

NEEDED = {"mace_torchsim": "torch_sim"}
"""What a block contains, and the package it needs."""

BLOCKS = [block for block in all_blocks("python") if block.where.partition(":")[0] not in EXECUTED_ELSEWHERE]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files the pages speak of: models without training, structures, the history of a run."""
    folder = tmp_path_factory.mktemp("reader")
    energies = {1: -13.6, 6: -1027.2, 8: -2041.8, 14: -102.5}
    weak = {"scale": 1e-3, "atomic_numbers": tuple(energies), "reference_energies": tuple(energies.values())}
    names = ("first", "first_stagetwo", "silicon_stagetwo", "member1_stagetwo", "member2_stagetwo")
    plan = PLAN.model_copy(update=weak)
    for name in names:
        save_model(folder / f"{name}.model", model_of(plan), ModelMetadata(name=name))
    others = {
        "dipole_stagetwo": plan.model_copy(update={"model": "EnergyDipolesMACE", "readout_vectors": 2}),
        "ions": plan.model_copy(update={"conditions": (CHARGE, SPIN)}),
        "several": with_heads("matpes_r2scan", "omat_pbe"),
        "levels": with_heads("pbe", "ccsd"),
    }
    for name, other in others.items():
        save_model(folder / f"{name}.model", model_of(other), ModelMetadata(name=name))
    write_original(folder / "old.model", tree_of(model_of()))
    for name in ("test.xyz", "methanol_test.xyz"):
        write(folder / name, molecule("CH3OH"))
    write(folder / "replay.xyz", [molecule("CH3OH")] * 12)
    with RecordWriter(results_path(folder / "results", "first", 123)) as records:
        for epoch in (None, 0):
            records.evaluation(loss=1.0, metrics={"rmse_f": 0.5}, seconds=1.0, epoch=epoch, head="Default")
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_python_runs(block: Block, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, reason in NOT_EXECUTED.items():
        if text in block.text:
            pytest.skip(reason)
    for text, package in NEEDED.items():
        if text in block.text and find_spec(package) is None:
            pytest.skip(f"it needs the package {package}")
    monkeypatch.chdir(reader)
    names: dict[str, Any] = {"atoms": molecule("CH3OH")}
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(block.text, block.where, "exec"), names)  # the example itself is what is tested
    assert ("print(" in block.text) == bool(printed.getvalue().strip())
    if "atoms.calc = " in block.text:
        assert names["atoms"].get_forces().shape == names["atoms"].positions.shape


def test_reasons_are_of_something() -> None:
    for text in NOT_EXECUTED:
        assert any(text in block.text for block in BLOCKS), text
    assert set(EXECUTED_ELSEWHERE) <= {block.where.partition(":")[0] for block in all_blocks("python")}
    assert len(BLOCKS) > 8
