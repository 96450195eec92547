"""Do the final tables show the right numbers under the headings users know?"""

import pytest

from mace.errors import UserError
from mace.reporting.tables import ERROR_TABLES, error_table
from mace.units import DEBYE

TITLES = {
    "PerAtomRMSE": ["RMSE E / meV / atom", "RMSE F / meV / A", "relative F RMSE %"],
    "TotalRMSE": ["RMSE E / meV", "RMSE F / meV / A", "relative F RMSE %"],
    "PerAtomRMSEstressvirials": [
        "RMSE E / meV / atom", "RMSE F / meV / A", "relative F RMSE %", "RMSE Stress (Virials) / meV / A (A^3)",
    ],
    "PerAtomMAEstressvirials": [
        "MAE E / meV / atom", "MAE F / meV / A", "relative F MAE %", "MAE Stress (Virials) / meV / A (A^3)",
    ],
    "PerAtomMAE": ["MAE E / meV / atom", "MAE F / meV / A", "relative F MAE %"],
    "TotalMAE": ["MAE E / meV", "MAE F / meV / A", "relative F MAE %"],
    "DipoleRMSE": ["RMSE MU / mDebye / atom", "relative MU RMSE %"],
    "DipoleMAE": ["MAE MU / mDebye / atom", "relative MU MAE %"],
    "DipolePolarRMSE": ["RMSE MU / me A / atom", "relative MU RMSE %", "RMSE ALPHA e A^2 / V / atom"],
    "EnergyDipoleRMSE": [
        "RMSE E / meV / atom", "RMSE F / meV / A", "rel F RMSE %", "RMSE MU / mDebye / atom", "rel MU RMSE %",
    ],
}  # fmt: skip

# Every metric has its own value, so that a wrong column shows.
METRICS = {
    "rmse_e": 0.1, "rmse_e_per_atom": 0.0123, "rmse_f": 0.0568, "rel_rmse_f": 5.125,
    "mae_e": 0.08, "mae_e_per_atom": 0.0101, "mae_f": 0.0402, "rel_mae_f": 4.25,
    "rmse_stress": 0.0031, "rmse_virials": 0.7, "mae_stress": 0.0021, "mae_virials": 0.5,
    "rmse_mu_per_atom": 0.02 * DEBYE, "mae_mu_per_atom": 0.015 * DEBYE, "rel_rmse_mu": 7.75, "rel_mae_mu": 6.5,
    "rmse_polarizability_per_atom": 0.0625,
}  # fmt: skip

CELLS = {
    "PerAtomRMSE": ["12.3", "56.8", "5.12"],
    "TotalRMSE": ["100.0", "56.8", "5.12"],
    "PerAtomRMSEstressvirials": ["12.3", "56.8", "5.12", "3.1"],
    "PerAtomMAEstressvirials": ["10.1", "40.2", "4.25", "2.1"],
    "PerAtomMAE": ["10.1", "40.2", "4.25"],
    "TotalMAE": ["80.0", "40.2", "4.25"],
    "DipoleRMSE": ["20.00", "7.8"],
    "DipoleMAE": ["15.00", "6.5"],
    "DipolePolarRMSE": [f"{20 * DEBYE:.2f}", "7.8", "0.06250"],
    "EnergyDipoleRMSE": ["12.3", "56.8", "5.1", "20.0", "7.8"],
}


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def _body(table):
    return [_cells(line) for line in table.splitlines() if line.startswith("|")]


def test_every_kind_is_there():
    assert set(ERROR_TABLES) == set(TITLES)


@pytest.mark.parametrize("kind", TITLES)
def test_headings_and_cells(kind):
    heading, row = _body(error_table(kind, {"train_Default": METRICS}))
    assert heading == ["config_type", *TITLES[kind]]
    assert row == ["train_Default", *CELLS[kind]]


@pytest.mark.parametrize("kind", TITLES)
def test_missing_metrics_are_dashes(kind):
    _, row = _body(error_table(kind, {"valid_Default": {}}))
    assert row == ["valid_Default", *["-"] * len(TITLES[kind])]


def test_virials_stand_in_for_stress():
    without_stress = {name: value for name, value in METRICS.items() if "stress" not in name}
    assert _body(error_table("PerAtomRMSEstressvirials", {"train": without_stress}))[1][-1] == "700.0"
    assert _body(error_table("PerAtomMAEstressvirials", {"train": without_stress}))[1][-1] == "500.0"


def test_training_comes_first_then_validation_then_the_others():
    names = ["monomer_600K_Default", "valid_Default", "trainer_Default", "train_pt", "monomer_300K_Default", "train"]
    rows = _body(error_table("PerAtomRMSE", dict.fromkeys(names, METRICS)))[1:]
    assert [row[0] for row in rows] == [
        "train", "train_pt", "valid_Default", "monomer_300K_Default", "monomer_600K_Default", "trainer_Default",
    ]  # fmt: skip


def test_table_is_plain_aligned_and_never_wrapped():
    name = "test_[bold]a name longer than any terminal[/bold]" + "_x" * 150
    table = error_table("PerAtomRMSEstressvirials", {name: METRICS})
    lines = table.splitlines()
    assert table.isascii()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert name in table


def test_unknown_kind_is_refused():
    with pytest.raises(UserError, match="no error table 'Nope'"):
        error_table("Nope", {})
