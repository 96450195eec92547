"""Does fine-tuning with replay start from the foundation model, and do what was typed?"""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import original_files as files
import pytest
import torch
from ase.build import molecule
from ase.io import read, write
from killed_runs import Trainers
from replay_runs import molecules, settings_of, tune, unlabeled, write_files
from rich.console import Console
from training_runs import Run, copper, isolated_atoms, labeled, rattled, same, untimed, water

from mace.calculators import MACECalculator
from mace.cli import eval_configs, export, select_head
from mace.console.progress import TrainingProgress
from mace.model.mace import MACE
from mace.model.model_file import load_model, save_model
from mace.model.prediction import predict
from mace.planning.model_choices import settings_for_model
from mace.planning.objectives import make_losses
from mace.preparation.preparation import Preparation, prepare
from mace.preparation.reading import read_and_check
from mace.runs.initial_model import initial_model
from mace.settings import TrainingSettings, parse_training_settings, provided


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("replay"))


def prepared(folder: Path, place: Path, *flags: str) -> tuple[TrainingSettings, Preparation, MACE]:
    """All that a run has before its first step."""
    settings, _ = settings_for_model(settings_of(folder, place, *flags))
    progress = TrainingProgress(Console(file=io.StringIO()), "off", 60.0)
    data = read_and_check(settings, make_losses(settings), progress, page=None)
    preparation = prepare(settings, data, progress, writes=False)
    return settings, preparation, initial_model(preparation.plan, settings, torch.device("cpu"), data.foundation)


def initial(run: Run) -> dict[str, dict[str, float]]:
    """The first evaluation, by head."""
    found: dict[str, dict[str, float]] = {}
    for record in run.records:
        if record["mode"] == "eval" and record["epoch"] is None:
            found.setdefault(record["head"], record)
    return found


NUMBERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("one.model", ()),
    "of mace-torch": ("torch.model", ()),
    "all elements": ("one.model", ("--foundation_model_elements=True",)),
    "a head of several": ("heads.model", ("--foundation_head=r2scan",)),
    "by keyword": ("heads.model", ("--foundation_model_kwargs={{'head': 'r2scan'}}",)),
    "new elements": ("one.model", ("--train_file={place}/ammonia.xyz", "--E0s={{1: -1.0, 7: -5.0}}")),
    "several heads": (
        "one.model",
        (
            "--heads={{'a': {{'train_file': '{place}/water.xyz'}}, 'b': {{'train_file': '{place}/ammonia.xyz', "
            "'E0s': '{{1: -1.0, 7: -5.0}}'}}}}",
        ),
    ),
}


@pytest.mark.parametrize(("foundation", "flags"), NUMBERS.values(), ids=NUMBERS)
def test_the_head_of_the_foundation_model_starts_as_it_is(
    place: Path, tmp_path: Path, foundation: str, flags: tuple[str, ...]
) -> None:
    """Energies and forces of structures with elements it knows, to the last digits."""
    rng = np.random.default_rng(5)
    write(place / "ammonia.xyz", [labeled(rattled(molecule("NH3"), 0.05, rng)) for _ in range(8)])
    run = tune(tmp_path, place, *(flag.format(place=place) for flag in flags), foundation=foundation)
    of_head = {} if foundation != "heads.model" else {"head": "r2scan"}
    old = MACECalculator(model_paths=str(place / foundation), default_dtype="float64", **of_head)
    new = MACECalculator(model_paths=str(run.folder / "tiny.model"), default_dtype="float64", head="pt_head")
    for atoms in molecules(4):
        expected = old.get_potential_energy(atoms), old.get_forces(atoms)
        assert new.get_potential_energy(atoms) == pytest.approx(expected[0], abs=1e-12, rel=1e-12)
        np.testing.assert_allclose(new.get_forces(atoms), expected[1], rtol=0, atol=1e-12)


