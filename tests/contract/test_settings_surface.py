"""Is every flag of the original command line accepted, or refused by name?"""

import json
from pathlib import Path

import pytest
from training_runs import train, write_water

from mace.errors import UserError
from mace.settings import TrainingSettings, parse_training_settings
from mace.settings.declaration import declarations, inert_notes
from mace.settings.heads import HeadSettings

SURFACE = json.loads(Path(__file__).with_name("cli_surface.json").read_text())["build_default_arg_parser"]
SPECS = {"total_spin": {"type": "categorical", "per": "graph", "num_classes": 9, "emb_dim": 4}}
REQUIRED = {"name": "run", "train_file": "train.xyz"}

SUPPORTED = set(
    """
    config name seed work_dir log_dir model_dir checkpoints_dir results_dir device default_dtype log_level plot
    plot_interaction_e plot_frequency error_table model r_max radial_type num_radial_basis
    num_cutoff_basis pair_repulsion
    distance_transform apply_cutoff interaction interaction_first edge_irreps use_agnostic_product
    use_last_readout_only max_ell correlation num_interactions MLP_irreps radial_MLP
    hidden_irreps num_channels max_L gate scaling avg_num_neighbors compute_avg_num_neighbors compute_stress
    compute_forces train_file valid_file valid_fraction test_file test_dir pin_memory atomic_numbers mean std E0s
    num_workers statistics_file
    keep_isolated_atoms energy_key forces_key virials_key stress_key dipole_key charges_key polarizability_key loss
    forces_weight
    swa_forces_weight energy_weight swa_energy_weight virials_weight swa_virials_weight stress_weight
    swa_stress_weight config_type_weights huber_delta optimizer beta beta1_schedulefree beta2_schedulefree
    batch_size valid_batch_size lr swa_lr weight_decay lr_params_factors amsgrad scheduler lr_factor
    scheduler_patience lr_scheduler_gamma lbfgs swa start_swa ema ema_decay max_num_epochs patience eval_interval
    dipole_weight swa_dipole_weight keep_checkpoints save_all_checkpoints restart_latest save_cpu clip_grad dry_run
    distributed launcher
    wandb wandb_dir wandb_project wandb_entity wandb_name wandb_log_hypers
    foundation_model foundation_head foundation_model_elements foundation_model_readout
    freeze lora lora_rank lora_alpha
    embedding_specs use_embedding_readout total_charge_key total_spin_key elec_temp_key
    heads head_key skip_evaluate_heads multiheads_finetuning foundation_model_kwargs foundation_filter_elements
    weight_pt_head real_pt_data_ratio_threshold num_samples_pt force_mh_ft_lr subselect_pt filter_type_pt
    allow_random_padding_pt pt_train_file pt_valid_file pseudolabel_replay pseudolabel_replay_compute_stress
    """.split()
)

OURS = set(
    """
    allow energy_unit length_unit stress_unit kernels num_threads progress use_edge_irreps_first init_from
    checkpoint_minutes nan_policy nan_retries max_edges_per_batch csv tensorboard quiet
    batch_edges batch_atoms valid_batch_edges valid_batch_atoms
    report take_over devices tf32 cuda_graphs head_sampling select_by lbfgs_steps lbfgs_history
    """.split()
)
"""Ours, and one flag of the released original that is missing from the surface file."""

REFUSED_CHOICES = {
    "model": {
        "BOTNet",
        "PolarMACE",
        "MACELES",
        "ScaleShiftBOTNet",
        "AtomicDielectricMACE",
    },
    "error_table": {"DipolePolarRMSE"},
    "loss": {"dipole_polar"},
}

INERT = set(
    """
    downloads_dir enable_cueq only_cueq enable_oeq multi_processed_test compute_polarizability
    compute_atomic_dipole les_arguments kspace_cutoff_factor atomic_multipoles_max_l atomic_multipoles_smearing_width
    field_feature_max_l field_feature_widths field_feature_norms num_recursion_steps field_si
    include_electrostatic_self_interaction add_local_electron_energy quadrupole_feature_corrections
    return_electrostatic_potentials field_norm_factor fixedpoint_update_config field_readout_config
    polarizability_weight swa_polarizability_weight
    """.split()
)
"""Nothing here looks at them."""

