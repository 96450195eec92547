"""Is a run that was stopped and resumed the same run, and does it say what is different?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from training_runs import Run, copper, isolated_atoms, same, train, untimed, water, write_water

from mace.errors import UserError
from mace.training.checkpoints import CheckpointFolder, load_safely

SIX = "--max_num_epochs=6"
THREE = "--max_num_epochs=3"
RESUME = "--restart_latest"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


def history(run: Run) -> list[dict[str, Any]]:
    """The records without their times."""
    return [untimed(record) for record in run.records]


def assert_same_run(straight: Run, resumed: Run, endings: tuple[str, ...] = ("",)) -> None:
    assert history(straight) == history(resumed)
    one, other = straight.last_state(), resumed.last_state()
    for part in ("weights", "optimizer", "schedule", "average", "progression"):
        assert same(one[part], other[part]), part
    for ending in endings:
        assert same(straight.weights(ending), resumed.weights(ending))


VARIANTS = {
    "plain": (),
    "averaged": ("--ema", "--ema_decay=0.9"),
    "plateau": ("--lr_factor=0.5", "--scheduler_patience=0", "--lr=0.05"),
    "exponential": ("--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.5"),
    "adamw": ("--optimizer=adamw", "--weight_decay=0.01", "--no_amsgrad"),
    "single precision": ("--default_dtype=float32", "--ema"),
    "parts": ("--lr_params_factors={'embedding_lr_factor': 0.1}", "--scheduler=ExponentialLR"),
}


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, data: Path, flags: tuple[str, ...]) -> None:
    straight = train(tmp_path / "a", data, SIX, *flags)
    train(tmp_path / "b", data, THREE, *flags)
    resumed = train(tmp_path / "b", data, SIX, RESUME, *flags)
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_a_resumed_run_of_two_stages_equals_the_uninterrupted_one(tmp_path: Path, data: Path, stop: int) -> None:
    flags = ("--swa", "--start_swa=3", "--ema", "--lr_factor=0.5", "--scheduler_patience=0")
    straight = train(tmp_path / "a", data, SIX, *flags)
    train(tmp_path / "b", data, f"--max_num_epochs={stop}", *flags)
    resumed = train(tmp_path / "b", data, SIX, RESUME, *flags)
    assert_same_run(straight, resumed, ("", "_stagetwo"))


def test_a_resumed_schedulefree_run_equals_the_uninterrupted_one(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("schedulefree")
    flags = ("--optimizer=schedulefree", "--lr=0.02")
    straight = train(tmp_path / "a", data, SIX, *flags)
    train(tmp_path / "b", data, THREE, *flags)
    assert_same_run(straight, train(tmp_path / "b", data, SIX, RESUME, *flags))


def test_patience_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    flags = ("--patience=4", "--lr=1e-30")
    train(tmp_path, data, THREE, *flags)
    run = train(tmp_path, data, "--max_num_epochs=20", RESUME, *flags)
    assert run.epochs_trained == [0, 1, 2, 3, 4]


def test_a_finished_run_only_reports_again(tmp_path: Path, data: Path) -> None:
    first = train(tmp_path, data, THREE)
    again = train(tmp_path, data, THREE, RESUME)
    assert_same_run(first, again)
    assert again.epochs_trained == [0, 1, 2]


def test_a_run_that_patience_ended_stays_ended_until_it_gets_more(tmp_path: Path, data: Path) -> None:
    flags = ("--lr=1e-30", "--max_num_epochs=20")
    train(tmp_path, data, "--patience=2", *flags)
    assert train(tmp_path, data, "--patience=2", RESUME, *flags).epochs_trained == [0, 1, 2]
    assert train(tmp_path, data, "--patience=4", RESUME, *flags).epochs_trained == [0, 1, 2, 3, 4]


def test_killed_in_the_middle_of_saving(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the best weights and the complete state: nothing the state names may be missing afterwards."""
    straight = train(tmp_path / "a", data, SIX)
    save_last = CheckpointFolder.save_last
    calls: list[int] = []

    def killed(folder: CheckpointFolder, state: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        save_last(folder, state)

    monkeypatch.setattr(CheckpointFolder, "save_last", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", data, SIX)
    monkeypatch.undo()
    state = load_safely(tmp_path / "b" / "checkpoints" / "tiny_run-7_last.pt")
    best = state["progression"]["best_epochs"]["one"]
    assert (tmp_path / "b" / "checkpoints" / f"tiny_run-7_epoch-{best}.pt").exists()
    resumed = train(tmp_path / "b", data, SIX, RESUME)
    assert same(straight.weights(), resumed.weights())
    assert len(list((tmp_path / "b" / "checkpoints").glob("*epoch*"))) == 1


def test_changed_settings_take_effect_and_are_told(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, THREE, "--lr=0.01")
    run = train(tmp_path, data, SIX, RESUME, "--lr=0.003", "--weight_decay=0.5", "--batch_size=3", "--no_amsgrad")
    assert run.said("continuing with: .*lr 0.01 -> 0.003")
    assert run.said("continuing with: .*max_num_epochs 3 -> 6")
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    assert rates == {0: 0.01, 1: 0.01, 2: 0.01, 3: 0.003, 4: 0.003, 5: 0.003}
    groups = run.last_state()["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert not any(group["amsgrad"] for group in groups)


def test_nothing_is_told_where_nothing_changed(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, THREE)
    run = train(tmp_path, data, THREE, RESUME)
    assert run.said("Restarting from .*tiny_run-7_last.pt at epoch 3")
    assert not run.said("continuing with")


def test_amsgrad_can_be_turned_on(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, THREE, "--no_amsgrad")
    assert train(tmp_path, data, SIX, RESUME).epochs_trained == list(range(6))


def test_adam_can_become_adamw(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, THREE)
    run = train(tmp_path, data, SIX, RESUME, "--optimizer=adamw")
    groups = run.last_state()["optimizer"]["param_groups"]
    assert all(group.get("decoupled_weight_decay", True) for group in groups)  # before torch 2.7 the class alone tells


def test_a_changed_schedule_takes_effect(tmp_path: Path, data: Path) -> None:
    exponential = ("--scheduler=ExponentialLR", "--lr=0.01")
    train(tmp_path, data, "--max_num_epochs=1", *exponential, "--lr_scheduler_gamma=1.0")
    run = train(tmp_path, data, THREE, RESUME, *exponential, "--lr_scheduler_gamma=0.5")
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    assert rates == {0: 0.01, 1: 0.01, 2: 0.005}
    plateau = train(tmp_path, data, SIX, RESUME, "--lr=0.01", "--scheduler_patience=0", "--lr_factor=0.1")
    assert plateau.epochs_trained == list(range(6))
    assert plateau.last_state()["schedule"]["factor"] == 0.1


def test_in_stage_two_its_own_rate_counts(tmp_path: Path, data: Path) -> None:
    two = ("--swa", "--start_swa=1")
    train(tmp_path, data, "--max_num_epochs=2", *two, "--lr=0.01", "--swa_lr=0.001")
    first = train(tmp_path, data, "--max_num_epochs=3", RESUME, *two, "--lr=0.02", "--swa_lr=0.001")
    assert first.records[-2]["lr"] == 0.001
    second = train(tmp_path, data, "--max_num_epochs=4", RESUME, *two, "--lr=0.02", "--swa_lr=0.004")
    assert second.records[-2]["lr"] == 0.004


def test_a_longer_run_goes_back_to_stage_one_and_says_so(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, "--max_num_epochs=5", "--swa", "--lr=0.01")  # stage two from epoch 4 on
    run = train(tmp_path, data, "--max_num_epochs=10", "--swa", "--lr=0.01", RESUME)
    assert run.said("WARNING: The run was in Stage Two already; .* back to Stage One at epoch 5")
    rates = {record["epoch"]: record["lr"] for record in run.records if record["mode"] == "opt"}
    assert [rates[epoch] for epoch in (3, 4, 5, 7, 8, 9)] == [0.01, 0.001, 0.01, 0.01, 0.001, 0.001]
    # the best of stage one is judged against stage one alone
    losses = {r["epoch"]: r["loss"] for r in run.records if r["mode"] == "eval" and r["epoch"] not in (None, 4, 8, 9)}
    assert run.last_state()["progression"]["best_epochs"]["one"] == min(losses, key=lambda epoch: losses[epoch])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--r_max=4.0", "r_max 3.0 -> 4.0"),
        ("--hidden_irreps=8x0e + 8x1o", "n_channels 4 -> 8"),
        ("--correlation=1", "correlation .*2, 2.* -> .*1, 1"),
        ("--model=ScaleShiftMACE", "model MACE -> ScaleShiftMACE"),
        ("--E0s=average", "E0s None -> average"),
        ("--scaling=no_scaling", "scaling rms_forces_scaling -> no_scaling"),
        ("--std=3.0", "std None -> 3.0"),
        ("--optimizer=schedulefree", "optimizer adam -> schedulefree"),
    ],
)
def test_another_model_is_refused_by_name(tmp_path: Path, data: Path, flag: str, words: str) -> None:
    before = train(tmp_path, data, "--max_num_epochs=1")
    state = before.last_state()
    with pytest.raises(UserError, match=f"the run was started with another model .*{words}") as caught:
        train(tmp_path, data, SIX, RESUME, flag)
    assert "\n" not in str(caught.value)
    assert same(before.last_state(), state)
    assert before.epochs_trained == [0]


def test_more_data_are_welcome(tmp_path: Path, data: Path) -> None:
    first = train(tmp_path, data, THREE)
    more = write_water(tmp_path / "more.xyz", count=20)
    run = train(tmp_path, more, SIX, RESUME)
    assert run.epochs_trained == list(range(6))
    assert run.said("continuing with: .*train_file .*train.xyz -> .*more.xyz")
    assert run.said("WARNING: The data now give other reference energies, scale or number of neighbors")
    assert json.loads(first.last_state()["plan"]) == json.loads(run.last_state()["plan"])


def test_data_with_another_element_are_refused(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, "--max_num_epochs=1")
    mixed = tmp_path / "mixed.xyz"
    write(mixed, isolated_atoms() + isolated_atoms(["Cu"]) + water(6) + copper(4), format="extxyz")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"atomic_numbers \(1, 8\) -> \(1, 8, 29\)"):
        train(tmp_path, mixed, SIX, RESUME)