def test_other_heads_start_right_on_average(place: Path, tmp_path: Path) -> None:
    """The mean error of the energies of the training structures is zero."""
    run = tune(tmp_path, place)
    assert run.said("Head Default: Scale 0.8 eV .kept., shift -3.* was 0.3 eV")
    assert run.said("Head pt_head: Scale 0.8 eV .kept., shift 0.3 eV, was 0.3 eV")
    listed = (tmp_path / "tiny_valid_indices_7.txt").read_text().splitlines()
    validated = [int(line.split()[0]) for line in listed if line.endswith("water.xyz")]
    new = MACECalculator(model_paths=str(tmp_path / "tiny.model"), default_dtype="float64")
    frames = [atoms for i, atoms in enumerate(read(place / "water.xyz", ":")) if i not in validated and len(atoms) == 3]
    errors = [(new.get_potential_energy(atoms) - atoms.info["REF_energy"]) / 3 for atoms in frames]
    assert len(errors) == 11 and abs(np.mean(errors)) < 1e-9 < 0.01 < np.std(errors)


def test_pseudolabels_are_what_the_foundation_model_says(place: Path, tmp_path: Path) -> None:
    """Nothing is trained, so the first record of the head has no error."""
    run = tune(tmp_path, place, "--pseudolabel_replay=True", replay="bare.xyz")
    first = run.records[0]
    assert (first["mode"], first["head"], first["epoch"]) == ("eval", "pt_head", None)
    assert first["loss"] < 1e-20 and first["rmse_e_per_atom"] < 1e-12 and first["rmse_f"] < 1e-12
    assert initial(run)["Default"]["loss"] > 1e-3
    assert run.said("20 structures by the foundation model .*one.model: 20 to compute")
    again = tune(tmp_path, place, "--pseudolabel_replay=True", "--name=again", replay="bare.xyz")
    assert again.said("20 structures by the foundation model .*one.model: 0 to compute, 20 from")


@pytest.mark.parametrize("valid", [False, True], ids=["split", "own file"])
def test_own_structures_are_replayed_with_labels_of_the_foundation_model(
    place: Path, tmp_path: Path, valid: bool
) -> None:
    write(tmp_path / "valid.xyz", water(3, seed=8))
    run = tune(tmp_path, place, "--pseudolabel_replay=True", *[f"--valid_file={tmp_path}/valid.xyz"] * valid, replay="")
    assert load_model(tmp_path / "tiny.model").model.plan.head_names == ("pt_head", "Default")
    found = initial(run)
    assert found["pt_head"]["loss"] < 1e-20 < 1e-3 < found["Default"]["loss"]
    counts = (12, 12) if valid else (11, 11)
    assert run.said(r"pt_head {} \(of {}\), Default {} \(of {}\)".format(*(counts[0],) * 2, *(counts[1],) * 2))


def test_structures_to_validate_the_replay_on(place: Path, tmp_path: Path) -> None:
    write(tmp_path / "valid.xyz", unlabeled(molecules(5, seed=8)))
    flags = ("--pseudolabel_replay=True", f"--pt_valid_file={tmp_path}/valid.xyz")
    run = tune(tmp_path, place, *flags, replay="bare.xyz")
    assert run.said(r"pt_head 20 \(of 20\), Default 11") and initial(run)["pt_head"]["loss"] < 1e-20
    write(tmp_path / "valid.xyz", unlabeled(water(5, seed=8)))
    run = tune(tmp_path, place, *flags, "--name=own", replay="")
    assert run.said(r"pt_head 12 \(of 12\), Default 11") and initial(run)["pt_head"]["loss"] < 1e-20


def test_stresses_are_labels_where_they_mean_something(tmp_path: Path) -> None:
    plan = files.PLAN.model_copy(update={"atomic_numbers": (1, 8, 29), "reference_energies": (-1.0, -2.0, -3.0)})
    save_model(tmp_path / "one.model", files.model(plan))
    write(tmp_path / "water.xyz", [*isolated_atoms(), *water(6)])
    write(tmp_path / "bare.xyz", unlabeled(copper(4)) + unlabeled(water(4)))
    write(tmp_path / "valid.xyz", unlabeled(copper(2)))
    flags = ("--pseudolabel_replay=True", f"--pt_valid_file={tmp_path}/valid.xyz", "--stress_weight=2")
    plain = tune(tmp_path, tmp_path, *flags[:2], "--name=plain", replay="bare.xyz")
    assert "rmse_stress" not in initial(plain)["pt_head"]
    every = tune(tmp_path, tmp_path, *flags, "--pseudolabel_replay_compute_stress=True", replay="bare.xyz")
    assert initial(every)["pt_head"]["rmse_stress"] < 1e-12
    assert every.said("pt_head: .*hydrostatic stress")


