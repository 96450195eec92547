"""Do messages reach terminal and file in the shape that other programs parse?"""

import io
import logging
import re

import pytest
from rich.console import Console

from mace.console.logs import close_logging, log_path, setup_logging
from mace.errors import UserError
from mace.reporting.tables import ERROR_TABLES, epoch_line
from mace.units import DEBYE

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "

METRICS = {
    "rmse_e": 0.1, "rmse_e_per_atom": 0.012344, "rmse_f": 0.05678, "rel_rmse_f": 5.0,
    "mae_e": 0.08, "mae_e_per_atom": 0.01, "mae_f": 0.04, "rel_mae_f": 4.0,
    "rmse_mu_per_atom": DEBYE * 0.02, "mae_mu_per_atom": DEBYE * 0.015,
}  # fmt: skip
STRESS = {"rmse_stress": 0.003, "mae_stress": 0.002}
VIRIALS = {"rmse_virials_per_atom": 0.0042, "mae_virials": 0.5, "rmse_virials": 0.7}

EXPECTED_LINES = [
    ("PerAtomRMSE", {}, "RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A"),
    ("TotalRMSE", {}, "RMSE_E=  100.00 meV, RMSE_F=   56.78 meV / A"),
    (
        "PerAtomRMSEstressvirials",
        {**STRESS, **VIRIALS},
        "RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A, RMSE_stress=    3.00 meV / A^3",
    ),
    (
        "PerAtomRMSEstressvirials",
        VIRIALS,
        "RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A, RMSE_virials_per_atom=    4.20 meV",
    ),
    (
        "PerAtomRMSEstressvirials",
        {},
        "RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A, RMSE_stress=     n/a meV / A^3",
    ),
    (
        "PerAtomMAEstressvirials",
        STRESS,
        "MAE_E_per_atom=   10.00 meV, MAE_F=   40.00 meV / A, MAE_stress=    2.00 meV / A^3",
    ),
    (
        "PerAtomMAEstressvirials",
        VIRIALS,
        "MAE_E_per_atom=   10.00 meV, MAE_F=   40.00 meV / A, MAE_virials=  500.00 meV",
    ),
    ("PerAtomMAE", {}, "MAE_E_per_atom=   10.00 meV, MAE_F=   40.00 meV / A"),
    ("TotalMAE", {}, "MAE_E=   80.00 meV, MAE_F=   40.00 meV / A"),
    ("DipoleRMSE", {}, "RMSE_MU_per_atom=   20.00 mDebye"),
    ("DipoleMAE", {}, "MAE_MU_per_atom=   15.00 mDebye"),
    (
        "EnergyDipoleRMSE",
        {},
        "RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A, RMSE_Mu_per_atom=   20.00 mDebye",
    ),
]


@pytest.fixture(autouse=True)
def _leave_no_handlers():
    yield
    close_logging()


@pytest.mark.parametrize(("kind", "extra", "errors"), EXPECTED_LINES)
def test_epoch_line(kind, extra, errors):
    line = epoch_line(3, "Default", 0.01234567, {**METRICS, **extra}, kind)
    assert line == f"Epoch 3: head: Default, loss=0.01234567, {errors}"


def test_line_of_the_polarizability_kind_has_its_own_format():
    metrics = {"rmse_mu_per_atom": 0.01234, "rmse_polarizability_per_atom": 0.5}
    assert epoch_line(0, "Default", 0.123456, metrics, "DipolePolarRMSE") == (
        "Epoch 0: head: Default, loss=0.1235, RMSE_MU_per_atom=12.34 me A, "
        "RMSE_polarizability_per_atom=500.00 me A^2 / V"
    )


def test_line_before_the_first_step():
    line = epoch_line(None, "pt_head", 16.25933838, METRICS, "PerAtomRMSE")
    assert line.startswith("Initial: head: pt_head, loss=16.25933838, RMSE_E_per_atom=")


@pytest.mark.parametrize("kind", ERROR_TABLES)
def test_missing_metrics_are_named_and_never_none(kind):
    line = epoch_line(0, "Default", float("nan"), {}, kind)
    values = re.findall(r"(?:RMSE|MAE)_\w+=\s*(\S+) ", line)
    assert values
    assert set(values) == {"n/a"}
    assert "None" not in line


def test_unknown_error_table_is_refused():
    with pytest.raises(UserError, match="no error table 'PerAtom'.*PerAtomRMSE"):
        epoch_line(0, "Default", 1.0, {}, "PerAtom")


def test_file_and_terminal_have_the_same_lines_in_the_agreed_shape(tmp_path):
    output, path = io.StringIO(), log_path(tmp_path / "logs", "acac", 1)
    setup_logging("INFO", path, Console(file=output, width=40))
    logger = logging.getLogger("mace.training.loop")
    message = "[bold]E0s[/bold] {1: -13.568, 6: -1026.85} :smile: " + " ".join(["long"] * 40)
    logger.info(message)
    logger.warning("50%% of %d", 12)
    logger.debug("never seen")
    assert path.name == "acac_run-1.log"
    text = path.read_text(encoding="utf-8")
    assert output.getvalue() == text
    first, second = text.splitlines()
    assert re.fullmatch(STAMP + "INFO: " + re.escape(message), first)
    assert re.fullmatch(STAMP + "WARNING: 50% of 12", second)


def test_warnings_have_color_on_a_terminal_only():
    output = io.StringIO()
    setup_logging("INFO", None, Console(file=output, force_terminal=True, color_system="standard"))
    logging.getLogger("mace").warning("look")
    logging.getLogger("mace").info("go on")
    colored, plain = output.getvalue().splitlines()
    assert "\x1b[33m" in colored
    assert "\x1b" not in plain


def test_only_our_logger_is_touched(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    logger = setup_logging("DEBUG", tmp_path / "run.log", None)
    logger.info("once")
    assert (root.level, list(root.handlers)) == before
    assert logger.name == "mace"
    close_logging()
    assert not logger.handlers
    assert logger.propagate


def test_setting_up_again_replaces_and_spares_foreign_handlers(tmp_path):
    foreign = logging.NullHandler()
    logger = logging.getLogger("mace")
    logger.addHandler(foreign)
    try:
        output = io.StringIO()
        setup_logging("INFO", tmp_path / "first.log", Console(file=output))
        setup_logging("INFO", tmp_path / "second.log", Console(file=output))
        logger.info("once")
        assert len(output.getvalue().splitlines()) == 1
        assert not (tmp_path / "first.log").exists()
        close_logging()
        assert logger.handlers == [foreign]
    finally:
        logger.removeHandler(foreign)


def test_a_word_that_is_no_level_is_refused():
    with pytest.raises(UserError, match="no log level 'LOUD'"):
        setup_logging("LOUD", None, None)
