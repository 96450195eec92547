"""Plans: what they derive, what they refuse, and that they survive being written down."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mace.model.plan import InteractionPlan, ModelPlan


def settings(**changes: Any) -> dict[str, Any]:
    """Return valid arguments with some changed."""
    valid: dict[str, Any] = {
        "model": "MACE", "r_max": 5.0, "n_channels": 8, "hidden_l": (0, 1),
        "interactions": (InteractionPlan(residual=False), InteractionPlan(residual=True)), "correlation": (3, 3),
        "avg_num_neighbors": 12.0, "atomic_numbers": (1, 8), "reference_energies": (-13.6, -2000.0),
    }  # fmt: skip
    return valid | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_l": (1,)}, "rise from 0"),
        ({"hidden_l": ()}, "rise from 0"),
        ({"hidden_l": (0, 2, 1)}, "rise from 0"),
        ({"hidden_l": (0, 1, 1)}, "rise from 0"),
        ({"hidden_l": (0, 2), "l_max": 1}, "hidden degree 2 exceeds l_max = 1"),
        ({"correlation": (3,)}, "one correlation order per layer"),
        ({"correlation": (3, 5)}, "between 1 and 4"),
        ({"correlation": (0, 3)}, "between 1 and 4"),
        ({"reference_energies": (1.0,)}, "one reference energy per element"),
        ({"atomic_numbers": (8, 1)}, "must rise"),
        ({"atomic_numbers": (8, 8)}, "must rise"),
        ({"atomic_numbers": (), "reference_energies": ()}, "at least 1"),
        ({"interactions": (), "correlation": ()}, "at least 1"),
        ({"r_max": 0.0}, "greater than 0"),
        ({"avg_num_neighbors": 0.0}, "greater than 0"),
        ({"n_channels": 0}, "greater than or equal to 1"),
        ({"l_max": 5}, "less than or equal to 4"),
        ({"num_cutoff_basis": 1}, "greater than or equal to 2"),
        ({"gate": "relu"}, "'silu', 'tanh', 'abs' or 'None'"),
        ({"model": "MACELES"}, "'MACE', 'ScaleShiftMACE', 'AtomicDipolesMACE' or 'EnergyDipolesMACE'"),
        ({"model": "EnergyDipolesMACE", "hidden_l": (0,)}, "features of degree 1"),
        ({"model": "AtomicDipolesMACE", "readout_channels": 0}, "none where no energy is predicted"),
        ({"model": "AtomicDipolesMACE", "reference_energies": ()}, "widths for what the model does not predict"),
        ({"readout_vectors": 4}, "widths for what the model does not predict"),
        ({"readout_channels": 0}, "energies needs a width"),
        ({"nonsense": 1}, "not permitted"),
    ],
)
def test_an_inconsistent_plan_is_refused(changes: dict[str, Any], message: str) -> None:
    ModelPlan(**settings())
    with pytest.raises(ValidationError, match=message):
        ModelPlan(**settings(**changes))


def test_what_a_plan_derives() -> None:
    plan = ModelPlan(**settings())
    assert (plan.n_layers, plan.n_elements) == (2, 2)
    assert [plan.l_in(0), plan.l_in(1)] == [(0,), (0, 1)]
    assert [plan.l_out(0), plan.l_out(1)] == [(0, 1), (0,)]


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelPlan(**settings()).r_max = 6.0  # type: ignore[misc]


def test_a_plan_survives_json() -> None:
    plan = ModelPlan(**settings(reference_energies=(-13.587222780835477, -0.1 - 0.2)))
    assert ModelPlan.model_validate_json(plan.model_dump_json()) == plan