ALONE_WITHOUT_EFFECT = set(
    """
    foundation_head foundation_model_elements foundation_model_readout foundation_model_kwargs multiheads_finetuning
    foundation_filter_elements lora_rank lora_alpha weight_pt_head real_pt_data_ratio_threshold num_samples_pt
    force_mh_ft_lr subselect_pt filter_type_pt allow_random_padding_pt pt_train_file pt_valid_file pseudolabel_replay
    pseudolabel_replay_compute_stress use_edge_irreps_first use_embedding_readout lbfgs_steps lbfgs_history
    wandb_dir wandb_project wandb_entity wandb_name wandb_log_hypers
    """.split()
)
"""They belong to other settings, without which nothing looks at them."""

ACCEPTED = SUPPORTED | INERT | ALONE_WITHOUT_EFFECT

FACTORS = {"embedding_lr_factor": 0.5, "interactions_lr_factor": 1.0, "products_lr_factor": 1.0}
SAMPLES = {
    "log_level": ("DEBUG", "DEBUG"),
    "radial_MLP": ("[32, 16]", [32, 16]),
    "atomic_numbers": ("[1, 8]", [1, 8]),
    "E0s": ("average", "average"),
    "config_type_weights": ('{"Default":1.0, "surface": 2}', {"Default": 1.0, "surface": 2.0}),
    "lr_params_factors": ('{"embedding_lr_factor": 0.5}', {**FACTORS, "readouts_lr_factor": 1.0}),
    "wandb_log_hypers": ("lr", ["lr"]),
    "scheduler": ("ExponentialLR", "ExponentialLR"),
    "embedding_specs": (str(SPECS), SPECS),
    "foundation_model_kwargs": ("{'head': 'pbe'}", {"head": "pbe"}),
    "heads": ("dft,ccsd", {"dft": HeadSettings(), "ccsd": HeadSettings()}),
}
"""What to type for settings whose type in the surface file says too little, and what it must become."""

DEFAULT_DIFFERENCES = {
    "plot_interaction_e": (False, True),
    "launcher": ("slurm", "auto"),
    "num_workers": (0, None),
    **{
        f"{label}_key": (f"DefaultKeys.{label.upper()}.value", None)
        for label in (
            "energy forces virials stress dipole polarizability head charges elec_temp total_spin total_charge"
        ).split()
    },
}
"""Every setting whose default differs: (theirs, ours). A key of None means REF_<label> if present, else <label>."""


def name_of(entry: dict) -> str:
    """Name of the setting a flag of the original sets."""
    return entry["dest"] or entry["flags"][0][2:]


def sample_of(entry: dict) -> tuple[str, object]:
    """Text to type for a flag, different from its default, and the value it means."""
    if name_of(entry) in SAMPLES:
        return SAMPLES[name_of(entry)]
    if entry["type"] == "str2bool":
        return str(not entry["default"]), not entry["default"]
    if entry["type"] == "int":
        value = int(entry["default"] or 0) + 1
        return str(value), value
    if entry["type"] in ("float", "check_float_or_none"):
        value = 0.75 * (entry["default"] or 1.0)
        return str(value), value
    return "sample", "sample"


def typed_flags() -> list:
    """One case per flag, alias and choice: the arguments, the name, the value meant, and whether it is supported."""
    cases = []
    for entry in SURFACE:
        name = name_of(entry)
        for flag in entry["flags"]:
            if entry["action"]:
                value = entry["action"] == "store_true"
                cases.append((flag, [flag], name, value, name in ACCEPTED))
            elif entry["choices"]:
                for choice in entry["choices"]:
                    refused = choice in REFUSED_CHOICES.get(name, ())
                    cases.append((flag, [f"{flag}={choice}"], name, choice, not refused))
            else:
                text, value = sample_of(entry)
                cases.append((flag, [flag, text], name, value, name in ACCEPTED))
    return [pytest.param(*case, id=" ".join(case[1])) for case in cases if case[2] != "config"]


