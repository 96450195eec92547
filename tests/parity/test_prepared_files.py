"""Do sets that mace-torch 0.3.16 prepared train as the file does from which they were made?"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from training_runs import train, untimed

from mace.formats.reading import count_frames
from mace.structures.labels import LabelKeys
from mace.structures.reading import read_configurations
from mace.structures.sources import expand_paths

REFERENCES = Path(__file__).parent / "references" / "prepared"
STRUCTURES = REFERENCES / "structures.xyz"
TYPE_WEIGHTS = {"Default": 1.0, "slab": 3.0}
"""Those the set was prepared with."""

E0S = {1: -13.6, 6: -1027.2, 8: -2041.8, 13: -57.0, 14: -102.5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the original wrote."""
    folder = tmp_path_factory.mktemp("original")
    with zipfile.ZipFile(REFERENCES / "prepared.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("part", ["train", "val"])
def test_structures_and_labels_are_those_of_the_source(prepared: Path, part: str) -> None:
    files = expand_paths(prepared / part)
    assert [count_frames(file) for file in files] == [3, 3]
    found = read_configurations(prepared / part).configurations
    expected = read_configurations(STRUCTURES, LabelKeys(dipole="my_dipole"), TYPE_WEIGHTS).configurations
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in vars(theirs).items():
            if name not in ("file", "index"):
                np.testing.assert_equal(getattr(ours, name), value, err_msg=name)
    assert [c.weight for c in found] == [2.5, 1.0, 3.0, 1.0, 1.0, 3.0]
    assert [c.forces is None for c in found] == [False] * 4 + [True, False]
    assert [c.dipole is None for c in found] == [True] * 5 + [False]


def test_training_on_them_is_training_on_the_source(prepared: Path, tmp_path: Path) -> None:
    flags = ["--loss=stress", "--batch_size=2", "--max_num_epochs=2", f"--E0s={json.dumps(E0S)}"]
    types = f"--config_type_weights={json.dumps(TYPE_WEIGHTS)}"
    runs = [
        train(tmp_path / "source", STRUCTURES, f"--valid_file={STRUCTURES}", types, *flags),
        train(tmp_path / "prepared", prepared / "train", f"--valid_file={prepared / 'val'}", "--energy_key=E", *flags),
    ]
    first, second = ([untimed(record) for record in run.records] for run in runs)
    assert len(first) > 6 and first == second
