"""Settings that depend on the kind of model and its loss: the error table and the last readout."""

from __future__ import annotations

from dataclasses import dataclass

from mace.conditions import words_without_effect
from mace.errors import UserError
from mace.model.plan import DEGREES_READ
from mace.planning.model_plan import overruled_features, read_irreps
from mace.planning.replay import settings_with_replay
from mace.properties import PROPERTIES
from mace.settings import TrainingSettings, provided
from mace.settings.declaration import inert_notes


@dataclass(frozen=True)
class _Kind:
    """What a kind of model implies for other settings.

    Attributes:
        reads: The property it predicts that models of energies do not.
        loss: Its loss.
        tables: Its error tables, with the default first.
        without_effect: Settings that mace-torch accepts for it but ignores.
    """

    reads: str
    loss: str
    tables: tuple[str, ...]
    without_effect: tuple[str, ...]


_OF_ENERGIES = (
    *("PerAtomRMSE", "TotalRMSE", "PerAtomMAE", "TotalMAE"),
    *("PerAtomRMSEstressvirials", "PerAtomMAEstressvirials"),
)
"""The error tables of models of energies."""

_KINDS = {
    "AtomicDipolesMACE": _Kind(
        "dipole",
        "dipole",
        ("DipoleRMSE", "DipoleMAE"),
        ("E0s", "scaling", "mean", "std", "compute_stress", "pair_repulsion"),
    ),
    "EnergyDipolesMACE": _Kind(
        "dipole",
        "energy_forces_dipole",
        ("EnergyDipoleRMSE", "DipoleRMSE", "DipoleMAE", *_OF_ENERGIES),
        ("scaling", "mean", "std"),
    ),
}
"""The kinds of model that predict more than, or other things than, energies and their derivatives."""


def notes_on(settings: TrainingSettings) -> list[str]:
    """List settings given by the user that have no effect or are overruled by other given settings.

    Returns:
        Sentences for the log, without final periods.

    Raises:
        UserError: If the features of the model are invalid.
    """
    idle = words_without_effect(settings.embedding_specs or {})
    described = [f"--embedding_specs: {words} has no effect on its kind of values" for words in idle]
    return [*inert_notes(settings), *described, *overruled_features(settings)]


def settings_for_model(settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Complete open settings according to the kind of model, and reject settings that contradict it.

    Args:
        settings: The given settings.

    Returns:
        The settings, completed for models in `_KINDS`, and sentences for the log about the choices made.

    Raises:
        UserError: If loss, error table or another setting does not fit the model.
    """
    settings, notes = settings_with_replay(settings)
    if settings.use_last_readout_only:
        _check_last_readout(settings)
    if settings.model not in _KINDS:
        _refuse_other_kinds(settings)
        return settings, notes
    given, changes = provided(settings), dict[str, str]()
    kind = _KINDS[settings.model]
    for name, allowed in (("loss", (kind.loss,)), ("error_table", kind.tables)):
        value = getattr(settings, name)
        if name not in given:
            changes[name] = allowed[0]
            notes.append(f"--model={settings.model} is trained with --{name}={allowed[0]}")
        elif value not in allowed:
            raise UserError(
                f"--{name}={value} does not fit --model={settings.model}; choose {' or '.join(allowed)}, or leave it "
                "out."
            )
    hidden = _complete_readout(settings)
    if hidden != settings.MLP_irreps:
        changes["MLP_irreps"] = hidden
        if "MLP_irreps" in given:
            notes.append(
                f"--MLP_irreps='{settings.MLP_irreps}' leaves the last readout of --model={settings.model} without "
                f"what it reads; it is taken as '{hidden}'"
            )
    unused = [name for name in kind.without_effect if name in given]
    notes += [f"--{name} has no effect on --model={settings.model}" for name in unused]
    completed = settings.model_copy(update=changes)
    # settings chosen here do not count as given by the user
    completed.model_fields_set.difference_update(changes.keys() - given)
    return completed, notes


def reported_table(settings: TrainingSettings) -> str:
    """Return the error table to show; if the loss has stress or virials, it includes these, as in the original."""
    table = settings.error_table
    if settings.loss in ("stress", "virials", "huber", "universal") and "stressvirials" not in table:
        return "PerAtomRMSEstressvirials" if "RMSE" in table else "PerAtomMAEstressvirials"
    return table


def _check_last_readout(settings: TrainingSettings) -> None:
    """Raise an error if a single readout would leave nothing to read, or no dipole."""
    if settings.num_interactions == 1:
        raise UserError(
            "--use_last_readout_only leaves a model of one layer without any readout in mace-torch, which fails then; "
            "choose --num_interactions of at least 2, or remove the flag."
        )
    if 1 in DEGREES_READ[settings.model]:
        raise UserError(
            f"--use_last_readout_only: --model={settings.model} reads dipoles out of every layer; remove the flag."
        )


def _refuse_other_kinds(settings: TrainingSettings) -> None:
    """Raise an error for losses and tables of properties that a model of energies does not predict."""
    for model, kind in _KINDS.items():
        words = PROPERTIES[kind.reads].plural
        if settings.loss == kind.loss:
            raise UserError(
                f"--loss={kind.loss} needs a model of {words}; add --model={model}, or choose another loss."
            )
        if settings.error_table in kind.tables and settings.error_table not in _OF_ENERGIES:
            raise UserError(
                f"--error_table={settings.error_table} shows {words}, which --model={settings.model} does not predict; "
                f"choose PerAtomRMSE, or a model of {words}."
            )


def _complete_readout(settings: TrainingSettings) -> str:
    """Complete the hidden layer of the readout: missing scalars or vectors get the same width as the other kind."""
    widths = {str(irrep): multiplicity for multiplicity, irrep in read_irreps("--MLP_irreps", settings.MLP_irreps)}
    needed = [("0e", "1o")[degree] for degree in sorted(DEGREES_READ[settings.model])]
    if not widths.keys() <= {"0e", "1o"} or all(widths.get(irrep, 0) for irrep in needed):
        return settings.MLP_irreps
    width = max(widths.values())
    return " + ".join(f"{widths.get(irrep) or width}x{irrep}" for irrep in needed)