LOSSES = ("weighted", "huber", "universal", "l1l2energyforces")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weight_of_the_replay_is_obeyed(place: Path, tmp_path: Path, loss: str) -> None:
    """In mace-torch the universal loss, which it chooses itself, ignores it."""
    plain, weighted = (
        initial(tune(tmp_path, place, f"--loss={loss}", f"--weight_pt_head={w}", f"--name=w{w}")) for w in (1, 2.5)
    )
    assert weighted["pt_head"]["loss"] == pytest.approx(2.5 * plain["pt_head"]["loss"], rel=1e-12)
    assert weighted["Default"]["loss"] == plain["Default"]["loss"]


def test_weights_in_the_replay_file_are_obeyed(place: Path, tmp_path: Path) -> None:
    """And a ``head=`` there is that of the foundation model, as the selection of mace-torch writes it."""
    frames = molecules(8)
    for frame in frames:
        frame.info |= {"head": "pbe_mp", "config_weight": 3.0, "pretrained": True}
    write(tmp_path / "heavy.xyz", frames)
    for frame in frames:
        frame.info["config_weight"] = 1.0
    write(tmp_path / "light.xyz", frames)
    heavy, light = (
        tune(tmp_path, place, f"--pt_train_file={tmp_path}/{name}.xyz", f"--name={name}", replay="")
        for name in ("heavy", "light")
    )
    assert initial(heavy)["pt_head"]["loss"] == pytest.approx(3.0 * initial(light)["pt_head"]["loss"], rel=1e-12)
    assert "pbe_mp" not in heavy.log


def test_typed_settings_stay(place: Path, tmp_path: Path) -> None:
    """mace-torch replaces them."""
    flags = ("--lr=0.003", "--ema_decay=0.9", "--loss=huber", "--no_ema")
    settings, _, _ = prepared(tmp_path, place, *flags)
    assert (settings.lr, settings.ema_decay, settings.loss, settings.ema) == (0.003, 0.9, "huber", False)
    settings, notes = settings_for_model(settings_of(tmp_path, place, "--lr=0.003", replay=""))
    assert (settings.loss, settings.lr, notes) == ("weighted", 0.003, [])


def test_defaults_of_replay_are_named(place: Path, tmp_path: Path) -> None:
    settings, notes = settings_for_model(settings_of(tmp_path, place, "--lr=0.003"))
    assert (settings.loss, settings.lr, settings.ema, settings.ema_decay) == ("universal", 0.003, True, 0.99999)
    assert notes == [
        "Defaults with replay, as nothing else is given: --loss=universal, --ema=True, --ema_decay=0.99999"
    ]
    assert provided(settings).isdisjoint({"loss", "ema", "ema_decay"}), "what is chosen is not what was typed"
    settings, notes = settings_for_model(settings_of(tmp_path, place, "--force_mh_ft_lr=True"))
    assert (settings.loss, settings.lr, settings.ema, settings.ema_decay) == ("universal", 0.01, False, 0.99)
    assert notes == ["Defaults with replay, as nothing else is given: --loss=universal"]


@pytest.mark.parametrize(
    ("n_own", "n_replayed", "threshold"), [(1, 10, 0.5), (3, 10, 0.3), (3, 10, 0.7), (2, 10, 0.1), (1, 7, 0.9)]
)
def test_few_structures_are_repeated_as_in_mace_torch(
    place: Path, tmp_path: Path, n_own: int, n_replayed: int, threshold: float
) -> None:
    """An epoch has the same structures, each as often as the copies that it makes."""
    write(tmp_path / "own.xyz", [*isolated_atoms(), *water(n_own)])
    write(tmp_path / "replay.xyz", molecules(n_replayed))
    write(tmp_path / "valid.xyz", water(1))
    _, preparation, _ = prepared(
        tmp_path,
        place,
        f"--train_file={tmp_path}/own.xyz",
        f"--pt_train_file={tmp_path}/replay.xyz",
        f"--valid_file={tmp_path}/valid.xyz",
        f"--pt_valid_file={tmp_path}/valid.xyz",
        f"--real_pt_data_ratio_threshold={threshold}",
    )
    own = list(range(n_replayed, n_replayed + n_own))  # those that are replayed stand first
    copies = list(own)
    if n_own / n_replayed < threshold:
        copies += own * int(threshold / (n_own / n_replayed))
    for epoch in range(3):
        drawn = preparation.sampling.draw(7, epoch).tolist()
        assert Counter(drawn) == Counter([*range(n_replayed), *copies])
        assert drawn != sorted(drawn), "the heads are mixed"


