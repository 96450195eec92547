"""All settings of ``mace_run_train``, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, model_validator

from mace.settings.data import CheckingSettings, DataSettings, ReferenceSettings
from mace.settings.declaration import declarations
from mace.settings.fitting import FineTuningSettings, LossSettings, OptimizerSettings, StageTwoSettings
from mace.settings.heads import REPLAY_HEAD, HeadsSettings
from mace.settings.labels import LabelSettings
from mace.settings.model import ModelSettings
from mace.settings.reading import parse_settings
from mace.settings.run import (
    CheckpointSettings,
    DeviceSettings,
    EvaluationSettings,
    LoggingSettings,
    RunSettings,
    TrackerSettings,
)
from mace.settings.unsupported import UnsupportedSettings


# pydantic orders inherited fields from the last base to the first, so help begins with RunSettings
class TrainingSettings(
    UnsupportedSettings,
    TrackerSettings,
    LoggingSettings,
    DeviceSettings,
    CheckpointSettings,
    EvaluationSettings,
    StageTwoSettings,
    OptimizerSettings,
    LossSettings,
    FineTuningSettings,
    HeadsSettings,
    ReferenceSettings,
    ModelSettings,
    LabelSettings,
    CheckingSettings,
    DataSettings,
    RunSettings,
):
    """What the user asked for: checked, frozen, and not yet decided upon (``None`` where the data decide)."""

    program: ClassVar[str] = "mace_run_train"
    description: ClassVar[str] = "Train a MACE interatomic potential on labeled structures."

    @model_validator(mode="after")
    def _check_together(self) -> TrainingSettings:
        of_heads = {name: head.train_file for name, head in (self.heads or {}).items()}
        if self.foundation_model is not None and self.multiheads_finetuning:
            of_heads.pop(REPLAY_HEAD, None)  # pt_train_file and others give its structures
        if self.train_file is None and (not of_heads or None in of_heads.values()):
            declaration = declarations(type(self))["train_file"]
            without = [name for name, file in of_heads.items() if file is None]
            which = f" for the head {without[0]}, which has none in --heads" if without else ""
            raise ValueError(f"--train_file is required{which}: {declaration.help}.")
        if self.valid_file is None and not 0.0 < self.valid_fraction < 1.0:
            raise ValueError(
                f"--valid_fraction must be a number above 0 and below 1, not '{self.valid_fraction:g}', without "
                "--valid_file."
            )
        if isinstance(self.correlation, list) and len(self.correlation) != self.num_interactions:
            raise ValueError(
                f"--correlation has {len(self.correlation)} entries for {self.num_interactions} layers; give one "
                "number, or as many as --num_interactions."
            )
        for prefix, what in (("", "training"), ("valid_", "evaluations")):
            names = [f"{prefix}batch_{unit}" for unit in ("size", "edges", "atoms")]
            given = [f"--{name}" for name in names if name in self.model_fields_set and getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(
                    f"{' and '.join(given)} say how large batches of {what} are, each in its way; give one."
                )
        return self


def parse_training_settings(argv: Sequence[str]) -> TrainingSettings:
    """Read the settings of a training run: defaults < YAML ``--config`` < command line.

    Args:
        argv: The arguments after the name of the program.

    Returns:
        The checked settings.

    Raises:
        UserError: With one sentence per mistake, one per line.
        SystemExit: With status 0 after ``--help`` or ``--help-all``.
    """
    return parse_settings(TrainingSettings, argv)


def provided(settings: BaseModel) -> frozenset[str]:
    """Tell which settings somebody gave, on the command line, in a file or as an argument."""
    return frozenset(settings.model_fields_set)
