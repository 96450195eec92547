"""Do the command lines of mace-torch's own tests run here, or get a sentence that names what does not exist?

They ship in its wheel (0.3.16). Flags and values are facts, written down here as tables; structures and the foundation
model are our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import original_files
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from training_runs import isolated_atoms, labeled, rattled

from mace.cli.run_train import run
from mace.errors import UserError
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan

Flags = dict[str, Any]

_KEYS: Flags = {"energy_key": "REF_energy", "forces_key": "REF_forces", "stress_key": "REF_stress"}
_WEIGHTS: Flags = {"energy_weight": 1.0, "forces_weight": 10.0, "stress_weight": 1.0}
_AVERAGES: Flags = {"swa": None, "start_swa": 5, "ema": None, "ema_decay": 0.99, "amsgrad": None}
_PLAIN: Flags = {
    **_WEIGHTS, **_KEYS, **_AVERAGES,
    "name": "MACE", "train_file": "fit.xyz", "valid_fraction": 0.05, "model": "MACE", "hidden_irreps": "128x0e",
    "r_max": 3.5, "batch_size": 5, "max_num_epochs": 10, "restart_latest": None, "device": "cpu", "seed": 5,
    "loss": "stress", "eval_interval": 2, "use_reduced_cg": False,
}  # fmt: skip
_AS_SMALL: Flags = {
    "loss": "weighted", "foundation_model": "small", "r_max": 6.0, "default_dtype": "float64", "num_radial_basis": 10,
    "interaction_first": "RealAgnosticResidualInteractionBlock",
}  # fmt: skip
_ALONE: Flags = _PLAIN | _AS_SMALL | {"multiheads_finetuning": False}
_REPLAY: Flags = {
    "num_samples_pt": 50,
    "subselect_pt": "random",
    "filter_type_pt": "combinations",
    "force_mh_ft_lr": True,
}
_HEADS: Flags = {"heads": {"DFT": {"train_file": "fit.xyz"}, "MP2": {"train_file": "fit.xyz"}}}
_OF_ATOMS = {"atomic_numbers": "[1,8]", "valid_fraction": 0.1, "batch_size": 2, "valid_batch_size": 1}
_FIRST: Flags = {
    **_WEIGHTS, **_KEYS,
    "name": "foundation", "train_file": "fit.xyz", "valid_fraction": 0.2, "model": "MACE", "hidden_irreps": "32x0e",
    "r_max": 5.0, "batch_size": 2, "max_num_epochs": 5, "swa": None, "start_swa": 3, "device": "cpu", "seed": 42,
    "loss": "weighted", "default_dtype": "float64",
}  # fmt: skip
_OWN_REPLAY: Flags = {
    "foundation_model": "first",
    "num_samples_pt": 3,
    "subselect_pt": "random",
    "force_mh_ft_lr": True,
}
_NUMBERED: Flags = {
    **_WEIGHTS, **_AVERAGES, **_AS_SMALL,
    "name": "MACE_", "train_file": "fit.xyz", "valid_file": "valid.xyz", "model": "MACE", "hidden_irreps": "128x0e",
    "max_num_epochs": 1, "device": "cpu", "seed": 5, "batch_size": 1, "valid_batch_size": 1, "num_samples_pt": 50,
    "subselect_pt": "random", "eval_interval": 2, "use_reduced_cg": False, "E0s": "{1:0.0,8:1.0}",
}  # fmt: skip
del _NUMBERED["foundation_model"]
_DIPOLES: Flags = {
    **{name: value for name, value in _PLAIN.items() if name not in ("hidden_irreps", "swa", "start_swa", "ema")},
    "dipole_weight": 1.0, "loss": "dipole", "model": "AtomicDipolesMACE", "error_table": "DipoleRMSE",
    "dipole_key": "REF_dipole",
}  # fmt: skip
_NO_KEYS: Flags = {"energy_key": "", "forces_key": "", "stress_key": ""}
_SEVERAL_FILES: Flags = {
    "name": "multifile_test", "seed": 42, "model": "MACE", "hidden_irreps": "32x0e", "r_max": 5.0, "batch_size": 5,
    "max_num_epochs": 2, "patience": 5, "device": "cpu", "energy_weight": 1.0, "forces_weight": 10.0, "swa": False,
    "loss": "weighted", "optimizer": "adam", "default_dtype": "float64", "lr": 0.01, "atomic_numbers": "[1, 8]",
}  # fmt: skip
_EMBEDDED: Flags = {
    "name": "MACE_with_temp", "valid_fraction": 0.1, "energy_weight": 1.0, "forces_weight": 10.0, "model": "MACE",
    "hidden_irreps": "32x0e", "r_max": 5.0, "num_interactions": 3, "max_num_epochs": 3, "batch_size": 4,
    "device": "cpu", "seed": 42, "loss": "weighted", "energy_key": "REF_energy", "forces_key": "REF_forces",
}  # fmt: skip
_CLASSES = {"type": "categorical", "per": "graph", "in_dim": 1, "emb_dim": 32}
_OF_STRUCTURES = {
    "elec_temp": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 32},
    "total_charge": {**_CLASSES, "num_classes": 200, "offset": 100},
    "total_spin": {**_CLASSES, "num_classes": 100},
}
_OF_EVERY_ATOM = {
    "cat": {"type": "categorical", "per": "atom", "in_dim": 1, "emb_dim": 32, "num_classes": 2},
    "quant": {"key": "KEY_quant", "type": "continuous", "per": "atom", "in_dim": 1, "emb_dim": 32},
    "quant_v": {"key": "quant_v", "type": "continuous", "per": "atom", "in_dim": 2, "emb_dim": 32},
}
_PSEUDO: Flags = {
    "name": "ft_mh0_pseudo", "seed": 42, "device": "cpu", "default_dtype": "float64", "loss": "weighted",
    "error_table": "PerAtomRMSE", "batch_size": 2, "valid_batch_size": 1, "valid_fraction": 0.3, "max_num_epochs": 0,
    "foundation_model": "mh-0", "foundation_head": "omat_pbe", "multiheads_finetuning": True,
    "pseudolabel_replay": True, "pt_train_file": "mp", "num_samples_pt": 3, "subselect_pt": "random",
    "filter_type_pt": "none", "force_mh_ft_lr": True,
}  # fmt: skip
_POLAR: Flags = {
    **_KEYS, "name": "polar_base", "train_file": "fit.xyz", "valid_fraction": 0.2, "model": "PolarMACE",
    "hidden_irreps": "16x0e", "r_max": 3.5, "batch_size": 2, "max_num_epochs": 1, "lr": 1e-4, "loss": "stress",
    "default_dtype": "float64", "device": "cpu", "E0s": "average",
}  # fmt: skip
_NO_REPLAY = ["--num_samples_pt=50 has no effect without --foundation_model and --multiheads_finetuning"]

RUNNING: dict[str, tuple[Flags, Flags, list[str]]] = {
    "run_train": (_PLAIN, {}, []),
    "no_stress": (_PLAIN | {"loss": "weighted"}, {}, []),
    "lbfgs": (_PLAIN | {"max_num_epochs": 2, "lbfgs": None}, {}, []),
    "foundation": (_ALONE, {}, ["--model=MACE: the foundation model is of the kind ScaleShiftMACE"]),
    "foundation_elements": (
        {name: _ALONE[name] for name in ("name", "train_file", "hidden_irreps", *_AS_SMALL, "multiheads_finetuning")}
        | {"max_num_epochs": 5}, {}, [],
    ),
    "cueq": (_PLAIN | {"enable_cueq": True, "default_dtype": "float64"}, {}, ["--enable_cueq=True changes nothing"]),
    "first_of_two": (_FIRST, {}, []),
    "lr_of_parts": (
        _ALONE
        | {"lr_params_factors": '{"embedding_lr_factor": 0.0, "interactions_lr_factor": 1.0, '
           '"products_lr_factor": 1.0, "readouts_lr_factor": 1.0}'}, {}, [],
    ),
    "freeze": (_ALONE | {"max_num_epochs": 2, "freeze": 6}, {}, ["products.1: 23,552, frozen"]),
    "lora": (_ALONE | {"lora": True, "lora_rank": 2, "lora_alpha": 0.5}, {}, ["in corrections of rank 2"]),
    "keys_of_the_file": (_NUMBERED, {}, _NO_REPLAY),
    "keys_in_yaml": (_NUMBERED, {"energy_key": "2_energy", "forces_key": "2_forces"}, _NO_REPLAY),
    "keys_beside_a_foundation": (
        {"name": "_MACE_", "train_file": "fit.xyz", "foundation_model": "small", "device": "cpu",
         "E0s": "{1:0.0,8:1.0}", "energy_key": "2_energy", "dry_run": None}, {},
        ["Fine-tuning on the given structures alone"],
    ),
    "dipole": (
        _DIPOLES | {"max_L": 1, "compute_atomic_dipole": True}, {}, ["--compute_atomic_dipole=True changes nothing"],
    ),
    "calculator": (_PLAIN | {"hidden_irreps": "16x0e+16x1o"}, {}, []),
    "calculator_dipole": (_DIPOLES | _NO_KEYS | {"num_channels": 8, "max_L": 2, "ema": None}, {}, []),
    "calculator_energy_dipole": (
        _DIPOLES | _NO_KEYS | {"num_channels": 32, "max_L": 1, "ema": None, "model": "EnergyDipolesMACE",
        "loss": "energy_forces_dipole", "error_table": "EnergyDipoleRMSE", "energy_key": "REF_energy"}, {},
        ["--forces_weight=10 has no effect: --forces_key says that there is none"],
    ),
    "elec_temp": (
        {"train_file": "fit.xyz"},
        {**_EMBEDDED, "elec_temp_key": "elec_temp", "total_charge_key": "total_charge", "total_spin_key": "total_spin",
         "embedding_specs": _OF_STRUCTURES}, ["in_dim of 'total_charge' has no effect"],
    ),
    "atom_embed": (
        {"train_file": "fit.xyz"}, {**_EMBEDDED, "embedding_specs": _OF_EVERY_ATOM}, ["in_dim of 'cat' has no effect"],
    ),
    "multihead": (_PLAIN | {"loss": "weighted"}, _HEADS, []),
    "foundation_multihead": (
        _PLAIN | _AS_SMALL | _REPLAY | _OF_ATOMS, _HEADS, ["--pt_train_file=mp"],
    ),
    "foundation_multihead_alone": (_PLAIN | _AS_SMALL | _REPLAY | _OF_ATOMS, {}, ["head Default"]),
    "custom_replay": (_FIRST | _OWN_REPLAY | {"pt_train_file": "fit.xyz"}, _HEADS, ["3 are taken at random"]),
    "filtered_replay": (
        _FIRST | _OWN_REPLAY | {"pt_train_file": "mp", "filter_type_pt": "exclusive", "dry_run": None}, {},
        ["contain exactly"],
    ),
    "data_ratio": (
        _FIRST | _OWN_REPLAY | {"pt_train_file": "mp", "real_pt_data_ratio_threshold": 0.5}, {}, ["3 are taken"],
    ),
    "pseudolabels": (_PLAIN | _AS_SMALL | _REPLAY | {"pseudolabel_replay": True}, {}, ["by the foundation model"]),
    "pseudolabels_of_heads": (_PSEUDO, _HEADS, ["by the foundation model"]),
    "default_head_with_keys": (_NUMBERED, {"heads": {"Default": {"energy_key": "2_energy"}}}, []),
    "several_files": (
        {},
        {**_SEVERAL_FILES,
         "heads": {"head1": {"train_file": ["fit.xyz"], "valid_file": "valid.xyz"},
                   "head2": {"train_file": ["fit.xyz", "valid.xyz"]}}},
        ["head2"],
    ),
}  # fmt: skip
"""By test: flags, None for bare ones, a YAML file beside them, and warnings."""

REFUSED: dict[str, tuple[Flags, Flags, str]] = {
    "another_foundation": (
        _ALONE | {"r_max": 3.5}, {}, "--r_max=3.5 contradicts the foundation model",
    ),
    "dipole_polar": (
        _DIPOLES | {"model": "AtomicDielectricMACE", "max_L": 2, "loss": "dipole_polar", "polarizability_weight": 1.0,
        "error_table": "DipolePolarRMSE", "compute_polarizability": True}, {},
        "--model AtomicDielectricMACE: models of polarizabilities are not available",
    ),
    "maceles": (_PLAIN | {"model": "MACELES"}, {}, "--model MACELES: this model is not available"),
    "polar": (_POLAR, {}, "--model PolarMACE: this model is not available"),
    "polar_heads": (_POLAR | {"pt_train_file": "fit.xyz"}, _HEADS, "--model PolarMACE: this model is not available"),
}  # fmt: skip
"""By test: flags, a YAML file beside them, and a part of the answer."""


def arguments(flags: Flags, folder: Path, config: Flags) -> list[str]:
    """Write flags as mace-torch's tests do, and the YAML file."""
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items()]
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        words.append("--config=config.yaml")
    return words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water in boxes with all the labels these command lines name, and a foundation model as they describe it."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    box = Atoms("OHH", positions=[[0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.5]], cell=[6.0] * 3, pbc=True)
    frames = [labeled(rattled(box, 0.05, rng), stress=True) for _ in range(12)]
    for frame in frames:
        frame.info |= {"2_energy": frame.info["REF_energy"], "REF_dipole": rng.normal(0.0, 0.1, 3), "elec_temp": 300.0}
        frame.info |= {"total_charge": 0, "total_spin": 1}
        frame.arrays |= {"2_forces": frame.arrays["REF_forces"], "cat": np.array([0, 1, 1])}
        frame.arrays |= {"KEY_quant": rng.normal(size=3), "quant_v": rng.normal(size=(3, 2))}
    atoms = isolated_atoms()
    for atom in atoms:
        atom.info["2_energy"] = atom.info["REF_energy"]
        atom.arrays |= {"cat": np.zeros(1, int), "KEY_quant": np.zeros(1), "quant_v": np.zeros((1, 2))}
    write(folder / "fit.xyz", [*atoms, *frames[:9]], format="extxyz")
    write(folder / "valid.xyz", frames[9:], format="extxyz")
    plan = ModelPlan(
        model="ScaleShiftMACE",
        r_max=6.0,
        num_radial_basis=10,
        n_channels=128,
        hidden_l=(0,),
        correlation=(3, 3),
        interactions=(InteractionPlan(residual=True),) * 2,
        avg_num_neighbors=2.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(3.2, 3.1, 4.6),
    )
    save_model(folder / "small.model", original_files.model(plan))
    first = plan.model_copy(update={"n_channels": 32, "r_max": 5.0, "num_radial_basis": 8})
    save_model(folder / "first.model", original_files.model(first))
    save_model(folder / "mh-0.model", original_files.model(original_files.with_heads("omat_pbe", "other")))
    published = [frame.copy() for frame in frames]
    for frame in published:
        results = {"energy": frame.info["REF_energy"], "forces": frame.arrays["REF_forces"], "stress": np.zeros(6)}
        frame.calc = SinglePointCalculator(frame, **results)
    write(folder / "mp.xyz", published, format="extxyz")
    return folder


def told(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: Flags, config: Flags
) -> str:
    """Do a dry run of a command line in the folder with the files, and return what it shows."""
    monkeypatch.chdir(files)
    monkeypatch.setattr("mace.finetuning.foundation.foundation_file", lambda name: files / f"{name}.model")
    monkeypatch.setattr("mace.finetuning.replay_sets.replay_file", lambda name, progress: files / f"{name}.xyz")
    run([*arguments(flags, files, config), "--dry_run", "--kernels=torch", "--work_dir=run"])
    return capsys.readouterr().out


@pytest.mark.parametrize(("flags", "config", "warnings"), RUNNING.values(), ids=RUNNING)
def test_runs(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Flags,
    config: Flags,
    warnings: list[str],
) -> None:
    shown = told(files, monkeypatch, capsys, flags, config)
    assert "Plan of the run" in shown
    missing = [warning for warning in warnings if warning not in shown]
    assert not missing, shown


@pytest.mark.parametrize(("flags", "config", "answer"), REFUSED.values(), ids=REFUSED)
def test_is_refused_by_name(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Flags,
    config: Flags,
    answer: str,
) -> None:
    with pytest.raises(UserError) as caught:
        told(files, monkeypatch, capsys, flags, config)
    assert answer in str(caught.value)
