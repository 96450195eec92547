"""Settings of the commands beside the training: `mace_quickstart`, `mace_check_data` and `mace_prepare_data`."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mace.settings.declaration import setting
from mace.settings.training import TrainingSettings

_GROUP = "Quickstart"
_PREPARED = "Prepared sets"
_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_duration(value: Any) -> Any:
    """Turn a duration with units into seconds.

    Raises:
        ValueError: If it is none; a number alone could mean anything.

    >>> read_duration("3min"), read_duration("1h30min"), read_duration("0.5 h")
    (180.0, 5400.0, 1800.0)
    """
    if not isinstance(value, str):
        return value
    text = value.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(sec|min|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("not a duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


class QuickstartSettings(TrainingSettings):
    """What the user wants to be proposed, and what is decided already."""

    program: ClassVar[str] = "mace_quickstart"
    description: ClassVar[str] = (
        "Look at labeled structures, propose settings for a training with the reason of each, predict how long it "
        "takes on this machine, and write all of it into a YAML file for mace_run_train --config. Every setting of "
        "mace_run_train is taken too and kept as given; on a terminal the most important ones are asked for."
    )
    positionals: ClassVar[tuple[str, ...]] = ("train_file",)
    help_groups: ClassVar[tuple[str, ...]] = (_GROUP, "Data", "Labels and keys")

    name: str = setting(
        "",
        "name of the run",
        group="Run",
        placeholder="NAME",
        default_words="that of the first training file",
    )
    size: Literal["small", "medium", "large"] | None = setting(
        None,
        "size of the model: small for large simulations, medium as published models, large for highest accuracy",
        group=_GROUP,
        default_words="small on a CPU, medium on a GPU",
    )
    time: Annotated[float, BeforeValidator(read_duration), Field(gt=0)] | None = setting(
        None,
        "how long the whole training may take, such as 3min, 1h30min or 90s; it sets the number of epochs",
        group=_GROUP,
        placeholder="DURATION",
        expects="a duration such as 3min, 1h30min or 90s",
        default_words="as long as is sensible, at most a night on a CPU or a day on a GPU",
    )
    output: str | None = setting(
        None, "YAML file to write", group=_GROUP, placeholder="FILE.yaml", default_words="<name>.yaml"
    )
    overwrite: bool = setting(False, "replace that file if it exists", group=_GROUP, kind="switch")
    yes: bool = setting(False, "ask nothing, take what is proposed", group=_GROUP, kind="switch")


class CheckSettings(TrainingSettings):
    """What the user wants to be checked, and where to write what is found."""

    program: ClassVar[str] = "mace_check_data"
    description: ClassVar[str] = (
        "Check labeled structures as a training would before it starts, and report what they hold. All settings of "
        "mace_run_train are taken, so that the same command line or YAML file serves both; those that only concern the "
        "model or the course of training change nothing here. The exit status is 2 if training would refuse the data."
    )

    name: str = setting(
        "",
        "name of the report",
        group="Run",
        placeholder="NAME",
        default_words="that of the first training file",
    )
    html: str | None = setting(
        None, "page to write", group="Run", placeholder="FILE", default_words="<work_dir>/<name>_data.html"
    )
    json_file: str | None = setting(
        None, "JSON document to write", group="Run", aliases=("json",), placeholder="FILE", default_words="none"
    )


class PrepareSettings(TrainingSettings):
    """Which data are prepared, how, and where the prepared sets are written."""

    program: ClassVar[str] = "mace_prepare_data"
    description: ClassVar[str] = (
        "Read labeled structures once, check them, find their neighbors, and write them as prepared sets, from which a "
        "training of any size starts at once and reads what it needs: <h5_prefix>train, <h5_prefix>val and "
        "<h5_prefix>test/<name>. Several processes work on parts; an interrupted call goes on where it was. All "
        "settings of mace_run_train are taken; those that only concern the model or the course of training change "
        "nothing here."
    )
    help_groups: ClassVar[tuple[str, ...]] = (
        _PREPARED,
        "Data",
        "Labels and keys",
        "Reference energies and scaling",
        "Heads",
    )

    name: str = setting("prepared", "name of the data in the log", group="Run", placeholder="NAME")
    h5_prefix: str = setting(
        "",
        "beginning of the names of all that is written; with a slash at its end it is a folder",
        group=_PREPARED,
        placeholder="DIR/",
        default_words="none: the working directory",
    )
    num_process: int | None = setting(
        None, "processes that read, search and write", group=_PREPARED, ge=1, default_words="one for each core"
    )
    neighbors: bool = setting(
        True,
        "keep the neighbors within r_max; without them sets are a third of the size, and every epoch searches anew",
        group=_PREPARED,
    )
    compute_statistics: bool = setting(
        False,
        "write <h5_prefix>statistics.json for --statistics_file of mace_run_train: E0s, mean number of neighbors, mean "
        "and scale of the energies",
        group=_PREPARED,
        kind="switch",
    )
    overwrite: bool = setting(
        False, "replace finished sets that were made from other files or in another way", group=_PREPARED, kind="switch"
    )
    shuffle: bool = setting(
        True, "shuffle the structures", inert="sets keep the order of the files, and training shuffles in every epoch"
    )
    batch_size: int = setting(
        16, "structures per batch", inert="statistics are those of all structures, however they are divided", ge=1
    )
    scaling: Literal["std_scaling", "rms_forces_scaling", "no_scaling"] = setting(
        "rms_forces_scaling",
        "what the learned energies are measured in",
        inert="the file of statistics has the root mean square of the forces, and --scaling of the training decides",
    )
