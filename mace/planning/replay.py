"""Replay: a head for structures of the foundation model's own training, so that fine-tuning does not forget them."""

from __future__ import annotations

from typing import Any

from mace.model.plan import OUTPUTS
from mace.settings import TrainingSettings, provided
from mace.settings.heads import REPLAY_HEAD

_ASK_FOR_REPLAY = (
    "multiheads_finetuning",
    "pt_train_file",
    "pt_valid_file",
    "num_samples_pt",
    "subselect_pt",
    "filter_type_pt",
    "weight_pt_head",
    "pseudolabel_replay",
)
"""Settings that ask for replay if they are given: they say what is replayed."""

_ONLY_ADJUST = ("allow_random_padding_pt", "real_pt_data_ratio_threshold", "force_mh_ft_lr")
"""Settings of replay that do not."""

_DEFAULTS: dict[str, Any] = {"loss": "universal", "lr": 1e-4, "ema": True, "ema_decay": 0.99999}
"""Defaults with replay, as in mace-torch, where they also replace what was given."""


def replays(settings: TrainingSettings) -> bool:
    """Return whether fine-tuning keeps a head of the foundation model."""
    if settings.foundation_model is None or not settings.multiheads_finetuning:
        return False
    return bool(asked_by(settings)) or REPLAY_HEAD in (settings.heads or {})


def asked_by(settings: TrainingSettings) -> list[str]:
    """List the given settings that ask for replay."""
    typed = provided(settings)
    return [name for name in _ASK_FOR_REPLAY if name in typed and getattr(settings, name) not in (None, False)]


def settings_with_replay(settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Change the defaults of loss, learning rate and averaging for a training with replay.

    Args:
        settings: The given settings; what was given stays.

    Returns:
        The settings, and sentences for the log about what was chosen.
    """
    typed = provided(settings)
    if settings.foundation_model is None and "multiheads_finetuning" in typed and settings.multiheads_finetuning:
        return settings, ["--multiheads_finetuning=True has no effect without --foundation_model"]
    if not replays(settings):
        idle = [name for name in _ONLY_ADJUST if settings.foundation_model is not None and name in typed]
        if not settings.multiheads_finetuning:
            return settings, []  # the declarations of the settings say it
        return settings, [f"--{name} has no effect: nothing is replayed without --pt_train_file" for name in idle]
    changes = {name: value for name, value in _DEFAULTS.items() if name not in typed}
    if settings.force_mh_ft_lr:
        changes = {name: value for name, value in changes.items() if name == "loss"}
    if "dipole" in OUTPUTS[settings.model]:
        changes.pop("loss", None)
    words = ", ".join(f"--{name}={value}" for name, value in changes.items())
    notes = [f"Defaults with replay, as nothing else is given: {words}"] if changes else []
    completed = settings.model_copy(update=changes)
    # settings chosen here do not count as given by the user
    completed.model_fields_set.difference_update(changes)
    return completed, notes