@pytest.mark.parametrize(("flag", "arguments", "name", "value", "supported"), typed_flags())
def test_flag_is_obeyed_or_refused_by_name(flag, arguments, name, value, supported):
    """A flag either has its value in the settings or raises a sentence that names it."""
    argv = [f"--{key}={text}" for key, text in REQUIRED.items() if key != name] + arguments
    if supported:
        settings = parse_training_settings(argv)
        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is type(value)
        assert name in settings.model_fields_set
        # what changes nothing is told, unless it is the default
        told = [note for note in inert_notes(settings) if note.startswith(f"--{name}=")]
        is_idle = name in INERT | ALONE_WITHOUT_EFFECT and value != TrainingSettings.model_fields[name].default
        assert len(told) == is_idle
    else:
        with pytest.raises(UserError) as caught:
            parse_training_settings(argv)
        sentence = str(caught.value)
        assert sentence.startswith(f"{flag}:") or sentence.startswith(f"{flag} {value}:")
        assert sentence.endswith(".") and "\n" not in sentence


def test_no_flag_is_forgotten():
    """The settings are those of the surface file and a short list of our own."""
    assert {name_of(entry) for entry in SURFACE} | OURS == set(TrainingSettings.model_fields)
    known = declarations(TrainingSettings)
    unsupported = {name for name, declaration in known.items() if declaration.unsupported}
    assert set(TrainingSettings.model_fields) - unsupported - INERT == SUPPORTED | OURS
    assert {name for name, declaration in known.items() if declaration.inert} == INERT
    assert {name for name, declaration in known.items() if declaration.only_with} == ALONE_WITHOUT_EFFECT


@pytest.mark.parametrize("entry", SURFACE, ids=name_of)
def test_default(entry):
    """Defaults are the original's, but for a short table of differences."""
    name = name_of(entry)
    settings = parse_training_settings([f"--{key}={text}" for key, text in REQUIRED.items()])
    ours = getattr(settings, name)
    theirs = entry["default"]
    if isinstance(theirs, dict):
        theirs = theirs["expr"]
    if name in DEFAULT_DIFFERENCES:
        assert (theirs, ours) == DEFAULT_DIFFERENCES[name]
    elif name in REQUIRED:  # with --heads, each may have training files of its own
        assert name == "train_file" or TrainingSettings.model_fields[name].is_required()
    elif entry["action"] == "store_false":
        assert ours is True
    elif isinstance(theirs, str) and not isinstance(ours, str):
        spelled = parse_training_settings([f"--{key}={text}" for key, text in (REQUIRED | {name: theirs}).items()])
        assert ours == getattr(spelled, name)
        assert ours is not None
    else:
        assert ours == theirs


WRITTEN_DEFAULTS = [entry for entry in SURFACE if not entry["action"] and entry["default"] is not None]


def written_default(entry: dict) -> list[str]:
    """The original's default, as it is typed."""
    name = name_of(entry)
    theirs = entry["default"]
    if isinstance(theirs, dict):
        label = name.removesuffix("_key")
        plain = ("dipole", "polarizability", "head", "total_charge", "total_spin", "elec_temp")
        theirs = label if label in plain else f"REF_{label}"
    return [f"--{name}", *([str(word) for word in theirs] if isinstance(theirs, list) else [str(theirs)])]


@pytest.mark.parametrize("entry", WRITTEN_DEFAULTS, ids=name_of)
def test_default_may_be_given(entry):
    """The original's default, written out in somebody's script, is no reason to stop."""
    argv = [f"--{key}={text}" for key, text in REQUIRED.items()]
    assert name_of(entry) in parse_training_settings([*argv, *written_default(entry)]).model_fields_set


def test_all_defaults_may_be_given_together(tmp_path, monkeypatch):
    """As programs do that write out every setting; only the size of the model is not the default."""
    monkeypatch.chdir(tmp_path)  # among them is the folder to work in
    typed = [word for entry in WRITTEN_DEFAULTS if name_of(entry) != "max_ell" for word in written_default(entry)]
    run = train(tmp_path, write_water(tmp_path / "train.xyz"), *typed, "--num_channels=4", "--dry_run")
    assert "Plan of the run" in run.shown and "has no effect" not in run.shown
