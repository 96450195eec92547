"""Proposed settings, each with its reason; what the user gave wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mace.elements import chemical_symbol
from mace.quickstart.facts import CUTOFFS, Facts, Machine

AS_GIVEN = "as given"


@dataclass(frozen=True)
class Choice:
    """One proposed setting.

    Attributes:
        name: The setting.
        value: Its value.
        reason: Why, in one or two sentences.
        section: Heading under which it is shown.
    """

    name: str
    value: Any
    reason: str
    section: str


@dataclass
class Proposal:
    """Settings in the order in which they are to be read.

    Attributes:
        given: Settings that were given, by name; these are never changed.
        choices: What was decided so far.
    """

    given: Mapping[str, Any]
    choices: dict[str, Choice] = field(default_factory=dict)

    def put(self, section: str, name: str, value: Any, reason: str) -> Any:
        """Propose a value, unless one was given.

        Returns:
            The value that counts.
        """
        if name in self.given:
            value, reason = self.given[name], AS_GIVEN
        self.choices[name] = Choice(name, value, reason, section)
        return value

    def value(self, name: str) -> Any:
        """Return what was decided; None if nothing was."""
        return self.choices[name].value if name in self.choices else None

    def values(self) -> dict[str, Any]:
        """Return all settings by name, those given that nobody looked at included."""
        return {**self.given, **{choice.name: choice.value for choice in self.choices.values()}}

    def in_sections(self) -> list[Choice]:
        """Return all choices, those of a section together, and last the settings given that nobody looked at."""
        rest = [Choice(n, v, AS_GIVEN, "Given") for n, v in self.given.items() if n not in self.choices]
        choices = [*self.choices.values(), *rest]
        sections = list(dict.fromkeys(choice.section for choice in choices))
        return sorted(choices, key=lambda choice: sections.index(choice.section))


@dataclass(frozen=True)
class Size:
    """A preset of the model.

    Attributes:
        channels: Channels of each degree.
        max_L: Highest degree of the features passed between layers.
        r_max: Cutoff in Angstrom.
        updates: Gradient updates after which more bring little.
        words: What it is for.
    """

    channels: int
    max_L: int
    r_max: float
    updates: int
    words: str


RULE_OF_UPDATES = 200_000
"""Gradient updates that a training of the usual size takes to converge, whatever the number of structures."""

SIZES = {
    "small": Size(64, 1, 4.5, 100_000, "several times faster than medium in training and simulations"),
    "medium": Size(128, 1, 5.0, RULE_OF_UPDATES, "the usual size, as the default of mace_run_train"),
    "large": Size(128, 2, 6.0, 2 * RULE_OF_UPDATES, "for the highest accuracy, several times slower than medium"),
}

_ATOMS_PER_STEP_CPU, _ATOMS_PER_STEP_GPU, _LARGEST_BATCH = 64, 256, 32
_ATOMS_PER_EVALUATION = 512
_UPDATES_PER_EPOCH = 10
_FEW_NEIGHBORS, _MANY_NEIGHBORS = 8.0, 90.0
_FORCES_WEIGHT = 100.0
_LARGEST_STRESS_WEIGHT = 1.0e4
_SMALL_STEPS = "ends with small steps, which takes the noise out"
_STRESS_SHARE = 0.1
"""How much the same relative error of stress counts in the loss, compared with forces."""


def choose_size(size: str | None, machine: Machine) -> tuple[str, str]:
    """Return the size and the reason for it."""
    if size is not None:
        return size, "as chosen"
    if machine.is_cpu:
        return "small", "there is no GPU; --size=medium is more accurate if you can wait"
    return "medium", "there is a GPU"


def propose_model(proposal: Proposal, facts: Facts, machine: Machine, size: str, why: str) -> None:
    """Decide the shape of the model."""
    preset, section = SIZES[size], "Model"
    has_energy, has_dipole = facts.labeled["energy"] > 0, facts.labeled["dipole"] > 0
    if has_energy or not has_dipole:
        reason = "learns around the mean energy per atom of the data, which is quicker than from isolated atoms"
        if has_dipole:
            reason += "; the data have dipoles too: --model=EnergyDipolesMACE learns them as well"
        proposal.put(section, "model", "ScaleShiftMACE", reason)
    else:
        proposal.put(section, "model", "AtomicDipolesMACE", "the data have dipoles and no energies")
    reason = f"size {size} ({why}): {preset.words}"
    if "hidden_irreps" in proposal.given:
        proposal.put(section, "hidden_irreps", None, "")
    else:
        proposal.put(section, "num_channels", preset.channels, reason)
        max_L = "scalars and vectors pass between layers" if preset.max_L == 1 else "up to tensors of rank two pass"
        proposal.put(section, "max_L", preset.max_L, f"{max_L}, size {size}")
    proposal.put(section, "max_ell", 3, "angular resolution of each neighborhood; the usual value")
    proposal.put(section, "correlation", 3, "atoms interact four at a time in each of two layers; the usual value")
    r_max, reason = choose_cutoff(facts, preset.r_max)
    proposal.put(section, "r_max", r_max, f"{reason} (Angstrom)")
    proposal.put(
        "Machine",
        "default_dtype",
        "float32",
        "twice as fast as float64, and as accurate as models of this kind are; float64 where every digit counts, as in "
        "phonons",
    )
    proposal.put("Machine", "device", machine.device, f"found here: {machine.line()}")


def choose_cutoff(facts: Facts, wanted: float) -> tuple[float, str]:
    """Return a cutoff and the reason for it: that of the size, unless atoms see too few or too many others."""
    counts = {cutoff: facts.neighbors[cutoff] for cutoff in CUTOFFS}
    chosen, why = wanted, "usual for this size"
    while counts[chosen].mean < _FEW_NEIGHBORS and chosen < CUTOFFS[-1]:
        chosen = CUTOFFS[CUTOFFS.index(chosen) + 1]
        why = f"longer than the {wanted:g} of this size, because the atoms are sparse"
    while counts[chosen].mean > _MANY_NEIGHBORS and chosen > CUTOFFS[0] and chosen <= wanted:
        chosen = CUTOFFS[CUTOFFS.index(chosen) - 1]
        why = f"shorter than the {wanted:g} of this size, because the atoms are dense and time goes with neighbors"
    alone = counts[chosen].alone
    rest = f"; {100 * alone:.2g}% of the atoms have none" if alone else ""
    return chosen, f"{why}: {counts[chosen].mean:.3g} neighbors on average{rest}"


def propose_data(proposal: Proposal, facts: Facts, machine: Machine) -> None:
    """Decide the split, the batches, and the reference energies."""
    section = "Data"
    if "valid_file" in proposal.given:
        proposal.put(section, "valid_file", None, "")
    else:
        fraction, reason = choose_valid_fraction(facts.structures)
        proposal.put(section, "valid_fraction", fraction, reason)
    _propose_batches(proposal, facts, machine)
    if proposal.value("model") == "AtomicDipolesMACE":
        return
    missing = [chemical_symbol(z) for z in facts.elements if z not in facts.isolated]
    if not missing or "E0s" in proposal.given:
        reason = "left open: they are read from the isolated atoms among the data, the best there is"
        proposal.put(section, "E0s", None, reason)
        return
    fit = "the compositions determine them" if facts.determines_energies else (
        "the compositions do not determine them, so the model serves these compositions alone"
    )  # fmt: skip
    proposal.put(
        section,
        "E0s",
        "average",
        f"there is no isolated atom of {', '.join(missing)}; least squares instead ({fit}). Better: add a structure "
        "with config_type=IsolatedAtom for each element, computed like the data",
    )


def _propose_batches(proposal: Proposal, facts: Facts, machine: Machine) -> None:
    """Decide how many structures are in a batch, unless batches are to be filled by size."""
    section, filled = "Data", {n for n in ("batch_edges", "batch_atoms") if proposal.given.get(n) is not None}
    train = facts.structures * (1.0 - (proposal.value("valid_fraction") or 0.0))
    atoms = _ATOMS_PER_STEP_CPU if machine.is_cpu else _ATOMS_PER_STEP_GPU
    batch = max(1, min(round(atoms / facts.mean_atoms), _LARGEST_BATCH, int(train // _UPDATES_PER_EPOCH)))
    if not filled:
        proposal.put(
            section,
            "batch_size",
            batch,
            f"about {batch * facts.mean_atoms:.3g} atoms a step: "
            + ("a CPU gains nothing from more" if machine.is_cpu else "enough to keep a GPU busy")
            + ", and small batches learn more from each structure",
        )
    filled |= {n for n in ("valid_batch_edges", "valid_batch_atoms") if proposal.given.get(n) is not None}
    if not filled:
        valid_batch = max(1, min(round(_ATOMS_PER_EVALUATION / facts.mean_atoms), 64))
        proposal.put(section, "valid_batch_size", valid_batch, "changes no number, only memory and time of evaluations")


def choose_valid_fraction(structures: int) -> tuple[float, str]:
    """Return the share of structures to validate with and the reason for it."""
    if structures > 5000:
        return 0.05, f"{round(0.05 * structures)} of {structures} structures tell enough"
    fraction = max(0.1, math.ceil(40.0 / structures) / 20.0) if structures < 20 else 0.1
    fraction = min(fraction, 0.5)
    return fraction, f"{max(1, int(fraction * structures))} of {structures} structures to choose the best epoch with"


def propose_loss(proposal: Proposal, facts: Facts) -> None:
    """Decide what is fitted, and the weights of both stages."""
    section = "Loss"
    if proposal.value("model") in ("AtomicDipolesMACE", "EnergyDipolesMACE"):
        proposal.put(section, "swa", True, _SMALL_STEPS)
        return
    if not facts.labeled["forces"]:
        proposal.put(section, "forces_weight", 0.0, "the data have no forces, so energies alone are fitted")
        proposal.put(section, "swa", True, _SMALL_STEPS)
        proposal.put(section, "swa_forces_weight", 0.0, "as above")
        return
    if not facts.labeled["energy"]:
        proposal.put(section, "loss", "forces_only", "the data have no energies, so forces alone are fitted")
        proposal.put(section, "swa", True, _SMALL_STEPS)
        return
    with_stress = facts.rms_stress and facts.rms_forces and facts.labeled["stress"]
    loss = proposal.put(
        section,
        "loss",
        "stress" if with_stress else "weighted",
        f"squared errors of energy, forces and stress: {facts.labeled['stress']} of {facts.structures} structures have "
        "stress" if with_stress else "squared errors of energy and forces",
    )  # fmt: skip
    proposal.put(section, "energy_weight", 1.0, "first the forces, which say most about each structure")
    forces_weight = proposal.put(section, "forces_weight", _FORCES_WEIGHT, "the usual balance of stage one")
    weight = 0.0
    if with_stress and loss == "stress":
        weight = choose_stress_weight(facts, forces_weight)
        proposal.put(
            section,
            "stress_weight",
            weight,
            f"stress is {facts.rms_stress:.2g} eV/Angstrom^3 and forces are {facts.rms_forces:.2g} eV/Angstrom (root "
            f"mean square): so the same relative error counts {_STRESS_SHARE:g} times that of forces"
            + (", or less" if weight == _LARGEST_STRESS_WEIGHT else ""),
        )
    proposal.put(
        section, "swa", True, "ends with small steps and more weight on energies; the models of both stages are written"
    )
    proposal.put(section, "swa_energy_weight", 1000.0, "energies get their share once forces are good")
    proposal.put(section, "swa_forces_weight", forces_weight, "as in stage one")
    if weight:
        proposal.put(section, "swa_stress_weight", proposal.value("stress_weight"), "as in stage one")
        proposal.put(section, "compute_stress", True, "so that errors of stress are measured")


def choose_stress_weight(facts: Facts, forces_weight: float) -> float:
    """Balance the errors of stress against those of forces by the size of both, rounded to one digit, within bounds."""
    assert facts.rms_forces is not None and facts.rms_stress
    exact = _STRESS_SHARE * forces_weight * (facts.rms_forces / facts.rms_stress) ** 2
    bounded = min(max(exact, 1.0), _LARGEST_STRESS_WEIGHT)
    power = 10.0 ** math.floor(math.log10(bounded))
    return round(bounded / power) * power
