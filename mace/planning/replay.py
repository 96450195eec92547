"""Replay: a head for structures of the foundation model's own training, so that fine-tuning does not forget them."""

from __future__ import annotations

from typing import Any

from mace.model.plan import OUTPUTS
from mace.settings import TrainingSettings, provided
from mace.settings.heads import REPLAY_HEAD

OF_MATERIALS_PROJECT = ("small", "medium", "large")
"""Published models whose training structures are the set ``mp``."""

_OF_REPLAY = (
    *("num_samples_pt", "subselect_pt", "filter_type_pt", "allow_random_padding_pt", "weight_pt_head"),
    *("real_pt_data_ratio_threshold", "pseudolabel_replay_compute_stress"),
)
"""Settings that say how to replay."""

_DEFAULTS: dict[str, Any] = {"loss": "universal", "lr": 1e-4, "ema": True, "ema_decay": 0.99999}
"""Defaults with replay, as in mace-torch, where they also replace what was given."""


def replays(settings: TrainingSettings) -> bool:
    """Return whether fine-tuning keeps a head of the foundation model."""
    if settings.foundation_model is None or not settings.multiheads_finetuning:
        return False
    if asked_by(settings) or REPLAY_HEAD in (settings.heads or {}):
        return True
    return settings.foundation_model in OF_MATERIALS_PROJECT and not provided(settings).isdisjoint(_OF_REPLAY)


def asked_by(settings: TrainingSettings) -> list[str]:
    """List the given settings that ask for replay with any foundation model."""
    asking = ("multiheads_finetuning", "pt_train_file", "pt_valid_file", "pseudolabel_replay")
    return [name for name in asking if name in provided(settings) and getattr(settings, name) not in (None, False)]


def settings_with_replay(settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Change the defaults of loss, learning rate and averaging for a training with replay.

    Args:
        settings: The given settings; what was given stays.

    Returns:
        The settings, and sentences for the log about what was chosen.
    """
    typed = provided(settings)
    if not replays(settings):
        return settings, _without_effect(settings)
    changes = {name: value for name, value in _DEFAULTS.items() if name not in typed}
    if settings.force_mh_ft_lr:
        changes = {name: value for name, value in changes.items() if name == "loss"}
    if "dipole" in OUTPUTS[settings.model]:
        changes.pop("loss", None)
    words = ", ".join(f"--{name}={value}" for name, value in changes.items())
    completed = settings.model_copy(update=changes)
    # settings chosen here do not count as given by the user
    completed.model_fields_set.difference_update(changes)
    return completed, [f"Defaults with replay, as nothing else is given: {words}"] if changes else []


def _without_effect(settings: TrainingSettings) -> list[str]:
    """Say which settings of replay change nothing, unless their declarations say it."""
    if settings.foundation_model is None or not settings.multiheads_finetuning:
        return []
    fields = type(settings).model_fields
    idle = [name for name in (*_OF_REPLAY, "force_mh_ft_lr") if getattr(settings, name) != fields[name].default]
    return [f"--{name} has no effect: nothing is replayed without --pt_train_file" for name in idle]
