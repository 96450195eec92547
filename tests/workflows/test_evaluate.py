"""Does a stranger get predictions for a file of structures, with everything kept that was in it?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mace.calculators import MACECalculator
from mace.cli import command, eval_configs
from mace.errors import RunInterrupted, UserError
from mace.evaluation import evaluation
from mace.formats.reading import iterate_frames
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    plan = ModelPlan(
        model="MACE",
        r_max=3.5,
        l_max=1,
        n_channels=3,
        hidden_l=(0, 1),
        interactions=(InteractionPlan(residual=False), InteractionPlan(residual=True)),
        correlation=(2, 2),
        radial_mlp=(6,),
        avg_num_neighbors=6.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-13.0, -1000.0, -2000.0),
    )
    model = MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(5))
    return save_model(tmp_path_factory.mktemp("model") / "small.model", model)


def _frames() -> list[Atoms]:
    """Structures as different as files have them, with an isolated atom in the middle."""
    rng = np.random.default_rng(2)
    crystal = Atoms("COH", scaled_positions=rng.random((3, 3)), cell=np.diag([3.0, 3.5, 4.0]) + 0.1, pbc=True)
    slab = ase.build.graphene(size=(2, 2, 1), vacuum=5.0)
    frames = [ase.build.molecule("H2O"), Atoms("O"), crystal, slab, ase.build.molecule("CH3OH"), Atoms("H")]
    for i, atoms in enumerate(frames):
        atoms.rattle(0.01, seed=i)
        atoms.info.update(config_type=("IsolatedAtom" if len(atoms) == 1 else f"type{i % 2}"), note=f"frame {i}")
        atoms.arrays["tag_of_mine"] = np.arange(len(atoms)) + 10 * i
    return frames


def _evaluate(*arguments: Any) -> None:
    eval_configs.run([str(argument) for argument in arguments])


def _evaluated(tmp_path: Path, model_path: Path, frames: list[Atoms], *flags: Any) -> list[Atoms]:
    ase.io.write(tmp_path / "in.xyz", frames)
    output = tmp_path / "out.xyz"
    _evaluate(f"--configs={tmp_path / 'in.xyz'}", f"--model={model_path}", f"--output={output}", *flags)
    found: list[Atoms] = ase.io.read(output, ":")
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_values_are_those_of_the_calculator_in_the_order_of_the_input(
    tmp_path: Path, model_path: Path, batch_size: int
) -> None:
    flags = ["--compute_stress", "--return_node_energies", f"--batch_size={batch_size}"]
    found = _evaluated(tmp_path, model_path, _frames(), *flags)
    calculator = MACECalculator(model_path)
    given = ase.io.read(tmp_path / "in.xyz", ":")
    assert [atoms.info["note"] for atoms in found] == [f"frame {i}" for i in range(6)]
    for atoms, original in zip(found, given, strict=True):
        original.calc = calculator
        assert atoms.info["MACE_energy"] == pytest.approx(original.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(atoms.arrays["MACE_forces"], original.get_forces(), atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["MACE_node_energies"], calculator.results["energies"], atol=1e-8)
        if "stress" in calculator.results:
            np.testing.assert_allclose(
                atoms.info["MACE_stress"], original.get_stress(voigt=False, apply_constraint=False), atol=1e-9
            )
        assert ("MACE_stress" in atoms.info) == ("stress" in calculator.results) == (original.cell.rank == 3)


def test_everything_known_before_is_kept(tmp_path: Path, model_path: Path) -> None:
    frames = _frames()
    rng = np.random.default_rng(0)
    for i, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.25 * i, forces=rng.normal(size=(len(atoms), 3)).round(6))
        atoms.info["REF_energy"] = 3.5 + i
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3)).round(6)
    frames[2].calc.results["stress"] = np.arange(6.0) / 8.0
    frames[3].set_constraint(FixAtoms([0, 2]))
    found = _evaluated(tmp_path, model_path, frames)
    for atoms, original in zip(found, frames, strict=True):
        assert atoms.info.keys() == original.info.keys() | {"MACE_energy"}
        assert all(atoms.info[key] == original.info[key] for key in original.info)
        assert atoms.arrays.keys() == original.arrays.keys() | {"MACE_forces"}
        for key in original.arrays:
            np.testing.assert_allclose(atoms.arrays[key], original.arrays[key], atol=1e-8)
        np.testing.assert_array_equal(atoms.pbc, original.pbc)
        assert atoms.calc.results.keys() == original.calc.results.keys()
        for key, value in original.calc.results.items():
            np.testing.assert_allclose(atoms.calc.results[key], value, atol=1e-8)
    np.testing.assert_array_equal(found[3].constraints[0].index, [0, 2])


def test_evaluating_again_into_the_same_file_replaces_predictions_only(tmp_path: Path, model_path: Path) -> None:
    first = _evaluated(tmp_path, model_path, _frames())
    for atoms in first:
        atoms.info["MACE_energy"] = 99.0
    again = tmp_path / "again.xyz"
    ase.io.write(again, first)
    _evaluate("--configs", again, "--model", model_path, "--output", again, "--info_prefix", "MACE_")
    second = ase.io.read(again, ":")
    assert len(second) == 6 and all(abs(atoms.info["MACE_energy"] - 99.0) > 1.0 for atoms in second)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


def test_prefix(tmp_path: Path, model_path: Path) -> None:
    found = _evaluated(tmp_path, model_path, _frames(), "--info_prefix=ml_")
    assert all("ml_energy" in atoms.info and "ml_forces" in atoms.arrays for atoms in found)
    assert not any(key.startswith("MACE_") for atoms in found for key in (*atoms.info, *atoms.arrays))


def test_other_formats_and_several_files(tmp_path: Path, model_path: Path) -> None:
    frames = _frames()
    frames[0].calc = SinglePointCalculator(frames[0], energy=-3.0, free_energy=-3.5)
    ase.io.write(tmp_path / "b.traj", frames[:2])
    ase.io.write(tmp_path / "a.xyz", frames[2:])
    _evaluate("--configs", tmp_path / "[ab].*", "--model", model_path, "--output", tmp_path / "new" / "out.xyz")
    found = ase.io.read(tmp_path / "new" / "out.xyz", ":")
    assert [atoms.info["note"] for atoms in found] == [f"frame {i}" for i in (2, 3, 4, 5, 0, 1)]
    assert found[4].calc.results == {"energy": -3.0, "free_energy": -3.5}


@pytest.mark.parametrize("ending", ["extxyz", "xyz.gz", "extxyz.bz2", "xyz.xz", "traj", "db", "json"])
def test_the_output_has_the_format_of_its_ending(tmp_path: Path, model_path: Path, ending: str) -> None:
    """What is read again from it is what extended XYZ would hold."""
    frames = _frames()
    for place, atoms in enumerate(frames):
        atoms.info |= {"config_type": "wet", "n": place, "digits": "12", "E_of_dft": -1.5, "axis": np.arange(5.0)}
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    given = ["--configs", tmp_path / "in.xyz", "--model", model_path, "--return_node_energies"]
    for name in ("plain.xyz", f"OUTCAR.{ending}", f"OUTCAR.{ending}"):  # an older output is replaced
        _evaluate(*given, "--output", tmp_path / name)
    read = [list(iterate_frames(str(tmp_path / name))) for name in ("plain.xyz", f"OUTCAR.{ending}")]
    for one, other in zip(*read, strict=True):
        assert one.numbers.tolist() == other.numbers.tolist() and one.pbc == other.pbc
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-12)
        for place in ("info", "arrays", "results"):
            assert getattr(one, place).keys() == getattr(other, place).keys()
            for key, value in getattr(one, place).items():
                np.testing.assert_array_equal(getattr(other, place)[key], value, err_msg=key)
    assert {path.name for path in tmp_path.iterdir()} == {"in.xyz", f"OUTCAR.{ending}", "plain.xyz"}


@pytest.mark.parametrize("name", ["out.cif", "out.exyz", "out.traj.gz", "out.dat", "out.xyz.zip", "out.vasp"])
def test_an_output_of_another_ending_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    """Before the model is looked for."""
    with pytest.raises(UserError, match=f"{name}: structures are not written in the format of this ending; .*[.]xyz"):
        _evaluate("--configs", tmp_path / "in.xyz", "--model", "no.model", "--output", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_several_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each structure is for the head it names, others for the default, all for that of ``--head``."""
    path = save_model(tmp_path / "heads.model", files.model(files.with_heads("low", "Default", "high")))
    frames = _frames()[:1] * 4
    frames = [atoms.copy() for atoms in frames]
    named = ["high", None, "low", "Default"]
    for atoms, head in zip(frames, named, strict=True):
        if head is not None:
            atoms.info["head"] = head
    expected = {head: MACECalculator(path, head=head) for head in ("low", "Default", "high")}
    found = _evaluated(tmp_path, path, frames, "--return_node_energies")
    assert "Heads: high (1 structures), Default (2 structures), low (1 structures)" in capsys.readouterr().out
    for atoms, head in zip(found, named, strict=True):
        results = expected[head or "Default"].evaluate([frames[1]])[0]
        assert atoms.info["MACE_energy"] == pytest.approx(results["energy"], abs=1e-9)
        assert atoms.info.get("head") == head
        np.testing.assert_allclose(atoms.arrays["MACE_forces"], results["forces"], atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["MACE_node_energies"], results["energies"], atol=1e-8)
    for atoms in _evaluated(tmp_path, path, frames, "--head=low"):
        energy = expected["low"].evaluate([frames[1]])[0]["energy"]
        assert atoms.info["MACE_energy"] == pytest.approx(energy, abs=1e-9)


