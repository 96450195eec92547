"""What public scripts, job files and notebooks do with mace-torch: flags with typical values, arguments, imports.

Collected from several hundred excerpts of public files that name the commands, loaders and modules of mace-torch; only
names and numbers are kept, in an arrangement of our own. Beside each use stands what becomes of it: an empty text if it
works, else a part of the sentence that says what to do instead.
"""

from __future__ import annotations

from typing import Any

import torch

TRAINING: list[tuple[str, str]] = [
    # the command of the guides, and its shapes
    ("--valid_fraction=0.05 --E0s=average --hidden_irreps='128x0e + 128x1o' --swa --start_swa=1200 "
     "--max_num_epochs=1500 --ema --ema_decay=0.99 --amsgrad --restart_latest --batch_size=10", ""),
    ("--stage_two --start_stage_two=1200 --config_type_weights='{\"Default\":1.0}'", ""),
    ("--swa --start_swa=500 --max_num_epochs=367", ""),
    ("--start_swa=600 --swa --E0s='{1:-13.6, 6:-1029.2, 8:-2042.0}'", ""),
    ("--num_channels=128 --max_L=1 --E0s=average --eval_interval=10 --patience=100 --plot_frequency=10", ""),
    ("--hidden_irreps='64x0e+64x1o' --num_radial_basis=3 --num_cutoff_basis=4", ""),
    ("--hidden_irreps='256x0e + 256x1o + 256x2e' --correlation=3 --max_ell=3 --MLP_irreps=128x0e", ""),
    ("--hidden_irreps='128x0e +  + 128x1o'", ""),
    ("--radial_MLP='[128, 256, 512, 1024]' --num_interactions=3", ""),
    ("--model=ScaleShiftMACE --interaction_first=RealAgnosticResidualInteractionBlock "
     "--interaction=RealAgnosticResidualInteractionBlock --scaling=rms_forces_scaling", ""),
    ("--interaction_first=RealAgnosticDensityInteractionBlock --pair_repulsion --distance_transform=Agnesi "
     "--interaction=RealAgnosticDensityResidualInteractionBlock", ""),
    # labels and losses
    ("--energy_key=energy --forces_key=forces --stress_key=stress --compute_stress=True --loss=universal", ""),
    ("--stress_key=None --stress_weight=0 --loss=huber", ""),
    ("--energy_key=free_energy --forces_weight=0.0 --compute_forces=false --scaling=no_scaling", ""),
    ("--loss=weighted --energy_weight=1 --forces_weight=1000.0 --swa_energy_weight=1000 --swa_forces_weight=100", ""),
    ("--loss=stress --stress_weight=100 --error_table=PerAtomRMSEstressvirials --keep_isolated_atoms=True", ""),
    ("--loss=dipole --model=AtomicDipolesMACE --error_table=DipoleRMSE --dipole_key=REF_dipole", ""),
    ("--loss=energy_forces_dipole --model=EnergyDipolesMACE --error_table=EnergyDipoleRMSE", ""),
    ("--error_table=PerAtomMAE", ""),
    ("--error_table=TotalMAE", ""),
    # the optimizer
    ("--lr=0.01 --lr=0.001 --weight_decay=5e-7 --clip_grad=10 --scheduler_patience=5 --patience=256", ""),
    ("--scheduler=ReduceLROnPlateau --lr_factor=0.8 --lr_scheduler_gamma=0.9993 --swa_lr=1e-4", ""),
    ("--optimizer=schedulefree --clip_grad=None", ""),
    # where and how it runs
    ("--device=cuda:0 --default_dtype=float32 --save_cpu --seed=123", ""),
    ("--distributed --device=cuda", ""),
    ("--model_dir=MACE_models --log_dir=MACE_models --checkpoints_dir=MACE_models --results_dir=MACE_models", ""),
    ("--pin_memory False --save_all_checkpoints --keep_checkpoints", ""),
    ("--wandb --wandb_project=p --wandb_entity=e --wandb_name=n --wandb_log_hypers lr batch_size", ""),
    ("--atomic_numbers='[1, 6, 7, 8]' --test_dir=tests --valid_fraction=1e-12", ""),
    ("--num_workers=16", ""),
    ("--enable_cueq=True --only_cueq=True", ""),
    ("--num_samples_pt=1000 --subselect_pt=random --weight_pt_head=10 --foundation_head=pt_head", ""),
    ("--foundation_model=small --num_samples_pt=1000", ""),
    # fine-tuning
    ("--foundation_model=medium --multiheads_finetuning=False --E0s=average --lr=0.01 --batch_size=2", ""),
    ("--foundation_model=medium-omat-0 --multiheads_finetuning=False --E0s=foundation", ""),
    ("--foundation_model=small --multiheads_finetuning=False --E0s=estimated --lr=0.001 --weight_decay=0.0", ""),
    ("--foundation_model=old.model --foundation_model_elements=True --multiheads_finetuning=False", ""),
    # preprocessed data
    ("--statistics_file=statistics.json --num_workers=8", ""),
    # misspelled, or of other programs
    ("--learning_rate=0.001", "--learning_rate is not a setting"),
    ("--num_swa=100", "--num_swa is not a setting"),
    ("--config_type_weights=' '", "must be a dictionary of weights"),
    ("--valid_fraction=0.0", "must be a number above 0"),
    ("--max_num_epochs 0", ""),
    ("--valid_file=valid.xyz --valid_fraction=0", ""),
    ("--stress_key= --virials_key=None", ""),
    ("--max_num_ep=20 --batch_s=4 --stage_two_energy=100", ""),
]  # fmt: skip
"""Flags of ``mace_run_train`` beside ``--name`` and ``--train_file``."""

