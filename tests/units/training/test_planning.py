"""Do the words for the model become the right plan, or one sentence that says why not?"""

from __future__ import annotations

import pytest

from mace.elements import ElementTable
from mace.errors import UserError
from mace.planning.model_plan import HiddenFeatures, hidden_features, interaction_plans, overruled_features, plan_model
from mace.settings import TrainingSettings, parse_training_settings
from mace.structures.reference_energies import ReferenceEnergies
from mace.structures.statistics import Scaling
from mace.training.stages import stage_two_start


def settings(*flags: str) -> TrainingSettings:
    return parse_training_settings(["--name=a", "--train_file=a.xyz", *flags])


@pytest.mark.parametrize(
    ("flags", "channels", "degrees"),
    [
        ((), 128, (0, 1)),
        (("--num_channels=16",), 16, (0, 1)),
        (("--max_L=2",), 128, (0, 1, 2)),
        (("--num_channels=8", "--max_L=0"), 8, (0,)),
        (("--hidden_irreps=32x0e",), 32, (0,)),
        (("--hidden_irreps=16x0e+16x1o + 16x2e",), 16, (0, 1, 2)),
        (("--hidden_irreps=16x0e + 16x1o", "--num_channels=16", "--max_L=1"), 16, (0, 1)),
        (("--hidden_irreps=8x0e", "--num_channels=16", "--max_L=1"), 16, (0, 1)),
        (("--hidden_irreps=16x0e + 16x1o", "--num_channels=32"), 16, (0, 1)),
        (("--hidden_irreps=16x0e + 16x1o", "--max_L=2"), 16, (0, 1)),
    ],
)
def test_hidden_features(flags: tuple[str, ...], channels: int, degrees: tuple[int, ...]) -> None:
    assert hidden_features(settings(*flags)) == HiddenFeatures(channels, degrees)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--hidden_irreps=16x0e + 8x1o",), "unequal numbers of channels"),
        (("--hidden_irreps=sixteen scalars",), "--hidden_irreps: .*sixteen"),
        (("--hidden_irreps=16x0e + 16x1e",), "1e does not have the parity"),
        (("--hidden_irreps=16x0o",), "0o does not have the parity"),
        (("--hidden_irreps=16x1o + 16x0e",), "begin with 0e and let the degrees rise"),
        (("--hidden_irreps=16x1o",), "begin with 0e"),
        (("--hidden_irreps=8x0e + 8x0e",), "each once"),
        (("--hidden_irreps=0x0e",), "at least one channel"),
        (("--max_L=3", "--max_ell=2"), "degree 3 need --max_ell of at least 3"),
        (("--hidden_irreps=4x0e + 4x1o + 4x2e", "--max_ell=1"), "degree 2 need --max_ell of at least 2"),
    ],
)
def test_features_that_cannot_be_are_refused(flags: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        hidden_features(settings(*flags))
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        ((), []),
        (("--num_channels=16", "--max_L=0"), []),
        (("--hidden_irreps=16x0e", "--num_channels=16"), []),
        (("--hidden_irreps=16x0e", "--max_L=0"), []),
        (("--hidden_irreps=16x0e + 16x1o", "--num_channels=16", "--max_L=1"), []),
        (
            ("--hidden_irreps=8x0e", "--num_channels=16", "--max_L=1"),
            ["--hidden_irreps='8x0e' is overruled by --num_channels=16 and --max_L=1, as in mace-torch: 16x0e + 16x1o"],
        ),
        (
            ("--hidden_irreps=8x0e + 4x1o", "--num_channels=8", "--max_L=0"),
            ["--hidden_irreps='8x0e + 4x1o' is overruled by --num_channels=8 and --max_L=0, as in mace-torch: 8x0e"],
        ),
        (
            ("--hidden_irreps=8x0e + 8x1o", "--num_channels=8", "--max_L=0"),
            ["--hidden_irreps='8x0e + 8x1o' is overruled by --num_channels=8 and --max_L=0, as in mace-torch: 8x0e"],
        ),
        (
            ("--hidden_irreps=8x0e", "--num_channels=16"),
            ["--num_channels=16 is overruled by --hidden_irreps='8x0e', as in mace-torch: 8x0e"],
        ),
        (
            ("--hidden_irreps=8x0e", "--max_L=2"),
            ["--max_L=2 is overruled by --hidden_irreps='8x0e', as in mace-torch: 8x0e"],
        ),
    ],
)
def test_features_that_are_overruled_are_told(flags: tuple[str, ...], notes: list[str]) -> None:
    assert overruled_features(settings(*flags)) == notes


