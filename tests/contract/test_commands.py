"""Do all commands share what users expect of each: help, quiet, plain output where there is no terminal, completion?"""

from __future__ import annotations

import importlib
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import QUICK, TINY_MODEL, write_water

from mace.cli import completion
from mace.settings.declaration import declarations
from mace.settings.help import help_text
from mace.settings.other_commands import CheckSettings, QuickstartSettings
from mace.settings.training import TrainingSettings

ROOT = Path(__file__).parents[2]
SCRIPTS = dict(re.findall(r'^(mace_\w+) = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), flags=re.M))
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR")} | {
    "PYTHONPATH": str(ROOT),
    "TERM": "xterm-256color",
}


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", SCRIPTS[script], *arguments]


def run(script: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options
    )  # type: ignore[call-overload, no-any-return]


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    """Run a command whose output is a terminal; return what it wrote."""
    reading, writing = pty.openpty()
    process = subprocess.Popen(arguments, stdout=writing, stderr=writing, env=ENVIRONMENT | environment)
    os.close(writing)
    parts = []
    while True:
        try:
            part = os.read(reading, 65536)
        except OSError:  # how Linux says that the other side has been closed
            break
        if not part:
            break
        parts.append(part)
    os.close(reading)
    process.wait(timeout=60)
    return b"".join(parts).decode()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_at_once_in_groups_and_without_color(script):
    start = time.perf_counter()
    shown = run(script, "--help")
    assert shown.returncode == 0 and not shown.stderr
    assert time.perf_counter() - start < 5.0  # takes 0.3 s; a busy machine may need longer
    assert "\x1b" not in shown.stdout
    if script != "mace_completion":
        assert len(re.findall(r"^\S[^\n]*:$", shown.stdout, flags=re.M)) >= 2, "groups"
        # where --help-all shows it
        assert "--quiet" in shown.stdout or script in ("mace_quickstart", "mace_prepare_data")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script):
    module = SCRIPTS[script]
    code = (
        f"import sys\nimport {module} as m\ntry:\n    m.run(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'ase', 'rich', 'matplotlib', 'numpy', 'wandb', 'shtab') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert shown.stdout.splitlines()[-1] == "[]", shown.stderr


@pytest.mark.parametrize("model", completion.COMMANDS, ids=lambda model: model.program)
def test_every_argument_is_explained_and_messages_can_be_chosen(model):
    assert not [name for name, declaration in declarations(model).items() if not declaration.help]
    assert {"log_level", "quiet"} <= set(model.model_fields) or model is completion.CompletionSettings
    assert {name for name, declaration in declarations(model).items() if not declaration.group} == set()


def test_the_settings_of_every_command_are_known():
    assert {model.program for model in completion.COMMANDS} == set(SCRIPTS)
    assert help_text(QuickstartSettings).startswith("usage: mace_quickstart FILE... ")


@pytest.mark.parametrize("model", [TrainingSettings, CheckSettings, QuickstartSettings])
def test_help_all_has_every_setting(model):
    everything = help_text(model, everything=True)
    assert not [name for name in model.model_fields if f"--{name}" not in everything]


def test_help_of_quickstart_is_short_and_begins_with_its_own():
    shown = help_text(QuickstartSettings)
    assert shown.startswith("usage: mace_quickstart FILE...")
    assert shown.index("--size") < shown.index("--train_file") and "--swa_lr" not in shown


@pytest.fixture(scope="module")
def water_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_water(tmp_path_factory.mktemp("data") / "train.xyz")


@pytest.fixture(scope="module")
def model_file(water_file: Path) -> Path:
    folder = water_file.parent
    done = run("mace_run_train", *TINY_MODEL, *QUICK, f"--work_dir={folder}", f"--train_file={water_file}", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "Training complete" in (folder / "logs" / "tiny_run-7.log").read_text()
    return folder / "tiny.model"


def work_of(script: str, model: Path, data: Path, folder: Path) -> list[str]:
    """Arguments with which a command does something and succeeds."""
    return {
        "mace_run_train": [*TINY_MODEL, *QUICK, f"--work_dir={folder}", f"--train_file={data}"],
        "mace_check_data": [f"--train_file={data}", f"--work_dir={folder}"],
        "mace_eval_configs": [f"--configs={data}", f"--model={model}", f"--output={folder / 'out.xyz'}"],
        "mace_md": [
            *(f"--structure={data}", "--index=-1", f"--model={model}", f"--trajectory={folder / 'md.xyz'}"),
            *("--steps=2", "--temperature_K=10"),
        ],
        "mace_info": [str(model)],
    }[script]


WORKING = ("mace_run_train", "mace_check_data", "mace_eval_configs", "mace_md", "mace_info")


@pytest.mark.parametrize("script", WORKING)
def test_output_into_a_file_is_plain_and_quiet_is_silent(script, model_file, water_file, tmp_path):
    arguments = work_of(script, model_file, water_file, tmp_path / "a")
    (tmp_path / "a").mkdir()
    loud = run(script, *arguments)
    assert loud.returncode == 0 and len(loud.stdout) > 100
    assert "\x1b" not in loud.stdout + loud.stderr and "\r" not in loud.stdout + loud.stderr
    (tmp_path / "b").mkdir()
    quiet = run(script, *work_of(script, model_file, water_file, tmp_path / "b"), "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert all("WARNING" in line for line in quiet.stderr.splitlines())


def test_log_level_is_obeyed(model_file, water_file, tmp_path):
    arguments = work_of("mace_eval_configs", model_file, water_file, tmp_path)
    assert run("mace_eval_configs", *arguments, "--log_level=WARNING").stdout == ""


def test_colors_are_for_terminals_without_no_color(water_file, tmp_path):
    color = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])m")
    arguments = command("mace_check_data", f"--train_file={water_file}", f"--work_dir={tmp_path}", "--r_max=0.5")
    assert color.search(on_a_terminal(arguments))
    assert not color.search(on_a_terminal(arguments, NO_COLOR="1"))


def completed(script: Path, words: str) -> list[str]:
    """Ask bash what it would offer for the last word."""
    program = words.split()[0]
    code = f"""
source {script}
COMP_WORDS=({words} "")
[[ "{words}" == *" --"* ]] && [[ "{words}" != *= ]] && COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_{program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30).stdout.split()


def test_completion_in_bash(tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(run("mace_completion", "bash").stdout)
    assert {"--train_file", "--test_file"} <= set(completed(script, "mace_run_train --t"))
    assert "--timestep_fs" in completed(script, "mace_md --t")
    assert completed(script, "mace_quickstart --siz") == ["--size"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_names_all_commands(shell):
    script = run("mace_completion", shell).stdout
    assert all(name in script for name in SCRIPTS)
    assert all(word in script for word in ("small", "ReduceLROnPlateau", "nvt"))


def test_every_command_has_a_module_that_can_be_run_as_a_file():
    for module in SCRIPTS.values():
        assert callable(importlib.import_module(module).main)


MICRO = "\N{MICRO SIGN}"


def write_letters(folder: Path) -> None:
    """Structures in a file, a type and an entry of which the names are not ASCII."""
    text = write_water(folder / "plain.xyz").read_text()
    text = text.replace("REF_energy", 'author="M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller" REF_energy')
    text = text.replace("pbc", f"config_type={MICRO} pbc").replace(f"IsolatedAtom config_type={MICRO}", "IsolatedAtom")
    lines = [line.replace(f" config_type={MICRO}", "") if "Isolated" in line else line for line in text.splitlines()]
    (folder / f"{MICRO}.xyz").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("script", ["mace_check_data", pytest.param("mace_run_train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("given", [f"{MICRO}.xyz", pytest.param("[!p]*.xyz", marks=pytest.mark.slow)])
def test_letters_beyond_ascii_where_the_locale_has_none(tmp_path: Path, script: str, given: str) -> None:
    write_letters(tmp_path)
    environment = ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = [*TINY_MODEL, *QUICK, "--max_num_epochs=1"] if script == "mace_run_train" else []
    done = subprocess.run(
        command(script, f"--train_file={given}", *flags),
        cwd=tmp_path,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert f"{MICRO}.xyz: energy 12 of 12" in shown and f" {MICRO} " in shown.replace("/", " ")