EVALUATION: list[tuple[str, str]] = [
    ("--batch_size=16 --device=cpu --default_dtype=float64", ""),
    ("--compute_stress --info_prefix=MACE_", ""),
    ("--return_descriptors --descriptor_invariants_only=True", ""),
    ("--return_node_energies", ""),
    ("--enable_cueq", ""),
    ("--compute_str --batch_s=4", ""),
    ("--return_contributions", "remove the flag"),
    ("--compute_bec", "remove the flag"),
    ("--no_forces", "--no_forces is not a setting"),
]
"""Flags of ``mace_eval_configs`` beside ``--configs``, ``--model`` and ``--output``."""

CALCULATOR: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"device": "cpu"}, ""),
    ({"device": "cpu", "default_dtype": "float32"}, ""),
    ({"default_dtype": "float64", "model_type": "MACE"}, ""),
    ({"default_dtype": "", "charges_key": "Qs", "energy_units_to_eV": 1.0, "length_units_to_A": 1.0}, ""),
    ({"head": "default"}, ""),
    ({"head": "Default", "enable_cueq": False, "enable_oeq": False}, ""),
    ({"compile_mode": None, "fullgraph": True, "pad_num_atoms": 0, "pad_num_edges": 0, "warmup": False}, ""),
    ({"info_keys": None, "arrays_keys": None}, ""),
    ({"compute_atomic_stresses": True}, ""),
    ({"default_dtype": torch.float32}, ""),
    ({"default_dtype": "torch.float64"}, ""),
    ({"default_dtype": torch.float16}, "choose float32 or float64"),
    ({"dispersion": False}, ""),
    ({"enable_cueq": True}, ""),
    ({"enable_oeq": True}, ""),
    ({"compile_mode": "default", "fullgraph": False, "warmup": True}, ""),
    ({"pad_num_atoms": 64, "pad_num_edges": 1024}, ""),
    ({"head": "omat_pbe"}, "no head 'omat_pbe'"),
    ({"model_type": "DipoleMACE"}, "the model knows what it is"),
    ({"model_type": "PolarMACE"}, "the model knows what it is"),
    ({"dtype": "float64"}, "did you mean 'default_dtype'?"),
    ({"use_cueq": False}, "MACECalculator has no argument 'use_cueq'"),
    ({"compile": False}, "MACECalculator has no argument 'compile'"),
]
"""Arguments of ``MACECalculator`` beside the model."""

