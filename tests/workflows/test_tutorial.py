"""The tutorial, executed as it stands: its files are written, its commands run in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ase.io import read
from documentation_blocks import ROOT, blocks_of

pytestmark = pytest.mark.xdist_group("tutorial")  # followed once, by one process

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after the last line of the tutorial, and all that was printed."""
    beside = tmp_path_factory.mktemp("tutorial")
    (beside / "mace-train").symlink_to(ROOT)
    folder = beside / "silicon"
    folder.mkdir()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    printed = ""
    for block in blocks_of(TUTORIAL):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            done = subprocess.run(
                ["bash", "-ec", block.text], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            printed += done.stdout
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return folder, printed


def test_the_data_are_found_sound(followed: tuple[Path, str]) -> None:
    _, printed = followed
    assert "77 structures for training, 20 for testing" in printed
    assert "stress 76 of 76" in printed
    assert "Nothing was found that deserves attention." in printed


def test_errors_are_what_the_page_says(followed: tuple[Path, str]) -> None:
    """Rounding differs between machines, so within a factor of two."""
    _, printed = followed
    table = printed.rpartition("Comparison")[2]
    said = re.search(r"for the test set, ([\d.]+) meV/atom,\s+([\d.]+) meV/Angstrom and", TUTORIAL)
    assert said is not None
    row = re.search(r"\|\s*(?:all|md_600K)\w*\s*\|\s*(?:\d+\s*\|\s*)?([\d.]+)\s*\|\s*([\d.]+)", table)
    assert row is not None, table
    assert float(row[1]) < 2 * float(said[1])
    assert float(row[2]) < 2 * float(said[2])


def test_the_lattice_constant_is_near_that_of_the_functional(followed: tuple[Path, str]) -> None:
    _, printed = followed
    found = re.search(r"lattice constant ([\d.]+) Angstrom", printed)
    assert found is not None
    assert float(found[1]) == pytest.approx(5.38, abs=0.05)


def test_dynamics_stay_sane(followed: tuple[Path, str]) -> None:
    folder, printed = followed
    assert "ns/day" in printed
    frames = read(folder / "run.xyz", ":")
    assert len(frames) == 21 and len(frames[0]) == 64
    assert abs(frames[-1].get_temperature() - 300) < 150
