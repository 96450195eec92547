"""Settings of the run itself: name, folders, evaluation, checkpoints, devices, logging."""

from __future__ import annotations

from typing import Literal

from mace.settings.declaration import DeviceName, Settings, device_setting, setting

_POLAR_TABLE = "tables of polarizabilities are not available yet; choose DipoleRMSE or DipoleMAE."


class RunSettings(Settings):
    """What the run is called and where its files go."""

    config: str | None = setting(None, "YAML file with settings", group="Run", placeholder="FILE")
    name: str = setting(..., "name of the run; all its files begin with it", group="Run", placeholder="NAME")
    seed: int = setting(123, "seed of all random numbers; part of the file names", group="Run", ge=0, le=2**63 - 1)
    work_dir: str = setting(".", "folder for all files of the run", group="Run", placeholder="DIR")
    log_dir: str | None = setting(
        None, "folder for log files", group="Run", placeholder="DIR", default_words="<work_dir>/logs"
    )
    model_dir: str | None = setting(
        None, "folder for the final model", group="Run", placeholder="DIR", default_words="<work_dir>"
    )
    checkpoints_dir: str | None = setting(
        None, "folder for checkpoints", group="Run", placeholder="DIR", default_words="<work_dir>/checkpoints"
    )
    results_dir: str | None = setting(
        None,
        "folder for errors per epoch (JSON lines), tables and plots",
        group="Run",
        placeholder="DIR",
        default_words="<work_dir>/results",
    )
    take_over: bool = setting(
        False,
        "do not wait for signs of life of a run that has the same files and cannot be looked at from this machine",
        group="Run",
        kind="switch",
    )
    dry_run: bool = setting(
        False, "read and check the data, print the plan of the run, and leave", group="Run", kind="switch"
    )


class EvaluationSettings(Settings):
    """How errors are measured and shown."""

    eval_interval: int = setting(
        1, "epochs from one evaluation on the validation set to the next", group="Evaluation and output", ge=1
    )
    error_table: Literal[
        "PerAtomRMSE",
        "TotalRMSE",
        "PerAtomRMSEstressvirials",
        "PerAtomMAEstressvirials",
        "PerAtomMAE",
        "TotalMAE",
        "DipoleRMSE",
        "DipoleMAE",
        "DipolePolarRMSE",
        "EnergyDipoleRMSE",
    ] = setting(
        "PerAtomRMSE",
        "which errors the final table shows",
        group="Evaluation and output",
        default_words="PerAtomRMSE; DipoleRMSE for AtomicDipolesMACE, EnergyDipoleRMSE for EnergyDipolesMACE",
        unsupported_values={"DipolePolarRMSE": _POLAR_TABLE},
    )
    plot: bool = setting(True, "draw the course of training and the predictions", group="Evaluation and output")
    plot_frequency: int = setting(
        0, "epochs from one plot to the next; 0 draws only at the end", group="Evaluation and output", ge=0
    )
    plot_interaction_e: bool = setting(
        True, "draw energies of predictions with the E0s subtracted", group="Evaluation and output"
    )
    report: bool = setting(
        True,
        "write the page <results_dir>/<name>_run-<seed>.html, and refresh it while the run goes on",
        group="Evaluation and output",
        kind="switch",
    )


class CheckpointSettings(Settings):
    """What is kept on disk during the run, and what it goes on from."""

    restart_latest: bool = setting(
        False, "resume from the latest checkpoint of the same name and seed", group="Checkpoints", kind="switch"
    )
    init_from: str | None = setting(
        None,
        "model or checkpoint whose weights a new run starts from, and nothing but its weights",
        group="Checkpoints",
        placeholder="FILE",
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes from one saved state to the next, besides those at the ends of epochs", group="Checkpoints", ge=0
    )
    keep_checkpoints: bool = setting(
        False, "keep the checkpoints of earlier best epochs", group="Checkpoints", kind="switch"
    )
    save_all_checkpoints: bool = setting(
        False, "keep a checkpoint of every evaluated epoch", group="Checkpoints", kind="switch"
    )
    save_cpu: bool = setting(
        False,
        "accepted for compatibility: model files always hold tensors that any device can load",
        group="Checkpoints",
        kind="switch",
    )


class DeviceSettings(Settings):
    """Where and how fast the numbers are computed."""

    device: DeviceName = device_setting("where to compute", group="Devices and speed")
    default_dtype: Literal["float32", "float64"] = setting(
        "float64", "floating point precision", group="Devices and speed"
    )
    tf32: bool = setting(
        False,
        "on GPUs of NVIDIA, round what float32 products of radial networks and linear maps multiply to TensorFloat-32: "
        "faster, with 3 digits instead of 7",
        group="Devices and speed",
        kind="switch",
    )
    kernels: Literal["auto", "torch", "c", "triton"] = setting(
        "auto",
        "implementation of the inner loops: torch, C compiled on first use, or Triton on GPUs; auto takes C on a CPU "
        "with a compiler, and Triton on GPUs if it is installed and a comparison at the start finds it right and fast",
        group="Devices and speed",
    )
    cuda_graphs: Literal["auto", "on", "off"] = setting(
        "auto",
        "capture steps and evaluations in CUDA graphs, one for each size of batches, and replay them; auto does so "
        "where it is possible and a comparison at the start finds it right and faster",
        group="Devices and speed",
    )
    num_threads: int | None = setting(
        None, "threads used on the CPU", group="Devices and speed", ge=1, default_words="measured at the start"
    )
    devices: int | None = setting(
        None,
        "train on so many devices of this machine, with a process for each; with --device=cpu, so many processes",
        group="Devices and speed",
        ge=1,
        default_words="1, or as many as a launcher has started",
    )
    distributed: bool = setting(
        False, "train with several processes, started by --launcher", group="Devices and speed", kind="switch"
    )
    launcher: Literal["auto", "torchrun", "slurm", "mpi", "none"] = setting(
        "auto",
        "program that started the processes of a distributed run; none for one process, auto for the one noticed",
        group="Devices and speed",
    )
    num_workers: int | None = setting(
        None,
        "threads that read and gather batches ahead of the steps; with 0, the steps do it themselves",
        group="Devices and speed",
        ge=0,
        default_words="1 for data read from disk or copied to a GPU, else 0",
    )
    pin_memory: bool = setting(True, "copy batches to a GPU through page-locked memory", group="Devices and speed")


class LoggingSettings(Settings):
    """What the run says while it goes on."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = setting(
        "INFO", "least important messages that are logged", group="Logging and trackers"
    )
    quiet: bool = setting(
        False,
        "show warnings and errors only; log files still have everything",
        group="Logging and trackers",
        kind="switch",
    )
    progress: Literal["auto", "bar", "lines", "off"] = setting(
        "auto",
        "how progress is shown; auto draws a bar on a terminal and writes lines otherwise",
        group="Logging and trackers",
    )


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