MACE_MP: list[tuple[dict[str, Any], str]] = [
    ({"model": "small"}, ""),
    ({"model": "small", "device": "cpu", "dispersion": False, "default_dtype": "float64"}, ""),
    (
        {"model": "small", "dispersion": False, "damping": "zero", "dispersion_xc": "pbe"},
        "",
    ),
    ({"model": "small", "device": "cpu", "return_raw_model": True}, ""),
    ({"model": "small", "head": "Default"}, ""),
    ({"model": "small", "return_raw_model": True, "enable_cueq": True}, ""),
    ({"model": "small", "return_raw_model": True, "dispersion": True}, "to which dispersion=True cannot be added"),
    ({"model": "small", "dispersion": True, "damping": "BJ"}, "choose zero, bj, zerom, bjm"),
    ({"model": "small", "dispersion": True, "dispersion_cutoff": 0.0}, "must be a finite number above zero"),
    ({"model": "small", "float": 64}, "MACECalculator has no argument 'float'"),
    ({"model": "mace-mp-small"}, "choose small, medium"),
]
"""Arguments of ``mace_mp``."""

IMPORTS: list[tuple[str, str]] = [
    ("from mace.calculators import MACECalculator, mace_anicc, mace_mp, mace_off, mace_omol, mace_polar", ""),
    ("from mace.calculators.mace import MACECalculator", ""),
    ("from mace.calculators.foundations_models import mace_mp, mace_off, mace_omol", ""),
    ("from mace.calculators.foundations_models import download_mace_mp_checkpoint, mace_mp_urls", ""),
    ("import mace.calculators; mace.calculators.mace_mp", ""),
    ("from mace.cli.run_train import main, run", ""),
    ("from mace.cli.eval_configs import main", ""),
    ("from mace.calculators import LAMMPS_MACE", "mace_export --format mace-torch"),
    ("from mace import data, modules, tools", "mace.modules belongs to mace-torch"),
    ("from mace import data, tools; tools.set_seeds, data.get_neighborhood", ""),
    ("from mace.data import AtomicData, KeySpecification, config_from_atoms", "method evaluate(structures)"),
    ("from mace.data.atomic_data import AtomicData", "What is asked of mace.data belongs to mace-torch"),
    ("from mace.data.neighborhood import get_neighborhood", ""),
    ("from mace.tools import AtomicNumberTable, torch_geometric, utils", "mace.calculators.MACECalculator opens"),
    ("from mace.tools import atomic_numbers_to_indices, to_one_hot, utils; utils.AtomicNumberTable([1, 8])", ""),
    ("import mace.tools; mace.tools.set_seeds, mace.tools.set_default_dtype, mace.tools.build_default_arg_parser", ""),
    ("from mace.tools.arg_parser import build_default_arg_parser", ""),
    ("from mace.tools.torch_tools import set_default_dtype, set_seeds, to_one_hot", ""),
    ("from mace.tools.utils import AtomicNumberTable, get_cache_dir", ""),
    ("from mace.tools.scripts_utils import get_dataset_from_xyz", "What is asked of mace.tools belongs to mace-torch"),
    ("from mace.cli.preprocess_data import run; from mace.tools import build_preprocess_arg_parser", ""),
    ("from mace.cli.convert_e3nn_cueq import run; from mace.cli.convert_cueq_e3nn import run", ""),
    ("import mace.tools.torch_geometric.dataloader", "What is asked of mace.tools belongs to mace-torch"),
    (
        "from mace.calculators.foundations_models import get_cache_dir, mace_mp_names, mace_mp_urls, mace_off_urls; "
        "assert None in mace_mp_names and set(mace_mp_urls) < set(mace_mp_names) and 'small' in mace_off_urls",
        "",
    ),
    ("from mace.modules.models import MACE, ScaleShiftMACE", "mace.model.mace.MACE"),
    ("from mace.modules.utils import extract_invariant", "without torch.load"),
    ("from mace.cli.create_lammps_model import main", ""),
]
"""Statements."""
