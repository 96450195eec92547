"""Is the way from the command to the model short enough to be followed?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_runs import QUICK, TINY_MODEL, write_water

from mace.cli import run_train
from mace.model import prediction
from website.imports import ROOT

MOST_FRAMES = 11
"""Functions of this package from ``main`` of the command to where energies are evaluated, both counted."""


def test_a_training_step_is_a_few_calls_away_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, ways = prediction.energies_and_gradient, set[tuple[str, ...]]()

    def watched(*arguments: object) -> object:
        frame, names = sys._getframe(1), ["energies_and_gradient"]
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT / "mace"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        ways.add(tuple(reversed(names)))
        return evaluate(*arguments)  # type: ignore[arg-type]

    data = write_water(tmp_path / "train.xyz")
    monkeypatch.setattr(prediction, "energies_and_gradient", watched)
    monkeypatch.setattr(
        sys, "argv", ["mace_run_train", *TINY_MODEL, *QUICK, f"--train_file={data}", f"--work_dir={tmp_path}"]
    )
    run_train.main()
    steps = [way for way in ways if "take" in way]
    assert steps and all(way[0] == "main" and len(way) <= MOST_FRAMES for way in steps), ways
