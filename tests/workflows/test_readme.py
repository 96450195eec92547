"""The README's commands: every one that can be run is run, on small data and for a few steps."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from ase.io import read, write

from mace.cli import check_data, eval_configs, md, run_train
from mace.elsewhere import COMMANDS
from mace.settings import parse_training_settings, provided

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = ROOT / "examples" / "methanol"
SMALL = ("--num_channels=2", "--max_L=0", "--max_ell=1", "--correlation=1", "--max_num_epochs=3", "--start_swa=2")
"""Added after a command's own flags, of which the last one given counts."""


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every call of a program in the README's shell blocks."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line) for line in lines]
    return [words[1:] for words in found if words and words[0] == program]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files the README speaks of, kept small."""
    folder = tmp_path_factory.mktemp("stranger")
    train = read(DATA / "methanol_train.xyz", ":")
    isolated = [atoms for atoms in train if atoms.info["config_type"] == "IsolatedAtom"]
    monomers = [atoms for atoms in train if atoms.info["config_type"].startswith("monomer")]
    write(folder / "train.xyz", [*isolated, *monomers[:12]])
    write(folder / "test.xyz", read(DATA / "methanol_test.xyz", ":3"))
    return folder


def test_the_readme_shows_each_command() -> None:
    assert len(commands("mace_run_train")) == 3
    assert len(commands("mace_eval_configs")) == 1
    assert len(commands("mace_check_data")) == 1
    assert len(commands("mace_md")) == 1


@pytest.mark.parametrize("arguments", commands("mace_run_train"), ids=lambda words: f"{len(words)} flags")
def test_every_training_flag_is_known(arguments: list[str]) -> None:
    settings = parse_training_settings(arguments)
    written = {word.lstrip("-").partition("=")[0] for word in arguments if word.startswith("--")}
    assert written <= provided(settings), "a flag of the README is not taken as given"


def test_the_guides_command_means_what_it_says() -> None:
    settings = parse_training_settings(commands("mace_run_train")[2])
    assert settings.hidden_irreps == "128x0e + 128x1o"
    assert (settings.swa, settings.start_swa, settings.ema, settings.restart_latest) == (True, 1200, True, True)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z]+)", README, flags=re.MULTILINE)) <= targets


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_console_scripts_lead_to_programs() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = re.findall(r'^(mace_\w+) = "([\w.]+):(\w+)"', text, flags=re.MULTILINE)
    known = ["mace_run_train", "mace_eval_configs", "mace_check_data"]
    known += ["mace_import_model", "mace_export", "mace_finetuning_select", "mace_select_head", "mace_info", "mace_md"]
    known += ["mace_plot_train", "mace_prepare_data", "mace_quickstart", "mace_completion"]
    assert [name for name, _, _ in scripts] == [*known, *sorted(COMMANDS)]  # the last say what to use instead
    for _, module, function in scripts:
        assert callable(getattr(importlib.import_module(module), function))


def test_a_strangers_first_training(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stranger)
    assert check_data.run(commands("mace_check_data")[0]) == 0
    assert Path("train_data.html").exists()
    first, dry, _ = commands("mace_run_train")
    run_train.run([*dry, *SMALL[:-1]])
    assert "Plan of the run first" in capsys.readouterr().out
    assert not Path("first.model").exists()

    run_train.run([*first, *SMALL])
    for name in ("first.model", "first_stagetwo.model", "logs", "results", "checkpoints"):
        assert Path(name).exists(), name

    eval_configs.run(commands("mace_eval_configs")[0])
    predicted = read("predicted.xyz", ":")
    assert len(predicted) == 3
    assert all("MACE_energy" in atoms.info and "MACE_forces" in atoms.arrays for atoms in predicted)

    md.run([*commands("mace_md")[0], "--steps=2", "--max_force=1e6"])
    assert len(read("md.xyz", ":")) == 1

    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})  # the example itself is what is tested
