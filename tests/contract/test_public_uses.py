"""Does what public scripts do with mace-torch work here, or say in one sentence what to do instead?"""

from __future__ import annotations

import importlib
import io
import pickle
import re
import runpy
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import public_uses
import pytest
import yaml
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator
from training_runs import QUICK, TINY_MODEL, write_water

import mace
from mace.calculators import MACECalculator, mace_mp
from mace.cli import eval_configs, run_train
from mace.cli.original import commands as original_commands
from mace.elsewhere import COMMANDS
from mace.errors import UserError
from mace.files import published
from mace.model.model_file import load_model, save_model
from mace.settings import parse_training_settings
from mace.settings.reading import parse_settings

ROOT = Path(__file__).parents[2]
SMALL = "20231210mace128L0_energy_epoch249model"
"""Where mace-torch keeps the model it calls small."""


def outcome(action: Any, *arguments: Any, **keywords: Any) -> str:
    """Do it, and return what was said if it was refused."""
    try:
        action(*arguments, **keywords)
    except (UserError, TypeError) as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def assert_as_written(said: str, expected: str) -> None:
    assert expected in said if expected else not said


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "own.model", files.model())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of downloads in which the small model of mace_mp lies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "mace"
    folder.mkdir(parents=True)
    small = files.write_original(folder / SMALL, files.tree_of(files.model()))
    monkeypatch.setitem(published.DIGESTS, published.ADDRESSES["mace_mp"]["small"], published.sha256_of(small))
    return folder


@pytest.mark.parametrize(("flags", "expected"), public_uses.TRAINING)
def test_flags_of_training(flags: str, expected: str) -> None:
    said = outcome(parse_training_settings, ["--name=m", "--train_file=train.xyz", *shlex.split(flags)])
    assert_as_written(said, expected)


@pytest.mark.parametrize(("flags", "expected"), public_uses.EVALUATION)
def test_flags_of_evaluation(flags: str, expected: str) -> None:
    files_named = ["--configs=test.xyz", "--model=own.model", "--output=out.xyz"]
    assert_as_written(
        outcome(parse_settings, eval_configs.EvaluationSettings, [*files_named, *shlex.split(flags)]), expected
    )


