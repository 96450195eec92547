"""Settings of fine-tuning: what a training starts from."""

from __future__ import annotations

from mace.settings.declaration import Settings, setting

_GROUP = "Fine-tuning"


class FineTuningSettings(Settings):
    """The foundation model and what is kept of it."""

    foundation_model: str | None = setting(
        None,
        "model to start from: a file of this program or of mace-torch, or the name of a published one such as medium "
        "or small_off; it decides the architecture",
        group=_GROUP,
        placeholder="NAME|FILE",
    )
    foundation_head: str | None = setting(
        None,
        "head of the foundation model to start from, if it has several",
        group=_GROUP,
        placeholder="NAME",
        only_with="foundation_model",
    )
    foundation_model_elements: bool = setting(
        False,
        "keep all elements of the foundation model, not only those of the data",
        group=_GROUP,
        only_with="foundation_model",
    )
    foundation_model_readout: bool = setting(
        True,
        "start the readouts from random weights",
        group=_GROUP,
        kind="switch_off",
        only_with="foundation_model",
    )