def test_descriptors(tmp_path: Path, model_path: Path) -> None:
    frames = _frames()
    calculator = MACECalculator(model_path)
    expected = [calculator.get_descriptors(atoms) for atoms in frames]
    rows = _evaluated(tmp_path, model_path, frames, "--return_descriptors")
    first = _evaluated(tmp_path, model_path, frames, "--return_descriptors", "--descriptor_num_layers=1")
    flag = "--descriptor_aggregation_method"
    mean = _evaluated(tmp_path, model_path, frames, "--return_descriptors", flag, "mean")
    by_element = _evaluated(tmp_path, model_path, frames, "--return_descriptors", flag, "per_element_mean")
    for i, values in enumerate(expected):
        np.testing.assert_allclose(rows[i].arrays["MACE_descriptors"].reshape(values.shape), values, atol=1e-7)
        np.testing.assert_allclose(first[i].arrays["MACE_descriptors"].reshape(-1, 3), values[:, :3], atol=1e-7)
        np.testing.assert_allclose(mean[i].info["MACE_descriptors"], values.mean(0), atol=1e-7)
        symbols = np.array(frames[i].get_chemical_symbols())
        found = by_element[i].info["MACE_descriptors"]
        assert set(found) == set(symbols)
        for symbol in found:
            np.testing.assert_allclose(found[symbol], values[symbols == symbol].mean(0), atol=1e-7)


