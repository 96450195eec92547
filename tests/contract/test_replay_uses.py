"""Do the ways in which fine-tuning with replay is used run as written, and do mistakes get a sentence?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import original_files as files
import pytest
import yaml
from ase.build import molecule
from ase.io import write
from replay_runs import molecules, settings_of, tune, unlabeled, write_files
from training_runs import Run, isolated_atoms, labeled, rattled, water

from mace.errors import UserError
from mace.files.published import REPLAY_SETS, PublishedStructures
from mace.model.model_file import load_model, save_model
from mace.settings import parse_training_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, rng = write_files(tmp_path_factory.mktemp("replay")), np.random.default_rng(1)
    write(place / "a.xyz", [*isolated_atoms(), *water(8, 1, head="a")])
    write(place / "b.xyz", [*isolated_atoms(), *water(7, 2, head="b")])
    write(place / "ammonia.xyz", [labeled(rattled(molecule("NH3"), 0.05, rng)) for _ in range(6)])
    write(place / "atoms.xyz", isolated_atoms("HCO"))
    (place / "empty.xyz").write_text("")
    together = [*water(8, head="own"), *molecules(9)]
    for frame in together[8:]:
        frame.info["head"] = "pt_head"
    write(place / "together.xyz", together)
    (place / "e0s.json").write_text(json.dumps({"1": 3.3, "8": 4.7}))
    heads = {name: {"train_file": str(place / f"{name}.xyz")} for name in "ab"}
    (place / "heads.yaml").write_text(yaml.safe_dump({"heads": heads}))
    return place


def heads(run: Run) -> tuple[str, ...]:
    return tuple(load_model(run.folder / "tiny.model").model.plan.head_names)


A_AND_B = "--heads={{'a': {{'train_file': '{place}/a.xyz'}}, 'b': {{'train_file': '{place}/b.xyz'}}}}"
USES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "selection beside heads in YAML": (
        ("--config={place}/heads.yaml", "--num_samples_pt=3", "--subselect_pt=random", "--force_mh_ft_lr=True"),
        ("pt_head", "a", "b"),
        ("3 are taken at random, with seed 7", "Learning rate: 0.01", r"pt_head 2 \(of 2\)"),
    ),
    "farthest points of some elements": (
        (A_AND_B, "--num_samples_pt=3", "--subselect_pt=fps", "--filter_type_pt=combinations",
         "--atomic_numbers=[1,8]"),
        ("pt_head", "a", "b"),
        ("of which 5 contain only H, O", "3 are taken as farthest points", "Elements kept: H, O; left out: C"),
    ),
    "all elements": (
        ("--foundation_model_elements=True", "--filter_type_pt=exclusive", "--atomic_numbers=[1,8]",
         "--num_samples_pt=5"),
        ("pt_head", "Default"),
        ("of which 5 contain exactly H, O", "all 5 are taken", "Elements kept: H, C, O"),
    ),
    "more than there are": (("--num_samples_pt=99",), ("pt_head", "Default"), ("all 20 are taken",)),
    "a replay head in the dictionary": (
        ("--heads={{'own': {{'train_file': '{place}/a.xyz'}}, 'pt_head': {{'train_file': '{place}/replay.xyz', "
         "'E0s': 'foundation', 'weight': 3}}}}", "--pt_train_file="),
        ("pt_head", "own"),
        ("Weights of the heads in the loss: pt_head 3, own 1",),
    ),
    "keys of the replay head": (
        ("--heads={{'own': {{'train_file': '{place}/a.xyz'}}, 'pt_head': {{'energy_key': 'REF_energy'}}}}",),
        ("pt_head", "own"),
        ("replay.xyz: energy 20 of 20",),
    ),
    "one file for both": (
        ("--train_file={place}/together.xyz", "--heads=own,pt_head", "--E0s=foundation", "--pt_train_file="),
        ("pt_head", "own"),
        (r"pt_head 8 \(of 8\), own 7 \(of 7\)",),
    ),
    "E0s by head": (
        ("--heads={{'a': {{'train_file': '{place}/a.xyz', 'E0s': 'foundation'}}, "
         "'b': {{'train_file': '{place}/b.xyz'}}, 'c': {{'train_file': '{place}/water.xyz', "
         "'E0s': '{place}/e0s.json'}}, 'd': {{'train_file': '{place}/ammonia.xyz', "
         "'E0s': {{'N': -5.0, 'H': 3.0}}}}}}",),
        ("pt_head", "a", "b", "c", "d"),
        (r"for head pt_head: .1 \(H\): -13.6, 6 \(C\): -1027.2, 7 \(N\): -5, 8 \(O\): -2041.8",
         r"for head a: .1 \(H\): -13.6,", r"for head b: .1 \(H\): 3.21,", r"for head c: .1 \(H\): 3.3,",
         r"for head d: .1 \(H\): 3, 6 \(C\): -1027.2, 7 \(N\): -5"),
    ),
    "several heads without replay": (
        (A_AND_B, "--pt_train_file=", "--multiheads_finetuning=no", "--E0s=foundation", "--force_mh_ft_lr=yes"),
        ("a", "b"),
        ("--force_mh_ft_lr=True has no effect without",),
    ),
    "a head of a foundation model of several": (
        ("--foundation_model={place}/heads.model", "--foundation_head=r2scan"),
        ("pt_head", "Default"),
        ("Starting from the foundation model .*heads.model, head r2scan",),
    ),
    "abbreviated": (("--weight_pt=2.5",), ("pt_head", "Default"), ("pt_head 2.5, Default 1",)),
    "the training file itself": (
        ("--pt_train_file={place}/water.xyz",), ("pt_head", "Default"),
        ("WARNING: .*water.xyz is replayed, and is a training file of another head too",),
    ),
    "nothing to replay, with settings of it": (
        ("--pt_train_file=", "--num_samples_pt=3", "--force_mh_ft_lr=True"), ("Default",),
        ("--num_samples_pt has no effect: nothing is replayed without --pt_train_file",
         "--force_mh_ft_lr has no effect: nothing is replayed"),
    ),
}  # fmt: skip
"""Flags, the heads of the model, and what the log says."""


@pytest.mark.parametrize(("flags", "expected", "said"), USES.values(), ids=USES)
def test_uses(
    place: Path, tmp_path: Path, flags: tuple[str, ...], expected: tuple[str, ...], said: tuple[str, ...]
) -> None:
    typed = [flag.format(place=place) for flag in flags]
    has_file = "--pt_train_file=" not in typed
    run = tune(tmp_path, place, *(f for f in typed if f != "--pt_train_file="), replay="replay.xyz" * has_file)
    assert heads(run) == expected
    assert [words for words in said if not run.said(words)] == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for published files, with no way to download others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def offline(address: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("mace.files.published.open_address", offline)
    (tmp_path / "cache" / "mace").mkdir(parents=True)
    return tmp_path / "cache" / "mace"


@pytest.mark.parametrize("of_mace_torch", [False, True])
def test_published_structures_in_the_cache(place: Path, tmp_path: Path, cache: Path, of_mace_torch: bool) -> None:
    """They have keys of their own, also where others are given for the user's files."""
    frames = molecules(12)
    for frame in frames:
        frame.info["energy"], frame.arrays["forces"] = frame.info.pop("REF_energy"), frame.arrays.pop("REF_forces")
    where = PublishedStructures("mp", REPLAY_SETS["mp"]).place
    write(cache / "mp_traj_combinedxyz" if of_mace_torch else where, frames, format="extxyz")
    flags = ("--pt_train_file=mp", "--energy_key=REF_energy", "--forces_key=REF_forces", "--num_samples_pt=5")
    run = tune(tmp_path, place, *flags, "--filter_type_pt=exclusive", "--atomic_numbers=[1,8]", replay="")
    assert heads(run) == ("pt_head", "Default")
    assert run.said("12 structures in .*mp_traj_combined.?xyz, of which 3 contain exactly H, O")
    assert run.said("2 that do not pass the filter are added at random")
    with pytest.raises(UserError, match="omat: .* download https.*omat.xyz elsewhere and put the file at"):
        tune(tmp_path, place, "--pt_train_file=omat", replay="")