@pytest.mark.filterwarnings("ignore:MACECalculator. .* changes nothing")
@pytest.mark.parametrize(("arguments", "expected"), public_uses.CALCULATOR, ids=str)
@pytest.mark.parametrize("name", ["model_paths", "model_path", "model"])
def test_arguments_of_the_calculator(name: str, arguments: dict[str, Any], expected: str, model_file: Path) -> None:
    assert_as_written(outcome(MACECalculator, **{name: str(model_file)}, **arguments), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"enable_cueq": True}, ["enable_cueq=True changes nothing: this library is not used"]),
        ({"compile_mode": "max-autotune"}, ["compile_mode='max-autotune' changes nothing: models are not compiled"]),
        ({"pad_num_atoms": 64, "pad_num_edges": 9}, ["pad_num_atoms=64 changes nothing", "pad_num_edges=9 changes"]),
        ({"enable_cueq": False, "pad_num_atoms": 0, "pad_num_edges": 0, "fullgraph": True, "compile_mode": None}, []),
    ],
)
def test_arguments_that_change_nothing_are_told(arguments: dict[str, Any], words: list[str], model_file: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        MACECalculator(str(model_file), **arguments)
    texts = [str(warning.message) for warning in told if "MACECalculator" in str(warning.message)]
    assert len(texts) == len(words)
    assert all(word in text for word, text in zip(words, texts, strict=True)), texts


@pytest.mark.filterwarnings("ignore:MACECalculator. .* changes nothing")
@pytest.mark.parametrize(("arguments", "expected"), public_uses.MACE_MP, ids=str)
def test_arguments_of_mace_mp(arguments: dict[str, Any], expected: str, cache: Path) -> None:
    assert_as_written(outcome(mace_mp, **arguments), expected)


@pytest.mark.parametrize(("statement", "expected"), public_uses.IMPORTS)
def test_imports(statement: str, expected: str) -> None:
    if not expected:
        exec(statement, {})
        return
    with pytest.raises(ModuleNotFoundError, match=re.escape(expected)):
        exec(statement, {})


def test_other_modules_are_missing_as_usual() -> None:
    assert not hasattr(mace, "nothing")
    with pytest.raises(ModuleNotFoundError, match="No module named 'mace.nothing'"):
        importlib.import_module("mace.nothing")


def test_a_model_of_mace_torch_is_not_unpickled_but_explained() -> None:
    """What ``torch.load`` meets in a model file of mace-torch."""
    with pytest.raises(ModuleNotFoundError, match="without torch.load"):
        pickle.loads(b"cmace.modules.models\nScaleShiftMACE\n.")


def test_every_command_of_mace_torch_exists_or_says_what_to_use() -> None:
    """Its entry points are those of 0.3.16."""
    scripts = dict(re.findall(r'^(mace_\w+) = "([\w.:]+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M))
    original = {
        *("mace_active_learning_md", "mace_convert_device", "mace_create_lammps_model", "mace_cueq_to_e3nn"),
        *("mace_e3nn_cueq", "mace_eval_configs", "mace_finetuning_select", "mace_plot_train", "mace_prepare_data"),
        *("mace_run_train", "mace_select_head"),
    }
    assert original <= set(scripts)
    assert {name for name, place in scripts.items() if place.endswith(f":{name}")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_commands_say_what_to_use(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        getattr(original_commands, name)()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith(f"{name} does not exist") and said.count("\n") == 1


MODULES_OF_PROGRAMS = (
    "active_learning_md convert_cueq_e3nn convert_device convert_e3nn_cueq convert_e3nn_hybrid convert_e3nn_oeq "
    "convert_oeq_e3nn create_lammps_model visualise_train"
).split()
"""Modules in ``mace.cli`` of mace-torch 0.3.16, without those that exist here."""


@pytest.mark.parametrize("name", MODULES_OF_PROGRAMS)
def test_missing_programs_are_answered_as_modules(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_answered(lambda: runpy.run_module(f"mace.cli.{name}", run_name="__main__", alter_sys=True), capsys)
    assert callable(importlib.import_module(f"mace.cli.{name}").main)


@pytest.mark.parametrize("name", ["create_lammps_model"])
def test_programs_that_are_documented_as_files_are_answered_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "mace" / "cli" / f"{name}.py"
    assert_answered(lambda: runpy.run_path(str(path), run_name="__main__"), capsys)


def assert_answered(start: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        start()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "does not exist in mace-train: " in said and said.count("\n") == 1


def test_a_missing_program_is_answered_by_the_interpreter() -> None:
    command = [sys.executable, str(ROOT / "mace" / "cli" / "create_lammps_model.py"), "a.model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("mace_create_lammps_model does not exist")


def test_attributes_that_scripts_read(model_file: Path) -> None:
    calculator = MACECalculator(model_paths=[str(model_file)], device="cpu")
    table, (model,) = calculator.z_table, calculator.models
    assert table.zs == [1, 6, 8] and len(table) == 3
    assert (table.z_to_index(8), table.index_to_z(1)) == (2, 6)
    with pytest.raises(ValueError):
        table.z_to_index(7)
    assert calculator.r_max == float(model.r_max) == model.r_max.item() == 4.0
    assert {int(z) for z in model.atomic_numbers} == set(model.atomic_numbers.tolist()) == {1, 6, 8}
    assert int(model.num_interactions) == 2
    assert next(model.parameters()).dtype == model.dtype
    atoms = molecule("CH3OH")
    atoms.calc = calculator
    assert calculator.get_property("node_energy", atoms).shape == (6,)
    assert calculator.get_descriptors(atoms, invariants_only=True, num_layers=-1).shape[0] == 6


def test_the_download_alone(cache: Path) -> None:
    from mace.calculators.foundations_models import download_mace_mp_checkpoint, mace_mp_urls

    assert download_mace_mp_checkpoint("small") == str(cache / SMALL)
    assert mace_mp_urls["small"].startswith("https://")


class _Constant(Calculator):  # type: ignore[misc]
    """Stands for the calculator of torch-dftd: an energy for every atom, and what it was made with."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, **arguments: Any) -> None:
        if arguments["xc"] == "unknown":
            raise ValueError("unexpected value")
        super().__init__()
        self.made_with = arguments

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        n = len(self.atoms)
        self.results = {"energy": -0.5 * n, "free_energy": -0.5 * n, "forces": np.zeros((n, 3)), "stress": np.zeros(6)}


def test_dispersion_is_added(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("torch_dftd"), types.ModuleType("torch_dftd.torch_dftd3_calculator")
    module.TorchDFTD3Calculator = _Constant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_dftd", package)
    monkeypatch.setitem(sys.modules, "torch_dftd.torch_dftd3_calculator", module)
    calculator = mace_mp("small", device="cpu", default_dtype="float64", dispersion=True, damping="zero")
    assert isinstance(calculator, SumCalculator)
    made_with = calculator.mixer.calcs[1].made_with
    assert (made_with["damping"], made_with["xc"], made_with["device"]) == ("zero", "pbe", "cpu")
    assert str(made_with["dtype"]) == "torch.float64" and made_with["cutoff"] == pytest.approx(21.167, abs=1e-3)
    atoms, alone = molecule("CH4"), molecule("CH4")
    atoms.calc, alone.calc = calculator, mace_mp("small", device="cpu", default_dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy() - 2.5, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), alone.get_forces(), atol=1e-12)
    with pytest.raises(UserError, match="no parameters for dispersion_xc='unknown' with damping='bj'"):
        mace_mp("small", device="cpu", dispersion=True, dispersion_xc="unknown")


def test_dispersion_without_its_package_is_refused_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch_dftd", None)
    with pytest.raises(UserError, match="pip install torch-dftd"):
        mace_mp("small", device="cpu", dispersion=True)


def test_a_notebook_trains_and_evaluates_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``main()`` reads ``sys.argv`` and returns, so that what follows is reached; settings are in a YAML file."""
    monkeypatch.chdir(tmp_path)
    write_water(tmp_path / "train.xyz")
    settings: dict[str, Any] = dict(flag[2:].split("=", 1) for flag in (*TINY_MODEL, *QUICK))
    everything_here = {f"{kind}_dir": "MACE_models" for kind in ("model", "log", "checkpoints", "results")}
    for seed in (1, 2, 1):
        settings |= {"train_file": "train.xyz", "E0s": "average", "name": "mace01", "seed": seed, **everything_here}
        (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
        monkeypatch.setattr(sys, "argv", ["program", "--config", "config.yml"])
        run_train.main()
    models = [f"MACE_models/mace01_run-{seed}.model" for seed in (1, 2)]
    assert load_model("MACE_models/mace01.model").metadata.seed == 1
    assert [load_model(path).metadata.seed for path in models] == [1, 2]
    committee = MACECalculator(model_paths="MACE_models/mace01_run-*.model")
    assert committee.num_models == 2
    for number in range(2):
        arguments = ["--configs", "train.xyz", "--model", models[number], "--output", f"{number}.xyz"]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        eval_configs.main()
    assert (tmp_path / "1.xyz").exists()
    log = (tmp_path / "MACE_models" / "mace01_run-2.log").read_text()
    assert log.count("Training complete") == 1, "each run has a log of its own"
    monkeypatch.setattr(sys, "argv", ["program", "--config", "missing.yml"])
    with pytest.raises(SystemExit) as caught:
        run_train.main()
    assert caught.value.code == 2 and "missing.yml" in capsys.readouterr().err


def test_run_wants_words() -> None:
    with pytest.raises(UserError, match="takes the arguments as a list of strings"):
        run_train.run("--name=m --train_file=train.xyz")


def test_compiled_models_are_looked_for_in_vain(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models here are not compiled, name .*/mace_stagetwo.model"):
        MACECalculator(model_paths=str(tmp_path / "mace_stagetwo_compiled.model"))


def test_a_script_sees_one_sentence() -> None:
    code = "from mace.tools import torch_geometric"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert "What is asked of mace.tools belongs to mace-torch" in io.StringIO(done.stderr).readlines()[-1]
