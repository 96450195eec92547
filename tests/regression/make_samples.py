"""Archive checkpoints of the present format; to be run once for each new format, whose files then stay as they are.

python tests/regression/make_samples.py
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

with tempfile.TemporaryDirectory() as folder:
    data = write_water(Path(folder) / "train.xyz")
    train(Path(folder), data, *SMALLEST, "--max_num_epochs=3")
    for file in (Path(folder) / "checkpoints").glob("tiny_run-7_*.pt"):
        name = file.name.replace("tiny_run-7", f"checkpoint-{FORMAT}")
        if "previous" not in name and not (SAMPLES / name).exists():
            shutil.copy(file, SAMPLES / name)
