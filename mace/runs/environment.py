"""The software environment that results may depend on, for the log."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import mace
from mace.graphs.batch_size import training_batch
from mace.processes.devices import device_name, device_software, set_threads
from mace.processes.team import Team
from mace.runs.threads import is_measured
from mace.settings import TrainingSettings, provided
from mace.settings.command_line import plain_value
from mace.settings.run import TrackerSettings

_LOGGER = logging.getLogger(__name__)

_ABOUT_THE_RUN = {"restart_latest", "config", "work_dir", "log_dir", "model_dir", "checkpoints_dir", "results_dir"}
_ABOUT_THE_RUN |= {*TrackerSettings.model_fields, "quiet", "take_over"}
"""Settings that do not affect what is computed."""


def log_environment(settings: TrainingSettings, device: torch.device, team: Team) -> None:
    """Log versions, machine and settings."""
    threads = set_threads(settings.num_threads)
    _LOGGER.info("===========VERIFYING SETTINGS===========")
    commit = commit_of_checkout()
    _LOGGER.info("MACE version: %s%s", mace.__version__, f" (commit {commit})" if commit else "")
    _LOGGER.info(
        "Python %s, torch %s, numpy %s, ase %s, vesin %s, %s on %s",
        platform.python_version(),
        *(version(name) for name in ("torch", "numpy", "ase", "vesin")),
        sys.platform,
        platform.machine(),
    )
    words = f"{'up to ' * (threads > 1 and is_measured(settings, device))}{threads} thread{'s' * (threads != 1)}"
    name = device_name(device)
    what = f"{device} ({name}, {device_software(device)})" if name else str(device)
    tf32 = " with products in TensorFloat-32" * (settings.tf32 and device.type == "cuda")
    _LOGGER.info("Using %s, %s%s, %s", what, settings.default_dtype, tf32, words)
    if team.size > 1:
        size = training_batch(settings)
        _LOGGER.info(
            "%d processes with %s each in a step, %d together",
            team.size,
            f"{size.in_words} structures" if size.unit == "structures" else size.in_words,
            team.size * size.amount,
        )
    _LOGGER.info("Settings: %s", {name: plain_value(getattr(settings, name)) for name in sorted(provided(settings))})
    _LOGGER.info("Hash of all settings: %s", settings_digest(settings))


def settings_digest(settings: TrainingSettings) -> str:
    """Return the SHA-256, in hexadecimal, of the settings that affect what is computed."""
    return hashlib.sha256(settings.model_dump_json(exclude=_ABOUT_THE_RUN).encode()).hexdigest()


def commit_of_checkout(folder: Path = Path(mace.__file__).parents[1]) -> str | None:
    """Return the git commit of the checkout from which the package is used.

    Args:
        folder: The folder that holds the package.

    Returns:
        The commit, followed by ``, changed`` if files differ from it; None if it is not a checkout or git is missing.
    """
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "mace")
    return f"{commit}, changed" if commit and changes else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
