"""Do proposals follow from facts, machine and time, and does what was given win?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from mace.errors import UserError
from mace.quickstart.course import MOST_EPOCHS, Limits, propose_course
from mace.quickstart.document import scalar, yaml_document
from mace.quickstart.facts import CUTOFFS, Facts, Machine, Neighborhood
from mace.quickstart.pace import Pace
from mace.quickstart.proposal import (
    RULE_OF_UPDATES,
    SIZES,
    Proposal,
    choose_cutoff,
    choose_size,
    choose_stress_weight,
    choose_valid_fraction,
    propose_data,
    propose_loss,
    propose_model,
)
from mace.quickstart.session import training_settings
from mace.settings.labels import FileSettings

CPU, GPU = Machine("cpu", 2, 8 * 10**9), Machine("cuda", 8, 80 * 10**9)
LABELS = dict.fromkeys(("energy", "forces", "stress", "virials", "dipole", "polarizability", "charges"), 0)
FACTS = Facts(
    structures=500,
    mean_atoms=15.0,
    largest=15,
    elements=(1, 6, 8),
    labeled=LABELS | {"energy": 500, "forces": 500},
    periodic=0,
    types=1,
    isolated=(1, 6, 8),
    neighbors={cutoff: Neighborhood(10.0 + cutoff, 0.0) for cutoff in CUTOFFS},
    rms_forces=1.0,
    rms_stress=None,
    determines_energies=False,
)
CRYSTAL = replace(FACTS, labeled=FACTS.labeled | {"stress": 500}, rms_stress=0.05, periodic=500)
PACE = Pace(
    prepare=1.0,
    step=0.02,
    steps=10,
    evaluation=0.05,
    final=0.5,
    save=0.02,
    updates=100,
    training_structures=450,
    parameters=1000,
    memory=10**9,
)


def proposed(facts: Facts, machine: Machine = CPU, **given: object) -> Proposal:
    proposal = Proposal({"name": "x", "train_file": "x.xyz", **given})
    propose_model(proposal, facts, machine, *choose_size(None, machine))
    propose_data(proposal, facts, machine)
    propose_loss(proposal, facts)
    return proposal


def test_size_follows_the_machine_unless_chosen():
    assert [choose_size(None, machine)[0] for machine in (CPU, GPU)] == ["small", "medium"]
    assert choose_size("large", CPU)[0] == "large"
    assert proposed(FACTS).value("num_channels") == SIZES["small"].channels
    assert proposed(FACTS, GPU).value("num_channels") == SIZES["medium"].channels


def test_every_choice_has_a_reason_and_all_make_valid_settings():
    for facts in (FACTS, CRYSTAL):
        for machine in (CPU, GPU):
            proposal = proposed(facts, machine)
            propose_course(proposal, PACE, machine, Limits("small", None, 1.0))
            assert all(len(choice.reason) > 5 for choice in proposal.choices.values())
            settings = training_settings(proposal)
            assert settings.start_swa is not None and settings.start_swa < settings.max_num_epochs


def test_what_was_given_wins_and_is_marked():
    proposal = proposed(FACTS, r_max=7.5, batch_size=3, hidden_irreps="16x0e")
    assert proposal.value("r_max") == 7.5 and proposal.choices["batch_size"].reason == "as given"
    settings = training_settings(proposal)
    assert settings.hidden_irreps == "16x0e" and settings.num_channels is None and settings.batch_size == 3


@pytest.mark.parametrize(("mean", "cutoff"), [(3.0, 6.0), (20.0, 4.5), (200.0, 4.0)])
def test_the_cutoff_follows_the_density(mean, cutoff):
    facts = replace(FACTS, neighbors={c: Neighborhood(mean, 0.0) for c in CUTOFFS})
    chosen, reason = choose_cutoff(facts, 4.5)
    assert chosen == cutoff and "neighbors" in reason


@pytest.mark.parametrize(
    ("atoms", "structures", "batch"), [(15.0, 500, 4), (114.0, 18, 1), (2.0, 5000, 32), (2.0, 40, 3)]
)
def test_batches_have_a_useful_number_of_atoms(atoms, structures, batch):
    assert proposed(replace(FACTS, mean_atoms=atoms, structures=structures)).value("batch_size") == batch


@pytest.mark.parametrize(("structures", "fraction"), [(3, 0.5), (14, 0.15), (500, 0.1), (50000, 0.05)])
def test_a_few_structures_at_least_validate(structures, fraction):
    assert choose_valid_fraction(structures)[0] == fraction
    assert 1 <= int(fraction * structures) < structures


def test_reference_energies():
    assert proposed(FACTS).value("E0s") is None
    lacking = proposed(replace(FACTS, isolated=(1, 8)))
    assert lacking.value("E0s") == "average" and "isolated atom of C" in lacking.choices["E0s"].reason
    assert proposed(replace(FACTS, isolated=()), E0s={1: -1.0}).value("E0s") == {1: -1.0}


def test_stress_gets_a_weight_by_its_size():
    assert choose_stress_weight(CRYSTAL, 100.0) == 4000.0
    proposal = proposed(CRYSTAL)
    assert proposal.value("loss") == "stress" and proposal.value("stress_weight") == 4000.0
    assert "stress_weight" not in proposed(FACTS).choices


def test_other_labels():
    energies = replace(FACTS, labeled=LABELS | {"energy": 9}, rms_forces=None)
    assert proposed(energies).value("forces_weight") == proposed(energies).value("swa_forces_weight") == 0.0
    forces = replace(FACTS, labeled=LABELS | {"forces": 9})
    assert proposed(forces).value("loss") == "forces_only"
    dipoles = replace(FACTS, labeled=LABELS | {"dipole": 9}, rms_forces=None)
    assert proposed(dipoles).value("model") == "AtomicDipolesMACE" and "loss" not in proposed(dipoles).choices
    both = replace(FACTS, labeled=FACTS.labeled | {"dipole": 9})
    assert "EnergyDipolesMACE" in proposed(both).choices["model"].reason


def course(budget: float | None, size: str = "medium", **changes: float) -> tuple[Proposal, float]:
    proposal = proposed(FACTS)
    prediction = propose_course(proposal, replace(PACE, **changes), CPU, Limits(size, budget, 1.0))
    return proposal, prediction.total


def test_the_time_given_is_used_and_kept():
    for budget in (60.0, 600.0, 3600.0):
        _, total = course(budget)
        assert 0.9 * budget < total <= budget
    proposal, _ = course(600.0)
    assert "in the 10 min you give" in proposal.choices["max_num_epochs"].reason


def test_without_a_time_the_rule_of_updates_holds():
    proposal, _ = course(None)
    assert proposal.value("max_num_epochs") * PACE.updates == RULE_OF_UPDATES
    few, _ = course(None, updates=5)
    assert few.value("max_num_epochs") == MOST_EPOCHS and "nothing new" in few.choices["max_num_epochs"].reason
    slow, total = course(None, step=10.0)
    assert total <= 10 * 3600.0 and slow.value("max_num_epochs") < 50


def test_too_little_time_is_one_sentence():
    with pytest.raises(UserError, match="--time=10 s does not suffice.*more time, a smaller --size"):
        course(10.0)


def test_evaluations_are_a_tenth_of_the_time_at_most():
    proposal, _ = course(3600.0, evaluation=20.0)
    assert 20.0 / proposal.value("eval_interval") <= 0.1 * (PACE.updates * PACE.step + PACE.save) * 1.001


def test_yaml_has_all_values_with_reasons():
    proposal = proposed(FACTS, train_file=[FileSettings(file="a: b.xyz", energy_key="E"), "c.xyz"], seed=4)
    text = yaml_document(proposal, ["Data: 500 structures"], "mace_run_train --config x.yaml")
    lines = text.splitlines()
    assert "train_file: [{energy_key: E, file: 'a: b.xyz'}, c.xyz]" in lines
    assert "seed: 4" in lines and "# Data: 500 structures" in lines and "# E0s:" in lines
    place = lines.index("batch_size: 4")
    assert lines[place - 1].startswith("# ")
    assert scalar([1, 2]) == "[1, 2]"
