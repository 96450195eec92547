"""Does a run with several heads go on as it began, and say what cannot be the same?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_runs import Trainers
from training_runs import QUICK, TINY_MODEL, Run, isolated_atoms, same, settings_of, train, untimed, water, write_frames

from mace.errors import UserError
from mace.model.model_file import load_model

KILLED = -9
E0S = {"H": 3.21, "O": 4.6}
EVERY_STEP = "--checkpoint_minutes=0"
RESUME = "--restart_latest"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Nine and five molecules."""
    folder = tmp_path_factory.mktemp("data")
    return {
        name: write_frames(folder / f"{name}.xyz", isolated_atoms() + water(count, count))
        for name, count in (("few", 5), ("many", 9))
    }


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


def heads(files: dict[str, Path], **changes: Any) -> str:
    """The flag for both heads, with further keys of each."""
    tables = {name: {"train_file": str(file)} | changes.get(name, {}) for name, file in files.items()}
    return f"--heads={json.dumps(tables)}"


def killed(trainers: Trainers, folder: Path, flags: list[str], step: int) -> Run:
    """Kill a run before a step of its second epoch, whose first step comes second in the third one."""
    fixed = [*TINY_MODEL, *QUICK, "--valid_fraction=0.2", EVERY_STEP, "--batch_size=3", "--max_num_epochs=3", *flags]
    assert trainers.run(folder, fixed, **({"at": "step", "count": step} if step else {})) == (KILLED if step else 0), (
        folder / "output"
    ).read_text()
    return Run(settings_of(folder, None, *fixed), folder, "")


SAMPLINGS = {
    "all": ("--head_sampling=all",),
    "balanced": ("--head_sampling=balanced", "--ema"),
    "weight": ("--head_sampling=weight", "--swa", "--start_swa=2"),
}


@pytest.mark.parametrize(
    "sampling", [pytest.param(name, marks=[] if name == "balanced" else pytest.mark.slow) for name in SAMPLINGS]
)
def test_killed_inside_an_epoch_and_resumed_is_uninterrupted(
    tmp_path: Path, files: dict[str, Path], trainers: Trainers, sampling: str
) -> None:
    """Twelve structures in an epoch, in steps of three: before the sixth step and the fifth after it, inside epochs."""
    flags = [heads(files, few={"weight": 2.0}), *SAMPLINGS[sampling], RESUME]
    straight = killed(trainers, tmp_path / "straight", flags, 0)
    for step in (6, 5):
        interrupted = killed(trainers, tmp_path / "killed", flags, step)
        done = interrupted.last_state()["progression"]["structures_done"]
        assert 0 < done < 12, done
    resumed = killed(trainers, tmp_path / "killed", flags, 0)
    assert [untimed(record) for record in straight.records] == [untimed(record) for record in resumed.records]
    one, other = straight.last_state(), resumed.last_state()
    for part in ("weights", "optimizer", "schedule", "average", "progression", "best"):
        assert same(one[part], other[part]), part
    assert same(straight.weights(), resumed.weights())


def test_another_sampling_begins_the_epoch_anew(tmp_path: Path, files: dict[str, Path], trainers: Trainers) -> None:
    given = heads(files)
    before = killed(trainers, tmp_path, [given, RESUME, "--head_sampling=balanced"], 6)
    assert before.last_state()["progression"]["structures_done"] == 3
    after = killed(trainers, tmp_path, [given, RESUME, "--head_sampling=all"], 0)
    assert after.said(r"WARNING: There were \[\[4, 6\], \[8, 6\]\] training structures, now .*: epoch 1 begins anew")
    assert sum(record["mode"] == "opt" and record["epoch"] == 1 for record in after.records) == 1 + 4


def test_the_same_number_of_other_structures_begins_the_epoch_anew(
    tmp_path: Path, files: dict[str, Path], trainers: Trainers
) -> None:
    """Twelve again, six of each head again, but of other heads: the order would be another."""
    flags = [RESUME, "--head_sampling=balanced"]
    killed(trainers, tmp_path, [heads(files), *flags], 6)
    exchanged = dict(zip(files, reversed(files.values()), strict=True))
    after = killed(trainers, tmp_path, [heads(exchanged), *flags], 0)
    assert after.said(r"There were \[\[4, 6\], \[8, 6\]\] .*, now \[\[8, 6\], \[4, 6\]\]: epoch 1 begins anew")


