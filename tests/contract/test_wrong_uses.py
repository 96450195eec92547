"""Does every wrong use of a command end in one sentence with a way out, status 2, and nothing written or lost?"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import ase.build
import numpy as np
import original_files as files
import pytest
from ase import Atoms
from ase.io import write

from mace.cli import command, eval_configs, export, fine_tuning_select, import_model, info, md, select_head
from mace.model.model_file import save_model

COMMANDS: dict[str, ModuleType] = {
    "mace_eval_configs": eval_configs,
    "mace_export": export,
    "mace_finetuning_select": fine_tuning_select,
    "mace_select_head": select_head,
    "mace_import_model": import_model,
    "mace_info": info,
    "mace_md": md,
}
EVALUATE = "mace_eval_configs --configs=good.xyz --model=good.model --output=out.xyz"
EXPORT = "mace_export good.model out.model --format=mace-torch --python=" + sys.executable
SELECT = "mace_finetuning_select --configs_pt=good.xyz --model=good.model --output=out.xyz --num_samples=1"
TORCH = " --format=mace-torch --python="
DYNAMICS = "mace_md --structure=good.xyz --model=good.model --steps=2 --temperature_K=300"

CASES = [
    # what a model can be instead of one
    ("mace_info none.model", "none.model: there is no such model file"),
    ("mace_info folder", "folder: this is a directory"),
    ("mace_info empty.file", "empty.file: the model file is empty"),
    ("mace_info good.xyz", "good.xyz: this is no complete model file"),
    ("mace_info zipped.model", "zipped.model: "),
    ("mace_info good.model --head=pt", "has one head, Default"),
    ("mace_info heads.model --head=pt", "heads.model: the model has no head 'pt'; its heads are low, high."),
    ("mace_info", "--file is required: model file of this program or of mace-torch."),
    ("mace_info good.model more", "'more' belongs to no setting"),
    ("mace_info good.model --jsn", "--jsn is not a setting; did you mean --json?"),
    ("mace_import_model none.model new.model", "none.model: there is no such"),
    ("mace_import_model folder new.model", "folder: this is a directory"),
    ("mace_import_model empty.file new.model", "empty.file: the file is empty"),
    ("mace_import_model good.model new.model", "good.model: "),
    ("mace_import_model good.xyz new.model", "good.xyz: "),
    (
        "mace_import_model good.model good.model",
        "good.model: the new model would take the place of",
    ),
    (
        "mace_import_model old.model old.model --overwrite",
        "old.model: the new model would take the place of",
    ),
    ("mace_import_model old.model folder --overwrite", "folder: "),
    ("mace_import_model old.model good.xyz/new.model", "good.xyz/new.model: the new model cannot be written, because"),
    ("mace_import_model old.model new.model --head=pt", "has one head, Default, and no head 'pt'"),
    ("mace_import_model old_heads.model new.model --head=pt", "has no head 'pt'; its heads are low, high."),
    ("mace_import_model old.model new.model --gate=relu", "--gate must be one of silu, tanh, abs, None, not 'relu'"),
    ("mace_import_model old.model new.model --avg_num_neighbors=few", "--avg_num_neighbors must be a number above 0"),
    ("mace_import_model old.model new.model --avg_num_neighbors=-3", "--avg_num_neighbors must be a number above 0"),
    ("mace_import_model old.model new.model --avg_num_neighbors=nan", "--avg_num_neighbors must be a number above 0"),
    ("mace_import_model old.model new.model --avg_num_neighbors=3", "--avg_num_neighbors has no effect"),
    ("mace_import_model old.model new.model --like=none.model", "none.model: there is no such"),
    # export
    ("mace_export none.model out.model --format=mace-torch --python=python3", "none.model: there is no such"),
    (
        "mace_export good.model good.model --format=mace-torch --python=python3",
        "good.model: the exported model would take the",
    ),
    (
        EXPORT.replace("out.model", "good.model") + " --overwrite",
        "good.model: the exported model would take the place of",
    ),
    (EXPORT.replace("out.model", "folder") + " --overwrite", "folder: "),
    (EXPORT.replace("mace-torch", "onnx"), "--format must be one of mace-torch, not 'onnx'"),
    ("mace_export good.model out.model --format=mace-torch", "--python"),
    (EXPORT.replace(sys.executable, "nowhere/python"), "there is no program nowhere/python"),
    (EXPORT.replace("good.model", "heads.model") + " --head=pt", "no head 'pt'; its heads are low, high."),
    (EXPORT, "name the python of an environment with mace-torch"),
    (EXPORT.replace("out.model", "dipole.model"), "dipole.model: the file exists; choose another name"),
    ("mace_import_model old.model dipole.model", "dipole.model: the file exists; choose another name"),
    (
        EXPORT.replace("out.model", "good.xyz/out.model"),
        "good.xyz/out.model: the exported model cannot be written",
    ),
    # selection of structures
    ("mace_finetuning_select --configs_pt=good.xyz", "--output is required"),
    (SELECT.replace("=good.xyz", "=none.xyz"), "none.xyz: there is no such file"),
    (SELECT.replace("=good.xyz", "=folder"), "folder: this folder holds no file with the ending"),
    (SELECT.replace("=good.xyz", "=no*.xyz"), "no*.xyz: no file matches"),
    (SELECT.replace("=good.xyz", " good.xyz good.xyz"), "good.xyz: the same file is given twice"),
    (SELECT.replace("=good.xyz", "=good.model"), "good.model: "),
    (SELECT.replace("=good.xyz", "=nan.xyz"), "nan.xyz: structure 1 has a position that is NaN"),
    (SELECT.replace("=good.xyz", " iron.xyz good.xyz"), "iron.xyz: structure 0 contains Fe"),
    (SELECT.replace("=good.xyz", "=none"), "none: there is no such file"),
    (SELECT + " --configs_ft=none.xyz", "none.xyz: there is no such file"),
    (SELECT.replace("good.model", "none.model"), "--model=none.model: there is no such file and no published model"),
    (SELECT.replace("good.model", "good.xyz"), "good.xyz: this is no complete model file"),
    (SELECT + " --head=pt", "has one head, Default, and no head 'pt'"),
    (SELECT.replace("good.model", "heads.model") + " --head=pt", "no head 'pt'; its heads are low, high."),
    (SELECT.replace("=out.xyz", "=good.xyz"), "good.xyz: the output would take the place of the structures"),
    (SELECT.replace("=out.xyz", "=folder/../good.xyz"), "would take the place of the structures"),
    (SELECT.replace("=out.xyz", "=out.traj"), "--output=out.traj must end in .xyz or .extxyz"),
    (SELECT.replace("=out.xyz", "=box.xyz"), "box.xyz: the output is a directory"),
    (SELECT.replace("=out.xyz", "=good.xyz/out.xyz"), "good.xyz/out.xyz: the output cannot be written, because"),
    (SELECT + " --num_samples=3", "good.xyz: --num_samples=3 is more than the 2 structures there are"),
    (SELECT + " --num_samples=0", "--num_samples must be a whole number of at least 1"),
    (SELECT + " --filtering_type=some", "--filtering_type must be one of none, combinations, inclusive, exclusive"),
    (SELECT + " --filtering_type=inclusive", "needs elements; name them with --filter_atomic_numbers_pt or --configs"),
    (SELECT + " --filtering_type=exclusive --filter_atomic_numbers_pt=[8] --disallow_random_padding", "0 of 2 struct"),
    (SELECT + " --filter_atomic_numbers_pt=[8,800]", "--filter_atomic_numbers_pt must be a list of different atomic"),
    (
        SELECT + " --filtering_type=inclusive --filter_atomic_numbers_pt=[8] --configs_ft=iron.xyz",
        "--filter_atomic_numbers_pt names other elements than those in --configs_ft (Fe)",
    ),
    (SELECT + " --descriptors=none.npz", "none.npz: the descriptors cannot be read (No such file"),
    (SELECT + " --descriptors=good.xyz", "good.xyz: this is no file of descriptors"),
    (SELECT + " --save_descriptors=good.xyz", "--save_descriptors=good.xyz must end in .npz"),
    (SELECT + " --weight_pt=-1", "--weight_pt must be a number of at least 0"),
    (SELECT + " --seed=-1", "--seed must be a whole number of at least 0"),
    # one head out of several
    ("mace_select_head", "--model_file is required"),
    ("mace_select_head none.model", "none.model: there is no such"),
    ("mace_select_head good.xyz", "good.xyz: this is no complete model file"),
    ("mace_select_head good.model", "good.model: the model has one head, Default; use it as it is."),
    ("mace_select_head old.model -n Default", "old.model: the model has one head, Default; use it as it is."),
    ("mace_select_head heads.model", "heads.model: the model has 2 heads (low, high); name one (--head_name)."),
    ("mace_select_head old_heads.model -n pt", "old_heads.model: the model has no head 'pt'; its heads are low, high."),
    ("mace_select_head heads.model -n low -o heads.model", "the new model would take the place of the model"),
    ("mace_select_head heads.model -n low -o good.model", "good.model: the file exists; choose another name"),
    ("mace_select_head heads.model -n low -o folder", "folder: the new model is a directory"),
    ("mace_select_head heads.model -n low -o good.xyz/a.model", "good.xyz/a.model: the new model cannot be written"),
    ("mace_select_head heads.model -l -n low", "--list_heads only prints the names"),
    ("mace_select_head heads.model -n", "--head_name needs a value"),
    ("mace_select_head heads.model -x", "-x is not a setting"),
    ("mace_select_head heads.model -n low --format=mace-torch", "--format=mace-torch needs --python"),
    ("mace_select_head heads.model -n low --python=python3", "give both or neither"),
    ("mace_select_head heads.model -n low" + TORCH + "nowhere/python", "there is no program nowhere/python"),
    ("mace_select_head heads.model -n low" + TORCH + sys.executable, "name the python of an environment with mace-tor"),
    # evaluation
    (EVALUATE.replace("good.xyz", "none.xyz"), "none.xyz: there is no such file"),
    (EVALUATE.replace("good.xyz", "empty.file"), "empty.file: the file is empty"),
    (EVALUATE.replace("good.xyz", "folder"), "folder: this folder holds no file with the ending"),
    (EVALUATE.replace("good.xyz", "no*.xyz"), "no*.xyz: no file matches"),
    (EVALUATE.replace("good.xyz", "good.model"), "good.model: "),
    (EVALUATE.replace("good.xyz", "nan.xyz"), "nan.xyz: structure 1 has a position that is NaN"),
    (EVALUATE.replace("good.xyz", "iron.xyz"), "iron.xyz: structure 0 contains Fe"),
    (EVALUATE.replace("good.xyz", "flat.xyz"), "flat.xyz: structure 0 repeats along"),
    (EVALUATE.replace("good.model", "no*.model"), "no*.model: no model file matches"),
    (EVALUATE.replace("good.model", "good.xyz"), "good.xyz: this is no complete model file"),
    (EVALUATE.replace("=out.xyz", "=folder"), "folder: the output is a directory"),
    (EVALUATE.replace("=out.xyz", "=good.model"), "good.model: the output would take the place of the model"),
    (EVALUATE.replace("=out.xyz", "=good.xyz/out.xyz"), "good.xyz/out.xyz: the output cannot be written"),
    (EVALUATE + " --batch_size=0", "--batch_size must be a whole number of at least 1, not '0'"),
    (EVALUATE + " --batch_size=many", "--batch_size must be a whole number of at least 1, not 'many'"),
    (
        EVALUATE + " --default_dtype=float16",
        "--default_dtype must be one of float32, float64, not 'float16'; did you mean float64?",
    ),
    (
        EVALUATE + " --device=tpu",
        "--device must be cpu, cuda, mps or xpu, with a number where there are several (cuda:0)",
    ),
    (
        EVALUATE + " --descriptor",
        "--descriptor is not a setting, but begins several: --descriptor_aggregation_method, ",
    ),
    (EVALUATE + " --charges_key=Qs", "--charges_key has no effect"),
    (EVALUATE + " --plot=folder.png", "folder.png: the plot is a directory"),
    (EVALUATE + " --plot=parity.docx", "--plot=parity.docx must end in .png"),
    (EVALUATE + " --plot=good.model/a.png", "good.model/a.png: the plot cannot be written, because"),
    (EVALUATE.replace("good.model", "dipole.model") + " --compute_stress", "predicts dipoles only"),
    (EVALUATE.replace("good.model", "heads.model") + " --head=pt", "no head 'pt'; its heads are low, high."),
    (EVALUATE.replace("good.model", "heads.model"), "good.xyz: structure 0 is for the head 'Default', which the model"),
    (
        EVALUATE.replace("good", "heads"),
        "heads.xyz: structure 1 is for the head 'medium', which the model does not have; its heads are low, high.",
    ),
    # dynamics
    (DYNAMICS.replace("good.model", "heads.model"), "heads.model: the model has 2 heads (low, high), and none is"),
    (DYNAMICS.replace("good.model", "heads.model") + " --head=pt", "no head 'pt'; its heads are low, high."),
    (DYNAMICS.replace("good.xyz", "none.xyz"), "none.xyz: there is no such file"),
    (DYNAMICS.replace("good.xyz", "nan.xyz") + " --index=1", "nan.xyz: structure 1 has a position that is NaN"),
    (DYNAMICS.replace("good.xyz", "iron.xyz"), "Fe"),
    (DYNAMICS + " --index=7", "there is no structure 7; the file has 2"),
    (DYNAMICS.replace("good.model", "dipole.model"), "predicts dipoles only, no forces"),
    (DYNAMICS.replace("=300", "=0"), "--temperature_K must be a number above 0 (K) or None, not '0'"),
    (DYNAMICS.replace("=300", "=inf"), "--temperature_K must be a number above 0"),
    (DYNAMICS.replace(" --temperature_K=300", ""), "--ensemble=nvt needs --temperature_K"),
    (DYNAMICS.replace(" --steps=2", ""), "either --steps or --time_ps"),
    (DYNAMICS + " --time_ps=1", "either --steps or --time_ps"),
    (DYNAMICS.replace("=2", "=0"), "--steps must be a whole number of at least 1"),
    (DYNAMICS + " --timestep_fs=-1", "--timestep_fs must be a number above 0 (fs), not '-1'"),
    (DYNAMICS + " --ensemble=npt", "good.xyz: --ensemble=npt needs a structure that repeats"),
    (DYNAMICS + " --ensemble=nve --friction=1", "--friction has no effect with --ensemble=nve"),
    (DYNAMICS + " --trajectory=md.pdb", "--trajectory=md.pdb must end in"),
    (DYNAMICS + " --trajectory=good.xyz", "good.xyz: the trajectory would take the place of the structure"),
    (DYNAMICS + " --trajectory=good.model/md.xyz", "good.model/md.xyz: the trajectory cannot be written, because"),
    (DYNAMICS + " --trajectory=box.xyz", "box.xyz: the trajectory is a directory"),
    (DYNAMICS + " --restart", "md.xyz"),
    (DYNAMICS + " --device=cuda:99", "cuda"),
    (DYNAMICS + " --seed=-1", "--seed must be a whole number of at least 0, not '-1'"),
]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files."""
    folder = tmp_path_factory.mktemp("examples")
    of_dipoles = {"model": "AtomicDipolesMACE", "reference_energies": (), "readout_channels": 0, "readout_vectors": 2}
    save_model(folder / "good.model", files.model())
    save_model(folder / "dipole.model", files.model(files.PLAN.model_copy(update=of_dipoles)))
    files.write_original(folder / "old.model", files.tree_of(files.model()))
    heads = files.model(files.with_heads("low", "high"))
    save_model(folder / "heads.model", heads)
    tree = files.tree_of(heads, files.state_of(heads), heads=["low", "high"])
    files.write_original(folder / "old_heads.model", tree)
    for name in ("folder", "folder.png", "box.xyz"):
        (folder / name).mkdir()
        (folder / name / "kept").write_text("kept")
    (folder / "empty.file").touch()
    (folder / "zipped.model").write_bytes(b"PK\x03\x04" + bytes(100))
    water = ase.build.molecule("H2O")
    wrong = water.copy()
    wrong.positions[1, 2] = np.nan
    of_heads = [water.copy(), water.copy()]
    for atoms, head in zip(of_heads, ("high", "medium"), strict=True):
        atoms.info["head"] = head
    structures = {
        "heads.xyz": of_heads,
        "good.xyz": [water, water],
        "nan.xyz": [water, wrong],
        "iron.xyz": [Atoms("Fe2", positions=np.eye(3)[:2])],
        "flat.xyz": [Atoms("H2", positions=np.eye(3)[:2], cell=np.ones((3, 3)), pbc=True)],
    }
    for name, frames in structures.items():
        write(folder / name, frames, format="extxyz")
    return folder


@pytest.fixture
def folder(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, in which commands are run."""
    shutil.copytree(examples, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    before = _contents(folder)
    name, *arguments = line.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        command.run_program(COMMANDS[name].run)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1 and told.rstrip().endswith((".", "?")) and "Traceback" not in told, told
    after = _contents(folder)
    assert {path: after.get(path) for path in before} == before, "nothing may be lost"
    assert not [path for path in after.keys() - before.keys() if not path.endswith(".log")], "nothing may be written"
