"""Archive what runs write; to be run once for each new format, whose files then stay as they are.

python tests/regression/make_samples.py

Checkpoints of the present format stand beside each other in ``samples/``. A whole run, ``samples/run-<format>/``, is
stopped after three epochs; ``continued/`` in it holds what the same program made of it in two more.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_archived_checkpoints import SAMPLES, SMALLEST
from training_runs import train, write_water

from mace.training.checkpoints import FORMAT

RECORDS = "results/tiny_run-7_train.txt"

with tempfile.TemporaryDirectory() as folder:
    place, run = Path(folder), SAMPLES / f"run-{FORMAT}"
    data = write_water(place / "train.xyz")
    train(place, data, *SMALLEST, "--max_num_epochs=3")
    for file in (place / "checkpoints").glob("tiny_run-7_*.pt"):
        name = file.name.replace("tiny_run-7", f"checkpoint-{FORMAT}")
        if "previous" not in name and not (SAMPLES / name).exists():
            shutil.copy(file, SAMPLES / name)
    if not run.exists():
        for part in (run, run / "continued"):
            part.mkdir(parents=True)
            if part != run:
                train(place, data, *SMALLEST, "--max_num_epochs=5", "--restart_latest")
            else:
                for file in (place / "checkpoints").glob("tiny_run-7_*[!s].pt"):  # all but the state before the last
                    shutil.copy(file, run)
            for file in (*place.glob("*.model"), place / RECORDS):
                shutil.copy(file, part)