def _table_rows(text: str) -> dict[str, list[str]]:
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[1:]}


def test_reports_errors_of_what_is_labeled(
    tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, calculator = _frames(), MACECalculator(model_path)
    for atoms in frames:
        atoms.calc = calculator
        atoms.info["REF_energy"] = atoms.get_potential_energy() + 0.004 * len(atoms)
        if "stress" in calculator.results:
            atoms.info["REF_stress"] = atoms.get_stress(voigt=False) + 0.003
        atoms.calc = None
    frames[0].arrays["REF_forces"] = frames[0].positions * 0.0
    _evaluated(tmp_path, model_path, frames, "--compute_stress")
    text = capsys.readouterr().out
    rows = _table_rows(text)
    assert set(rows) == {"type0", "type1", "all"}
    assert rows["all"][0] == rows["type0"][0] == rows["type1"][0] == "4.0"
    assert rows["type1"][1] == "-" and float(rows["type0"][1]) > 0.0
    assert rows["all"][3] == "3.0"
    assert "4 of 6 structures have no stress" in text
    assert "Evaluated 6 structures in" in text and "structures/s" in text
    assert "energy 4 of 4 (info 'REF_energy')" in text


def test_structures_without_labels(tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _evaluated(tmp_path, model_path, _frames())
    assert "no labels of what the model predicts to compare with" in capsys.readouterr().out


def test_single_precision(tmp_path: Path, model_path: Path) -> None:
    exact = _evaluated(tmp_path, model_path, _frames())
    single = _evaluated(tmp_path, model_path, _frames(), "--default_dtype=float32")
    difference = max(np.abs(a.arrays["MACE_forces"] - b.arrays["MACE_forces"]).max() for a, b in zip(exact, single))  # noqa: B905
    assert 0.0 < difference < 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--return_contributions"], "--return_contributions: energies by body order are not available yet"),
        (["--compute_bec"], "--compute_bec: Born effective charges"),
        (["--head=pt"], "the model has one head, Default, and no head 'pt'"),
        (["--return_descriptors", "--descriptor_num_layers=9"], "choose 1 to 2"),
        (["--batch_size=0"], "--batch_size must be a whole number of at least 1"),
        (["--compute_stess"], "--compute_stess is not a setting; did you mean --compute_stress?"),
        (["--descriptor"], "--descriptor is not a setting, but begins several: --descriptor_aggregation_method"),
        (["--model=none.model"], "there is no such model file"),
        (["--configs=none.xyz"], "none.xyz: there is no such file"),
        (["--info_prefix=REF_"], "take the place of the label 'REF_energy'"),
    ],
)
def test_refusals(tmp_path: Path, model_path: Path, flags: list[str], message: str) -> None:
    frames = _frames()
    for atoms in frames:
        atoms.info["REF_energy"] = 1.0
    with pytest.raises(UserError) as caught:
        _evaluated(tmp_path, model_path, frames, *flags)
    assert message in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.xyz"]


