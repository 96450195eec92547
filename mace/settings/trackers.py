"""Settings of the trackers: programs besides our own that show the course of a training."""

from __future__ import annotations

from mace.settings.declaration import Settings, setting

_GROUP = "Logging and trackers"

_HYPERS = [
    "num_channels",
    "max_L",
    "correlation",
    "lr",
    "swa_lr",
    "weight_decay",
    "batch_size",
    "max_num_epochs",
    "start_swa",
    "energy_weight",
    "forces_weight",
]


class TrackerSettings(Settings):
    """Who else is told what the JSON lines in the results folder say."""

    csv: bool = setting(
        False, "write tables of all steps and all evaluations into the results folder", group=_GROUP, kind="switch"
    )
    tensorboard: bool = setting(
        False, "write for TensorBoard, into <results_dir>/<name>_run-<seed>_tensorboard", group=_GROUP, kind="switch"
    )
    wandb: bool = setting(False, "log to Weights & Biases", group=_GROUP, kind="switch")
    wandb_dir: str | None = setting(
        None,
        "folder of the files of Weights & Biases",
        group=_GROUP,
        placeholder="DIR",
        only_with="wandb",
        default_words="<work_dir>/wandb",
    )
    wandb_project: str = setting(
        "",
        "project at Weights & Biases",
        group=_GROUP,
        placeholder="NAME",
        only_with="wandb",
        default_words="uncategorized",
    )
    wandb_entity: str = setting(
        "",
        "user or team at Weights & Biases",
        group=_GROUP,
        placeholder="NAME",
        only_with="wandb",
        default_words="who is logged in",
    )
    wandb_name: str = setting(
        "",
        "name of the run at Weights & Biases",
        group=_GROUP,
        placeholder="NAME",
        only_with="wandb",
        default_words="<name>_run-<seed>",
    )
    wandb_log_hypers: list[str] = setting(
        _HYPERS,
        "settings shown at Weights & Biases",
        group=_GROUP,
        kind="several",
        placeholder="SETTING...",
        only_with="wandb",
        expects="names of settings such as lr batch_size",
    )
