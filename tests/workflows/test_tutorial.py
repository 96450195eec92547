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


def rows(printed: str, name: str) -> list[tuple[float, float]]:
    """The errors of energy and forces in all rows of a name, in the order of the tables."""
    found = re.findall(rf"\|\s*{name}\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)", printed)
    return [(float(energy), float(forces)) for energy, forces in found]


def said(pattern: str) -> list[float]:
    """The numbers that the page says."""
    found = re.search(pattern, " ".join(TUTORIAL.split()))
    assert found is not None
    return [float(number) for number in found.groups()]


def test_errors_are_what_the_page_says(followed: tuple[Path, str]) -> None:
    """Rounding differs between machines, so within a factor of two."""
    _, printed = followed
    energy, forces = said(r"for the test set, ([\d.]+) meV/atom, ([\d.]+) meV/Angstrom and")
    _, trained, _ = rows(printed, "md_600K_Default")
    assert trained[0] < 2 * energy and trained[1] < 2 * forces


def test_replay_keeps_what_training_on_new_data_alone_forgets(followed: tuple[Path, str]) -> None:
    _, printed = followed
    _, trained, naive = rows(printed, "md_600K_Default")
    (kept,), (adapted,) = rows(printed, "md_600K_pt_head"), rows(printed, "vacancy_xtb")
    (forgotten,) = said(r"now their error is ([\d.]+) meV/Angstrom")
    energy, forces, new = said(
        r"`md_600K_pt_head` says ([\d.]+) meV/atom and ([\d.]+) meV/Angstrom, .* `vacancy_xtb` ([\d.]+) meV/Angstrom"
    )
    assert forgotten / 2 < naive[1] < 2 * forgotten
    assert kept[0] < 2 * energy and kept[1] < 2 * forces
    assert trained[1] < kept[1] < naive[1] / 3
    assert adapted[1] < 1.5 * new


def test_both_heads_are_used(followed: tuple[Path, str]) -> None:
    _, printed = followed
    energies = dict(re.findall(r"(\w+): a crystal with a vacancy has (-[\d.]+) eV", printed))
    assert energies.keys() == {"pt_head", "xtb"}
    assert float(energies["pt_head"]) == pytest.approx(7 * -107.9, abs=10.0)
    assert float(energies["xtb"]) == pytest.approx(7 * -49.5, abs=10.0)


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