@pytest.mark.parametrize(
    "flag",
    [
        "--enable_cueq",
        "--descriptor_invariants_only=False",
        "--descriptor_num_layers=1",
        "--descriptor_aggregation_method=mean",
    ],
)
def test_what_changes_nothing_is_told(
    tmp_path: Path, model_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = _evaluated(tmp_path, model_path, _frames())
    capsys.readouterr()
    with_flag = _evaluated(tmp_path, model_path, _frames(), flag)
    told = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(told) == 1 and flag in told[0] and ("changes nothing" in told[0] or "has no effect" in told[0])
    assert [a.info for a in with_flag] == [a.info for a in plain]


def test_empty_prefix_spares_the_labels(tmp_path: Path, model_path: Path) -> None:
    frames = _frames()
    found = _evaluated(tmp_path, model_path, frames, "--info_prefix=")
    assert all({"energy", "forces"} <= set(atoms.calc.results) for atoms in found)
    with pytest.raises(UserError, match="take the place of the label 'energy'"):
        _evaluated(tmp_path, model_path, found, "--info_prefix=")


def test_unknown_element_names_file_and_structure(tmp_path: Path, model_path: Path) -> None:
    frames = _frames()
    frames[4].numbers[0] = 26
    with pytest.raises(UserError, match=r"in.xyz: structure 4 contains Fe"):
        _evaluated(tmp_path, model_path, frames)
    assert not (tmp_path / "out.xyz").exists()


def test_a_failure_leaves_the_old_output(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _evaluated(tmp_path, model_path, _frames())
    before = (tmp_path / "out.xyz").read_bytes()

    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mace.evaluation.evaluation.Tally.add", fail)
    with pytest.raises(KeyboardInterrupt):
        _evaluated(tmp_path, model_path, _frames(), "--batch_size=2")
    assert (tmp_path / "out.xyz").read_bytes() == before
    assert len(ase.io.read(tmp_path / "out.xyz.partial", ":", format="extxyz")) == 2


def test_output_that_is_a_directory(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "out.xyz").mkdir()
    with pytest.raises(UserError, match="the output is a directory"):
        _evaluated(tmp_path, model_path, _frames())


def _run(*arguments: Any, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in (path, str(REPOSITORY)) if part)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_as_a_program_from_a_checkout(tmp_path: Path, model_path: Path) -> None:
    ase.io.write(tmp_path / "in.xyz", _frames())
    script = REPOSITORY / "mace" / "cli" / "eval_configs.py"
    done = _run(script, "--configs=in.xyz", f"--model={model_path}", "--output=out.xyz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 6
    assert "Wrote out.xyz" in done.stdout


def test_a_mistake_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    arguments = ["-m", "mace.cli.eval_configs", "--configs=in.xyz", "--model=none.model", "--output=out.xyz"]
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("none.model: there is no such model file") and done.stderr.count("\n") == 1


def test_missing_flags_are_status_2(tmp_path: Path) -> None:
    done = _run("-m", "mace.cli.eval_configs", cwd=tmp_path)
    assert done.returncode == 2 and "--configs" in done.stderr and "Traceback" not in done.stderr


def test_help(tmp_path: Path) -> None:
    done = _run("-m", "mace.cli.eval_configs", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--compute_stress" in done.stdout


def test_refuses_to_run_beside_the_original(tmp_path: Path) -> None:
    folder = tmp_path / "mace_torch-0.3.16.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mace-torch\nVersion: 0.3.16\n", encoding="utf-8")
    done = _run("-m", "mace.cli.eval_configs", "--help", cwd=tmp_path, path=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("mace-torch 0.3.16 is installed") and "pip uninstall mace-torch" in done.stderr


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return None", 0),
        ("return 3", 3),
        ("raise UserError('One sentence.')", command.USER_ERROR),
        ("raise KeyboardInterrupt", command.INTERRUPTED),
        ("raise BrokenPipeError", command.BROKEN_PIPE),
    ],
)
def test_exit_statuses(tmp_path: Path, body: str, status: int) -> None:
    code = f"""
import sys
from mace.cli.command import run_program
from mace.errors import RunInterrupted, UserError
def main(arguments):
    assert arguments == ["--a=1"]
    {body}
run_program(main)
"""
    done = _run("-c", code, "--a=1", cwd=tmp_path)
    assert done.returncode == status and "Traceback" not in done.stderr


def test_defects_keep_their_traceback(tmp_path: Path) -> None:
    code = "from mace.cli.command import run_program\nrun_program(lambda arguments: 1 // 0)"
    done = _run("-c", code, cwd=tmp_path)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs pipes as on POSIX")
def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    code = "from mace.cli.command import run_program\n"
    code += "run_program(lambda arguments: print('x' * 1_000_000))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == command.BROKEN_PIPE


def test_parity_plot(tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = _frames()
    _evaluated(tmp_path, model_path, frames, f"--plot={tmp_path / 'none.png'}")
    assert not (tmp_path / "none.png").exists()
    for atoms in frames:
        atoms.info["REF_energy"] = 1.0
    _evaluated(tmp_path, model_path, frames, f"--plot={tmp_path / 'parity.png'}")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert "parity.png" in capsys.readouterr().out


def test_a_signal_leaves_what_is_done(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ase.io.write(tmp_path / "in.xyz", _frames())
    add = evaluation.Tally.add

    def count_and_ask_for_the_end(*arguments: Any) -> None:
        add(*arguments)
        if arguments[0].summary.n_structures == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluation.Tally, "add", count_and_ask_for_the_end)
    output = tmp_path / "out.xyz"
    with pytest.raises(RunInterrupted, match="Stopped by SIGTERM: 4 of 6 structures are done; they are in .*partial"):
        _evaluate("--configs", tmp_path / "in.xyz", "--model", model_path, "--output", output, "--batch_size=2")
    assert not output.exists()
    found = ase.io.read(tmp_path / "out.xyz.partial", ":", format="extxyz")
    assert [atoms.info["note"] for atoms in found] == [f"frame {i}" for i in range(4)]
    assert all("MACE_energy" in atoms.info for atoms in found)


def test_all_descriptors(tmp_path: Path, model_path: Path) -> None:
    flags = ("--return_descriptors", "--descriptor_invariants_only=False")
    found = _evaluated(tmp_path, model_path, _frames(), *flags)
    expected = MACECalculator(model_path).get_descriptors(_frames()[0], invariants_only=False)
    np.testing.assert_allclose(found[0].arrays["MACE_descriptors"], expected, atol=1e-7)