def _plan(*flags: str) -> object:
    energies = ReferenceEnergies({1: -1.0, 8: -2.0}, "command line")
    typed = settings("--max_L=0", "--num_channels=4", *flags)
    return plan_model(typed, ElementTable((1, 8)), {"Default": energies}, {"Default": Scaling(0.5, 2.0)}, 7.0)


@pytest.mark.parametrize("text", ["16x1o", "8x0e + 8x1o", "scalars", "0x0e"])
def test_a_readout_of_anything_but_scalars_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--MLP_irreps"):
        _plan(f"--MLP_irreps={text}")


def test_the_shift_is_learned_around_by_one_of_the_models_only() -> None:
    shifted, plain = _plan("--model=ScaleShiftMACE"), _plan("--model=MACE")
    assert (shifted.shift, shifted.scale) == (0.5, 2.0)  # type: ignore[attr-defined]
    assert (plain.shift, plain.scale) == (0.0, 2.0)  # type: ignore[attr-defined]


def test_one_number_of_correlation_is_that_of_every_layer() -> None:
    assert _plan("--correlation=2", "--num_interactions=3").correlation == (2, 2, 2)  # type: ignore[attr-defined]
    assert _plan("--correlation=[3,1]").correlation == (3, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "first", "residual", "normalization"),
    [
        ("MACE", "RealAgnosticResidualInteractionBlock", False, "count"),
        ("MACE", "RealAgnosticInteractionBlock", False, "count"),
        ("MACE", "RealAgnosticDensityInteractionBlock", False, "density"),
        ("ScaleShiftMACE", "RealAgnosticResidualInteractionBlock", True, "count"),
        ("ScaleShiftMACE", "RealAgnosticDensityResidualInteractionBlock", True, "density"),
        ("ScaleShiftMACE", "RealAgnosticInteractionBlock", False, "count"),
    ],
)
def test_the_first_layer(model: str, first: str, residual: bool, normalization: str) -> None:
    plans = interaction_plans(settings(f"--model={model}", f"--interaction_first={first}"))
    assert (plans[0].residual, plans[0].normalization) == (residual, normalization)
    assert (plans[1].residual, plans[1].normalization) == (True, "count")


ATTENTION, NONLINEAR = "RealAgnosticAttResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"


def test_every_kind_of_message_can_be_chosen() -> None:
    flags = (f"--interaction={ATTENTION}", "--model=ScaleShiftMACE", f"--interaction_first={NONLINEAR}")
    assert [plan.messages for plan in interaction_plans(settings(*flags))] == ["nonlinear", "attention"]
    # an isolated atom keeps its energy only without a residual
    first = interaction_plans(settings("--model=MACE", *flags[::2]))[0]
    assert (first.messages, first.residual) == ("linear", False)


def test_what_neighbors_send() -> None:
    plan = _plan("--edge_irreps=2x0e + 2x1o", "--num_interactions=3")
    assert (plan.message_channels, plan.message_l) == ((4, 2, 2), None)  # type: ignore[attr-defined]
    plan = _plan("--edge_irreps=2x0e", "--use_edge_irreps_first=True")
    assert (plan.message_channels, plan.message_l) == ((2, 2), None)  # type: ignore[attr-defined]
    plan = _plan("--max_L=1", "--edge_irreps=4x1o + 4x2e")
    assert (plan.message_channels, plan.message_l) == (None, (1,))  # type: ignore[attr-defined]
    plan = _plan("--edge_irreps=4x0e")
    assert (plan.message_channels, plan.message_l) == (None, None)  # type: ignore[attr-defined]


def test_variants_of_cutoff_product_and_readout() -> None:
    plain = _plan()
    flags = ("--apply_cutoff=False", "--use_agnostic_product=True", "--use_last_readout_only=True")
    changed = {"cutoff_after_network", "product_of_all_elements", "last_readout_only"}
    for name in changed:
        assert getattr(plain, name) is False
        assert getattr(_plan(*flags), name) is True


@pytest.mark.parametrize(
    ("flags", "epoch"),
    [
        (("--max_num_epochs=100",), 80),
        (("--max_num_epochs=100", "--start_swa=30"), 30),
        (("--max_num_epochs=100", "--start_stage_two=0"), 0),
        (("--max_num_epochs=1",), 1),
    ],
)
def test_when_stage_two_begins(flags: tuple[str, ...], epoch: int) -> None:
    assert stage_two_start(settings("--swa", *flags)) == epoch