def test_small_replays_what_it_was_trained_on(
    place: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in mace-torch; without any setting of replay the structures alone are fitted, which the log says."""
    monkeypatch.setattr("mace.finetuning.foundation.foundation_file", lambda name: place / "one.model")
    small = "--foundation_model=small"
    with pytest.raises(UserError, match="mp: the file of structures is not on this machine"):
        tune(tmp_path, place, small, "--multiheads_finetuning=True", replay="")
    with pytest.raises(UserError, match="mp: the file of structures is not on this machine"):
        tune(tmp_path, place, small, "--num_samples_pt=50", replay="")
    run = tune(tmp_path, place, small, replay="")
    assert run.said("Fine-tuning on the given structures alone; --pt_train_file replays")


def test_conditions_of_the_foundation_model(place: Path, tmp_path: Path) -> None:
    plan = files.PLAN.model_copy(update={"conditions": (files.CHARGE,)})
    save_model(tmp_path / "charged.model", files.model(plan))
    frames = unlabeled(molecules(9))
    for i, frame in enumerate(frames):
        frame.info["total_charge"] = i % 3 - 1
    write(tmp_path / "bare.xyz", frames)
    flags = (f"--foundation_model={tmp_path}/charged.model", f"--pt_train_file={tmp_path}/bare.xyz")
    run = tune(tmp_path, place, *flags, "--pseudolabel_replay=True", replay="")
    assert run.said("total_charge 9 of 9") and run.records[0]["loss"] < 1e-20
    assert run.said("Default: .*12 of 12 structures do not say total_charge; 0 is taken")


def test_dipoles_with_energies(tmp_path: Path) -> None:
    plan = files.PLAN.model_copy(update={"model": "EnergyDipolesMACE", "readout_vectors": 3})
    save_model(tmp_path / "one.model", files.model(plan))
    frames = [*water(8), *molecules(8)]
    for i, frame in enumerate(frames):
        frame.info["REF_dipole"] = np.array([0.1 * i, -0.2, 0.3])
    write(tmp_path / "water.xyz", [*isolated_atoms(), *frames[:8]])
    write(tmp_path / "replay.xyz", frames[8:])
    run = tune(tmp_path, tmp_path, "--model=EnergyDipolesMACE", "--pseudolabel_replay=True", "--max_num_epochs=1")
    assert heads(run) == ("pt_head", "Default") and run.said("Defaults with replay.*: --lr=0.0001, --ema=True")
    assert run.records[0]["loss"] < 1e-20 and run.records[0]["rmse_mu"] < 1e-12
    assert run.said("energy_forces_dipole")


def test_dipoles_alone_have_no_heads(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model=AtomicDipolesMACE predicts no energies"):
        tune(tmp_path, place, "--model=AtomicDipolesMACE")


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no labels": (
        ("--pt_train_file={place}/bare.xyz",),
        "Head pt_head: .*bare.xyz: no structure has a label 'energy' .* With --pseudolabel_replay=True the foundation "
        "model labels them",
    ),
    "unknown element": (
        ("--pt_train_file={place}/ammonia.xyz",),
        "Head pt_head: .*ammonia.xyz: structure 0 contains N, which the foundation model .*one.model does not know.*"
        "--filter_type_pt",
    ),
    "unknown element to label": (
        ("--pt_train_file={place}/ammonia.xyz", "--pseudolabel_replay=True"), "structure 0 contains N, .*cannot label",
    ),
    "unknown element in own structures": (
        ("--train_file={place}/ammonia.xyz", "--E0s={{1: 3.0, 7: 1.0}}", "--pt_train_file=",
         "--pseudolabel_replay=True"),
        "structure 0 contains N, .*cannot label",
    ),
    "empty": (("--pt_train_file={place}/empty.xyz",), "empty.xyz: the file is empty"),
    "isolated atoms only": (
        ("--pt_train_file={place}/atoms.xyz",),
        "Head pt_head: .*there is no structure to learn from, isolated atoms only.$",
    ),
    "no such file": (("--pt_train_file={place}/none.xyz",), "none.xyz: there is no such file"),
    "no such set": (("--pt_train_file=mpp",), "no published structures named 'mpp'; choose mp, omat, matpes_pbe"),
    "nothing to replay": (
        ("--pt_train_file=", "--multiheads_finetuning=True"),
        "--multiheads_finetuning: fine-tuning with replay needs structures .*--pt_train_file .*"
        "--pseudolabel_replay=True.*--multiheads_finetuning=False",
    ),
    "validation alone": (
        ("--pt_train_file=", "--pt_valid_file={place}/replay.xyz"), "--pt_valid_file: fine-tuning with replay needs"
    ),
    "no E0s": (
        ("--train_file={place}/ammonia.xyz",),
        r"Head Default: The reference energies \(E0s\) of H, N are not in the training data",
    ),
    "average is not determined": (
        ("--train_file={place}/ammonia.xyz", "--E0s=average"), "Head Default: .*do not determine the reference energies"
    ),
    "filter leaves nothing": (
        ("--filter_type_pt=exclusive", "--disallow_random_padding_pt", "--atomic_numbers=[1,6,7,8]"),
        "0 of 20 structures contain exactly H, C, N, O, so that nothing is left; choose other elements or another "
        "--filter_type_pt",
    ),
    "loss that does not fit": (("--loss=dipole",), "--loss=dipole needs a model of dipoles"),
    "no such head": (("--foundation_head=pbe",), "one.model: the model has one head, Default, and no head 'pbe'"),
    "which head": (
        ("--foundation_model={place}/heads.model",), r"has 2 heads \(pbe, r2scan\).*--foundation_head=r2scan"
    ),
    "no such head of several": (
        ("--foundation_model={place}/heads.model", "--foundation_head=x"), "no head 'x'; its heads are pbe, r2scan"
    ),
    "two heads": (
        ("--foundation_model={place}/heads.model", "--foundation_head=pbe",
         "--foundation_model_kwargs={{'head': 'r2scan'}}"),
        "--foundation_head=pbe contradicts --foundation_model_kwargs",
    ),
    "chosen by none": (
        ("--select_by=own",), "--select_by: there is no head 'own'; give all or one of pt_head, Default"
    ),
    "names heads, not which is replayed": (
        ("--train_file={place}/together.xyz", "--head_key=head", "--pt_train_file="),
        "--head_key: structures name the head pt_head, .*--heads=own,pt_head",
    ),
    "another architecture": (("--hidden_irreps=128x0e",), "--hidden_irreps=128x0e contradicts the foundation model"),
    "scale of a head": (
        ("--heads={{'own': {{'train_file': '{place}/a.xyz', 'std': 2.0}}}}",),
        "--heads: std of the head own cannot be combined with --foundation_model",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(place: Path, tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    typed = [flag.format(place=place) for flag in flags]
    has_file = "--pt_train_file=" not in typed
    with pytest.raises(UserError, match=f"(?s){sentence}"):
        tune(tmp_path, place, *(f for f in typed if f != "--pt_train_file="), replay="replay.xyz" * has_file)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--weight_pt_head=0", "--weight_pt_head must be a number above 0, not '0'"),
        ("--weight_ft=2", "--weight_ft is not a setting; the weight of your own structures is that of their head"),
        ("--subselect_pt=all", "--subselect_pt must be one of fps, random"),
        ("--filter_type_pt=some", "--filter_type_pt must be one of none, combinations, inclusive, exclusive"),
        ("--num_samples_pt=0", "--num_samples_pt must be a whole number of at least 1"),
    ],
)
def test_flags_that_are_refused(tmp_path: Path, flag: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings_of(tmp_path, tmp_path, flag)


def test_heads_without_structures_to_train_on() -> None:
    only_replayed = ["--name=m", "--foundation_model=m.model", "--heads={'pt_head': {'train_file': 'r.xyz'}}"]
    with pytest.raises(UserError, match="--train_file is required"):
        parse_training_settings(only_replayed)
