"""All settings of ``mace_check_data``: those of a training, and where the report goes."""

from __future__ import annotations

from collections.abc import Sequence

from mace.settings.declaration import setting
from mace.settings.reading import parse_settings
from mace.settings.training import TrainingSettings

PROGRAM = "mace_check_data"
DESCRIPTION = (
    "Check labeled structures as a training would before it starts, and report what they hold. All settings of "
    "mace_run_train are taken, so that the same command line or YAML file serves both; those that only concern the "
    "model or the course of training change nothing here. The exit status is 2 if training would refuse the data."
)


class CheckSettings(TrainingSettings):
    """What the user wants to be checked, and where to write what is found."""

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


def parse_check_settings(argv: Sequence[str]) -> CheckSettings:
    """Read the settings of a check: defaults < YAML ``--config`` < command line.

    Args:
        argv: The arguments after the name of the program.

    Returns:
        The checked settings.

    Raises:
        UserError: With one sentence per mistake, one per line.
        SystemExit: With status 0 after ``--help`` or ``--help-all``.
    """
    return parse_settings(CheckSettings, argv, PROGRAM, DESCRIPTION)