def test_losses_judged_otherwise_are_not_compared(tmp_path: Path, files: dict[str, Path]) -> None:
    """The lowest loss of one head says nothing of that of all."""
    first = train(tmp_path, None, heads(files), "--select_by=few", "--lr=1e-30", "--max_num_epochs=2")
    lowest = first.last_state()["progression"]["lowest_loss"]
    losses = {record["head"]: record["loss"] for record in first.records if record["mode"] == "eval"}
    assert lowest == pytest.approx(losses["few"])
    of_all = (losses["few"] * 4 + losses["many"] * 8) / 12
    for epochs, chosen, expected in ((3, "few", losses["few"]), (4, "many", losses["many"]), (5, "all", of_all)):
        flags = (f"--max_num_epochs={epochs}", f"--select_by={chosen}")
        progression = train(tmp_path, None, heads(files), "--lr=1e-30", RESUME, *flags).last_state()["progression"]
        assert progression["lowest_loss"] == pytest.approx(expected, rel=1e-9), chosen
        # judged alike, equal losses are no gain
        assert progression["evaluations_without_gain"] == (2 if chosen == "few" else 0), chosen


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["few"], r"heads \['few', 'many'\] -> \['Default'\]"),
        (["few", "many", "third"], r"heads \['few', 'many'\] -> \['few', 'many', 'third'\]"),
        (["few", "lots"], r"heads \['few', 'many'\] -> \['few', 'lots'\]"),
        (["many", "few"], r"heads \['few', 'many'\] -> \['many', 'few'\]"),
    ],
)
def test_other_heads_are_another_model(tmp_path: Path, files: dict[str, Path], names: list[str], words: str) -> None:
    train(tmp_path, None, heads(files), "--max_num_epochs=1")
    state = (tmp_path / "checkpoints" / "tiny_run-7_last.pt").read_bytes()
    changed = {name: files.get(name, files["many"]) for name in names}
    with pytest.raises(UserError, match=f"the run was started with another model .*{words}.*; set these back"):
        train(tmp_path, None, heads(changed), RESUME)
    assert (tmp_path / "checkpoints" / "tiny_run-7_last.pt").read_bytes() == state


def test_constants_of_a_head_cannot_change(tmp_path: Path, files: dict[str, Path]) -> None:
    train(tmp_path, None, heads(files, few={"E0s": E0S}), f"--E0s={E0S}", "--max_num_epochs=1")
    for changes, words in (
        ({"E0s": {**E0S, "H": 3.0}}, r"E0s of head few \{1: 3.21, 8: 4.6\} -> \{1: 3.0, 8: 4.6\}"),
        ({"E0s": E0S, "scaling": "no_scaling"}, "scaling of head few rms_forces_scaling -> no_scaling"),
        ({"E0s": E0S, "mean": 1.0}, "mean of head few None -> 1.0"),
    ):
        with pytest.raises(UserError, match=words):
            train(tmp_path, None, heads(files, few=changes), f"--E0s={E0S}", RESUME)
    # the same energies from elsewhere are no change
    assert train(tmp_path, None, heads(files), f"--E0s={E0S}", RESUME).epochs_trained == [0, 1]


def test_more_structures_of_one_head_go_on(tmp_path: Path, files: dict[str, Path]) -> None:
    before = train(tmp_path, None, heads(files), "--max_num_epochs=1")
    more = write_frames(tmp_path / "more.xyz", water(5, 11))
    changed = heads(files, few={"train_file": [str(files["few"]), str(more)]})
    run = train(tmp_path, None, changed, RESUME)
    assert run.epochs_trained == [0, 1] and run.said(r"few 9 \(of 9\), many 8 \(of 8\)")
    plans = [plan_of(each) for each in (before, run)]
    assert plans[0] == plans[1]  # scale and energies are those it began with


def plan_of(run: Run) -> str:
    """The plan in the last state."""
    return str(run.last_state()["plan"])


@pytest.mark.parametrize("source", ["tiny.model", "checkpoints/tiny_run-7_last.pt"])
def test_weights_of_several_heads_to_start_from(tmp_path: Path, files: dict[str, Path], source: str) -> None:
    """With scale and shift of each head, but the new reference energies."""
    scaled = "--model=ScaleShiftMACE"
    first = train(tmp_path / "first", None, heads(files), scaled)
    start = f"--init_from={tmp_path / 'first' / source}"
    changes = {"few": {"E0s": E0S, "mean": 0.3}, "many": {"std": 9.0}}
    second = train(tmp_path / "second", None, heads(files, **changes), scaled, start, "--max_num_epochs=0")
    one, other = (load_model(run.folder / "tiny.model") for run in (first, second))
    assert same(first.weights(), second.weights()) or source != "tiny.model"
    for before, after in zip(one.model.plan.heads, other.model.plan.heads, strict=True):
        assert (before.name, before.scale, before.shift) == (after.name, after.scale, after.shift)
    assert other.model.plan.heads[0].reference_energies == (3.21, 4.6)
    assert second.said(r"shift of head few: .* stays as in .*, instead of 0.3")
    assert second.said(r"scale of head many: .* stays as in .*, instead of 9.0")
    for given, words in (
        (heads({"few": files["few"], "lots": files["many"]}), "has another model than the settings .*heads"),
        (f"--train_file={files['few']}", r"heads \['few', 'many'\] -> \['Default'\].*--foundation_head"),
    ):
        with pytest.raises(UserError, match=words):
            train(tmp_path / "third", None, given, scaled, start)
