"""Is a plan that of the flags, with the defaults their help promises?"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from mace.cli.md import DynamicsSettings
from mace.dynamics.plan import SimulationPlan
from mace.settings.declaration import declarations
from mace.settings.reading import parse_settings

NEEDED = ["--structure=a.xyz", "--model=a.model", "--temperature_K=300"]
STEPS = [*NEEDED, "--steps=7"]


def plan(*flags: str) -> SimulationPlan:
    return parse_settings(DynamicsSettings, [*STEPS, *flags]).plan()


def promised() -> dict[str, str]:
    """Defaults in the words of the help, by name."""
    words = {name: declaration.default for name, declaration in declarations(DynamicsSettings).items()}
    return {name: told[0] for name, word in words.items() if (told := re.match(r"[\d.]+|nvt|isotropic", word))}


def test_defaults_are_those_of_the_help() -> None:
    """Those of plans that are made without flags too."""
    bare = SimulationPlan(ensemble="nvt", steps=7, timestep_fs=0.5, temperature_K=300.0)
    assert plan() == bare
    defaults = {field.name: getattr(bare, field.name) for field in fields(SimulationPlan)}
    told = {name: word for name, word in promised().items() if name in defaults}
    assert len(told) == 14
    for name, word in told.items():
        assert type(defaults[name])(word) == defaults[name], name
    assert (defaults["steps"], defaults["temperature_K"]) == (7, 300.0)


@pytest.mark.parametrize("field", fields(SimulationPlan), ids=lambda field: field.name)
def test_every_part_of_a_plan_is_a_flag(field: Any) -> None:
    values = {"ensemble": "npt", "cell_changes": "full", "friction": None}
    ensemble = {"friction": "nvt"}.get(field.name, "npt")
    value = values.get(field.name) or "37"
    found = plan(*dict.fromkeys([f"--ensemble={ensemble}", f"--{field.name}={value}"]))
    assert str(getattr(found, field.name)) in (value, f"{value}.0")


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--time_ps=2", "--timestep_fs=0.5"], 4000),
        (["--time_ps=0.0009", "--timestep_fs=0.25"], 4),
        (["--time_ps=1e-9"], 1),
    ],
)
def test_a_time_is_a_number_of_steps(flags: list[str], steps: int) -> None:
    assert parse_settings(DynamicsSettings, [*NEEDED, *flags]).plan().steps == steps


@pytest.mark.parametrize(("temperature", "limit"), [(300, 10000.0), (1000, 10000.0), (2500, 25000.0)])
def test_hot_simulations_have_a_higher_limit(temperature: float, limit: float) -> None:
    assert plan(f"--temperature_K={temperature}").max_temperature_K == limit
    assert plan(f"--temperature_K={temperature}", "--max_temperature_K=50").max_temperature_K == 50.0