def test_a_step_is_that_of_brute_force(place: Path, tmp_path: Path) -> None:
    """One step on all structures of both heads, against a loop over the structures and Adam written out."""
    flags = (
        *("--loss=weighted", "--energy_weight=2", "--forces_weight=30", "--weight_pt_head=0.4", "--no_ema"),
        *("--batch_size=100", "--lr=0.001", "--weight_decay=0", "--clip_grad=None", "--max_num_epochs=1"),
    )
    settings, preparation, model = prepared(tmp_path, place, *flags)
    weights = {"pt_head": 0.4, "Default": 1.0}
    energy = force = torch.zeros((), dtype=torch.float64)
    n_structures = n_forces = 0
    for name, weight in weights.items():
        dataset = preparation.train_of(name)
        for i in range(len(dataset)):
            batch = dataset.batch([i])
            found = predict(model, batch.graph, training=True)
            n_atoms = len(batch.graph.element)
            assert found.energy is not None and found.forces is not None
            energy = energy + weight * ((found.energy - batch.targets.values["energy"]) / n_atoms).square().sum()
            force = force + weight * (found.forces - batch.targets.values["forces"]).square().sum()
            n_structures, n_forces = n_structures + 1, n_forces + 3 * n_atoms
    loss = 2.0 * energy / n_structures + 30.0 * force / n_forces
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    run = tune(tmp_path, place, *flags)
    trained, moved = run.weights(), 0
    for (name, before), gradient in zip(parameters.items(), gradients, strict=True):
        step = torch.zeros_like(before) if gradient is None else 0.001 * gradient / (gradient.abs() + 1e-8)
        moved += int((step.abs() > 1e-4).sum())
        torch.testing.assert_close(trained[name], before.detach() - step, rtol=0, atol=1e-9, msg=name)
    assert moved > 100
    opt = next(record for record in run.records if record["mode"] == "opt")
    assert opt["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)


def test_the_best_model_follows_the_named_head(place: Path, tmp_path: Path) -> None:
    flags = ("--max_num_epochs=3", "--lr=0.02", "--no_ema", "--pseudolabel_replay=True")
    run = tune(tmp_path, place, *flags, "--select_by=pt_head")
    losses = {r["epoch"]: r["loss"] for r in run.records if r["mode"] == "eval" and r["head"] == "pt_head"}
    losses.pop(None)  # the start is no candidate
    best = run.last_state()["progression"]["best_epochs"]
    assert best["one"] == min(losses, key=losses.__getitem__)


def test_dry_run_and_what_it_tells(place: Path, tmp_path: Path) -> None:
    run = tune(tmp_path, place, "--dry_run", "--max_num_epochs=2", "--num_samples_pt=4")
    assert "Plan of the run" in run.shown and "pt_head" in run.shown
    assert not (tmp_path / "tiny.model").exists() and not list((tmp_path / "checkpoints").iterdir())


RESUMED = (
    *("--name=tiny", "--seed=7", "--batch_size=4", "--max_num_epochs=3", "--plot=False", "--checkpoint_minutes=0"),
    *("--train_file=../water.xyz", "--foundation_model=../one.model", "--pt_train_file=../bare.xyz", "--swa"),
    *("--pseudolabel_replay=True", "--num_samples_pt=9", "--real_pt_data_ratio_threshold=2", "--restart_latest"),
    *("--start_swa=2", "--kernels=torch", "--lr=0.001", "--weight_pt_head=0.5"),
)


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(place: Path, trainers: Trainers) -> None:
    """With labels from the cache, and with labels that were deleted and are computed again."""
    assert trainers.run(place / "straight", list(RESUMED)) == 0, (place / "straight" / "output").read_text()
    folder = place / "killed"
    for stage, count in (("one", 3), ("one", 4), ("two", 2)):
        assert trainers.run(folder, list(RESUMED), at="step", stage=stage, count=count) == -signal.SIGKILL
        for stored in list((folder / "pseudolabels").iterdir())[: count % 2]:
            stored.unlink()
    assert trainers.run(folder, list(RESUMED)) == 0, (folder / "output").read_text()
    straight, killed = (Run(parse_training_settings(RESUMED), path, "") for path in (place / "straight", folder))
    assert [untimed(record) for record in straight.records] == [untimed(record) for record in killed.records]
    for ending in ("", "_stagetwo"):
        assert same(straight.weights(ending), killed.weights(ending))
    states = [{k: v for k, v in run.last_state().items() if k not in ("run", "records")} for run in (straight, killed)]
    assert same(*states)


def test_other_structures_to_replay_are_another_run(place: Path, tmp_path: Path) -> None:
    write(tmp_path / "replay.xyz", molecules(9))
    given = f"--pt_train_file={tmp_path}/replay.xyz"
    tune(tmp_path, place, given, "--max_num_epochs=1", replay="")
    write(tmp_path / "replay.xyz", molecules(9, seed=4))
    run = tune(tmp_path, place, given, "--max_num_epochs=2", "--restart_latest", replay="")
    assert run.said("WARNING.*replay.xyz") and run.epochs_trained == [0, 1]


@pytest.fixture(scope="module")
def tuned(place: Path) -> Run:
    return tune(place / "tuned", place, "--max_num_epochs=1", "--lr=0.01")


def test_the_result_is_used(tuned: Run, place: Path, tmp_path: Path) -> None:
    """The head of the user is the default, and that of the foundation model can be named."""
    path = str(tuned.folder / "tiny.model")
    atoms = water(1, seed=20)[0]
    energies = {
        head: MACECalculator(model_paths=path, default_dtype="float64", **kwargs).get_potential_energy(atoms)
        for head, kwargs in {"": {}, "Default": {"head": "Default"}, "pt_head": {"head": "pt_head"}}.items()
    }
    assert energies[""] == energies["Default"] != energies["pt_head"]
    write(tmp_path / "test.xyz", unlabeled([atoms]))
    for flags, head in (((), "Default"), (("--head=pt_head",), "pt_head")):
        out = tmp_path / f"{head}.xyz"
        flags = (f"--configs={tmp_path}/test.xyz", f"--model={path}", f"--output={out}", *flags)
        eval_configs.run([*flags, "--default_dtype=float64"])
        assert read(out).info["MACE_energy"] == pytest.approx(energies[head], abs=1e-7)
    select_head.run([path, f"--output_file={tmp_path}/chosen.model"])
    chosen = MACECalculator(model_paths=str(tmp_path / "chosen.model"), default_dtype="float64")
    assert chosen.get_potential_energy(atoms) == pytest.approx(energies["Default"], abs=1e-12)
    assert load_model(tmp_path / "chosen.model").model.plan.heads == ()


PYTHON = os.environ.get("MACE_ORIGINAL_PYTHON", "")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="MACE_ORIGINAL_PYTHON does not name an interpreter with mace-torch")
def test_the_result_goes_to_mace_torch_and_back(tuned: Run, tmp_path: Path) -> None:
    """The export compares energies and forces of every head; the way back gives the same numbers."""
    export.run(
        [str(tuned.folder / "tiny.model"), str(tmp_path / "out.model"), "--format=mace-torch", f"--python={PYTHON}"]
    )
    atoms = water(1, seed=20)[0]
    for head in ("pt_head", "Default"):
        paths = (tuned.folder / "tiny.model", tmp_path / "out.model")
        ours, back = (MACECalculator(model_paths=str(p), default_dtype="float64", head=head) for p in paths)
        assert ours.get_potential_energy(atoms) == pytest.approx(back.get_potential_energy(atoms), rel=1e-12)
        np.testing.assert_allclose(ours.get_forces(atoms), back.get_forces(atoms), rtol=0, atol=1e-12)
