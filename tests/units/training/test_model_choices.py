"""Does a model of dipoles get the loss, table and readout that belong to it, and is what contradicts refused?"""

from __future__ import annotations

from typing import Any

import pytest

from mace.errors import UserError
from mace.planning.model_choices import settings_for_model
from mace.planning.model_plan import ReadoutWidths, hidden_features, interaction_plans, readout_widths
from mace.settings import TrainingSettings, parse_training_settings

ATOMIC, ENERGY = "--model=AtomicDipolesMACE", "--model=EnergyDipolesMACE"


def settings(*flags: str) -> TrainingSettings:
    return parse_training_settings(["--name=x", "--train_file=x.xyz", *flags])


@pytest.mark.parametrize(
    ("flags", "changes", "notes"),
    [
        ((), {}, []),
        (
            (ATOMIC,),
            {"loss": "dipole", "error_table": "DipoleRMSE", "MLP_irreps": "16x1o"},
            ["--loss", "--error_table"],
        ),
        (
            (ENERGY,),
            {"loss": "energy_forces_dipole", "error_table": "EnergyDipoleRMSE", "MLP_irreps": "16x0e + 16x1o"},
            ["--loss=energy_forces_dipole", "--error_table=EnergyDipoleRMSE"],
        ),
        ((ATOMIC, "--loss=dipole", "--error_table=DipoleMAE", "--MLP_irreps=16x1o"), {}, []),
        (
            (ENERGY, "--loss=energy_forces_dipole", "--error_table=EnergyDipoleRMSE", "--MLP_irreps=16x0e"),
            {"MLP_irreps": "16x0e + 16x1o"},
            ["--MLP_irreps='16x0e'"],
        ),
        (
            (
                ATOMIC,
                "--loss=dipole",
                "--error_table=DipoleRMSE",
                "--MLP_irreps=8x0e + 4x1o",
                "--E0s=average",
                "--std=2",
                "--pair_repulsion",
            ),
            {},
            ["--E0s has no effect", "--std has no effect", "--pair_repulsion has no effect"],
        ),
    ],
)
def test_what_is_left_open_is_chosen_and_told(flags: Any, changes: dict[str, str], notes: list[str]) -> None:
    typed = settings(*flags)
    chosen, told = settings_for_model(typed)
    assert chosen.model_dump() == typed.model_dump() | changes
    assert chosen.model_fields_set == typed.model_fields_set
    assert len(told) == len(notes)
    assert all(note in line for note, line in zip(notes, told, strict=True)), told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((ATOMIC, "--loss=weighted"), "--loss=weighted does not fit --model=AtomicDipolesMACE; choose dipole"),
        ((ENERGY, "--loss=dipole"), "choose energy_forces_dipole"),
        ((ATOMIC, "--error_table=PerAtomRMSE"), "choose DipoleRMSE or DipoleMAE"),
        (("--loss=dipole",), "add --model=AtomicDipolesMACE"),
        (("--loss=energy_forces_dipole",), "add --model=EnergyDipolesMACE"),
        (("--error_table=DipoleMAE",), "--error_table=DipoleMAE shows dipoles"),
    ],
)
def test_what_contradicts_is_refused(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings_for_model(settings(*flags))


def test_widths_of_the_last_readout() -> None:
    assert readout_widths(settings("--MLP_irreps=8x0e")) == ReadoutWidths(8, 0)
    assert readout_widths(settings(ENERGY, "--MLP_irreps=8x0e + 3x1o")) == ReadoutWidths(8, 3)
    assert readout_widths(settings(ATOMIC, "--MLP_irreps=8x0e + 3x1o")) == ReadoutWidths(0, 3)
    for flags in (("--MLP_irreps=8x0e + 3x1o",), (ENERGY, "--MLP_irreps=8x0e + 2x2e"), (ENERGY, "--MLP_irreps=0x1o")):
        with pytest.raises(UserError, match="--MLP_irreps"):
            readout_widths(settings(*flags))


def test_dipoles_need_vectors() -> None:
    for flag in ("--max_L=0", "--hidden_irreps=8x0e", "--hidden_irreps=8x0e + 8x2e"):
        with pytest.raises(UserError, match="needs vectors among the hidden features"):
            hidden_features(settings(ATOMIC, flag))


@pytest.mark.parametrize("model", ["MACE", "AtomicDipolesMACE", "EnergyDipolesMACE"])
def test_the_first_layer_has_no_residual(model: str) -> None:
    assert [plan.residual for plan in interaction_plans(settings(f"--model={model}"))] == [False, True]