def test_without_a_checkpoint_it_starts_from_the_beginning_and_says_so(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, RESUME)
    assert run.epochs_trained == [0, 1]
    assert run.said("--restart_latest: there is no .*tiny_run-7_last.pt yet; starting from the beginning")


def test_damaged_checkpoints_stop_the_restart(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data)
    files = [tmp_path / "checkpoints" / f"tiny_run-7_{name}.pt" for name in ("last", "last_previous")]
    for file in files:
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"tiny_run-7_last_previous\.pt: the checkpoint cannot be read"):
        train(tmp_path, data, RESUME)
    assert [file.stat().st_size for file in files] == [500, 500]


def test_without_the_flag_an_earlier_run_is_moved_away_and_never_mixed(tmp_path: Path, data: Path) -> None:
    long = train(tmp_path, data, SIX)
    old_weights, old_history = long.weights(), history(long)
    fresh = train(tmp_path / "elsewhere", data, THREE, "--lr=0.02")
    again = train(tmp_path, data, THREE, "--lr=0.02")
    assert history(again) == history(fresh)
    assert same(again.weights(), fresh.weights()) and not same(again.weights(), old_weights)
    assert again.said("WARNING: An earlier run had the same name and seed; its checkpoints were moved to .*earlier-1")
    assert again.said("WARNING: The results of the earlier run were moved to .*tiny_run-7_train_earlier-1.txt")
    earlier = tmp_path / "checkpoints" / "tiny_run-7_earlier-1"
    assert load_safely(earlier / "tiny_run-7_last.pt")["progression"]["epoch"] == 6
    shutil.copy(tmp_path / "results" / "tiny_run-7_train_earlier-1.txt", tmp_path / "results" / "tiny_run-7_train.txt")
    assert history(again) == old_history


def test_another_seed_is_another_run(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, "--seed=7")
    run = train(tmp_path, data, "--seed=70")
    assert not run.said("WARNING: An earlier run")
    assert len(list((tmp_path / "checkpoints").glob("*_last.pt"))) == 2
