"""Does a run on two machines, each with a copy of the prepared sets, equal that of one, and end when one is gone?"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import TINY_MODEL, Run, isolated_atoms, settings_of, train, untimed, water, write_frames
from two_machines import MACHINES, TwoMachines, name_of, why_not

from mace.cli import preprocess_data
from mace.packing import folder as packing_folder
from mace.training.checkpoints import load_safely

pytestmark = pytest.mark.slow

N_TRAIN, N_VALID = 240, 40
# with the usual learning rate of models so small, differences in rounding grow to 1e-2 within three epochs
FLAGS = (
    "--name=tiny", "--seed=7", "--plot=False", "--kernels=torch", "--ema", "--lr=0.001", *TINY_MODEL,
    "--train_file=sets/train", "--valid_file=sets/val",
)  # fmt: skip
WITHIN = 60.0
"""Seconds within which the others end once one is gone."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sets of several shards."""
    folder = tmp_path_factory.mktemp("prepared")
    files = [
        write_frames(folder / "train.xyz", isolated_atoms() + water(N_TRAIN)),
        write_frames(folder / "valid.xyz", water(N_VALID, seed=5)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_folder, "STRUCTURES_IN_A_PART", 50)
        preprocess_data.run(
            [
                *(f"--train_file={files[0]}", f"--valid_file={files[1]}", f"--h5_prefix={folder / 'sets'}/"),
                *("--r_max=3.0", f"--work_dir={folder}", "--num_process=1", "--log_level=WARNING"),
            ]
        )
    assert len(list((folder / "sets" / "train").glob("shard-*"))) > 3
    return folder / "sets"


@pytest.fixture
def machines(tmp_path: Path, sets: Path) -> Iterator[TwoMachines]:
    if reason := why_not():
        pytest.skip(f"no network namespaces can be made here: {reason}")
    with TwoMachines(tmp_path) as two:
        for machine in MACHINES:
            shutil.copytree(sets, two.own(machine) / "sets")
        yield two


def alone(folder: Path, sets: Path, *flags: str) -> Run:
    """Train in one process, with as many structures in a step as two processes."""
    folder.mkdir(exist_ok=True)
    if not (folder / "sets").exists():
        (folder / "sets").symlink_to(sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return replace(train(Path(), None, *FLAGS, "--batch_size=4", *flags), folder=folder)


def run_of(machines: TwoMachines, *flags: str) -> Run:
    """The run of two machines, whose files are on the first one."""
    return Run(settings_of(machines.own(0), None, *FLAGS, *flags), machines.own(0), "")


def assert_equal_runs(one: Run, two: Run) -> None:
    """Compare losses and weights."""
    assert len(one.records) == len(two.records)
    for a, b in zip(one.records, two.records, strict=True):
        a, b = untimed(a), untimed(b)
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (b[key] if isinstance(a[key], str | None) else pytest.approx(b[key], rel=1e-6)), key
    for name, value in one.weights().items():
        largest = float(value.detach().abs().max())
        torch.testing.assert_close(value, two.weights()[name], rtol=1e-6, atol=1e-6 * largest)


def read_in_training(machines: TwoMachines, machine: int) -> dict[str, Counter[int]]:
    """How often the training program of a machine has read each structure of each set while it was training."""
    read = {"train": Counter[int](), "val": Counter[int]()}
    is_training = False
    for event in machines.events(machine):
        is_training = event["now"] == "training" if "now" in event else is_training
        if is_training and event.get("tensor") == "pairs":
            read[event["set"]].update(event["structures"])
    return read


def ranks(machines: TwoMachines) -> list[int]:
    """The rank of the process of each machine."""
    return [next(event["rank"] for event in machines.events(machine) if "rank" in event) for machine in MACHINES]


def test_two_machines_equal_one_and_read_what_they_compute(tmp_path: Path, sets: Path, machines: TwoMachines) -> None:
    machines.start(*FLAGS, "--batch_size=2", "--max_num_epochs=3")
    one = alone(tmp_path / "one", sets, "--max_num_epochs=3")
    assert machines.wait() == [0, 0], machines.said(0) + machines.said(1)
    assert ranks(machines) == [0, 1]
    assert_equal_runs(one, run_of(machines))
    first, second = (read_in_training(machines, machine) for machine in MACHINES)
    # three epochs, and a validation before the first one: each structure is read where it is computed, and only there
    assert first["train"] + second["train"] == Counter(dict.fromkeys(range(N_TRAIN), 3))
    assert first["val"] + second["val"] == Counter(dict.fromkeys(range(N_VALID), 4))
    assert first["train"].total() == second["train"].total() and first["val"].total() == second["val"].total()
    assert {path.name for path in machines.own(1).iterdir()} == {"sets", "told"}


def test_batches_of_equal_work_on_two_machines(machines: TwoMachines) -> None:
    machines.start(*FLAGS, "--batch_edges=14", "--max_num_epochs=2")
    assert machines.wait() == [0, 0], machines.said(0) + machines.said(1)
    first, second = (read_in_training(machines, machine) for machine in MACHINES)
    assert first["train"] + second["train"] == Counter(dict.fromkeys(range(N_TRAIN), 2))
    assert first["val"] + second["val"] == Counter(dict.fromkeys(range(N_VALID), 3))
    assert run_of(machines).epochs_trained == [0, 1]


def cut(machines: TwoMachines) -> None:
    machines.cut_off()


def kill(machines: TwoMachines) -> None:
    os.kill(machines.trainers(1)[0], signal.SIGKILL)


def stop(machines: TwoMachines) -> None:
    os.kill(machines.trainers(1)[0], signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (cut, "has given no sign of life for 25 s"),
        (kill, "has ended without a word"),
        (stop, "has given no sign of life"),
    ],
)
def test_one_machine_gone_ends_the_other_and_one_can_go_on(
    tmp_path: Path, sets: Path, machines: TwoMachines, fault: Callable[[TwoMachines], None], reason: str
) -> None:
    """In the middle of the third epoch; what was saved is gone on with on one machine, as if nothing had happened."""
    machines.start(*FLAGS, "--batch_size=2", "--max_num_epochs=5", "--checkpoint_minutes=0")
    one = alone(tmp_path / "one", sets, "--max_num_epochs=5")
    while read_in_training(machines, 0)["train"].total() < (2 * N_TRAIN + 100) / 2:
        assert machines.launchers()[0].poll() is None, machines.said(0)
        time.sleep(0.02)
    fault(machines)
    took = machines.seconds_until_ended(0)
    assert took < WITHIN, machines.said(0)
    print(f"{fault.__name__}: the other ended after {took:.1f} s")
    assert machines.launchers()[0].wait(WITHIN) == 1  # torchrun's own status; it says that of the program
    output = machines.said(0)
    told = re.findall(rf"^process 1 \({name_of(1)}, process id \d+\) {reason}.*$", output, re.MULTILINE)
    assert len(told) == 1 and "--restart_latest goes on from the last saved state" in told[0], output
    assert re.search(r"exitcode *: 2", output) and "mace/" not in output  # no traceback of this program
    two = run_of(machines)
    page = (machines.own(0) / "results" / "tiny_run-7.html").read_text(encoding="utf-8")
    assert reason in page and two.said("The report on the run is in")
    saved = load_safely(machines.own(0) / "checkpoints" / "tiny_run-7_last.pt")
    assert saved["progression"]["epoch"] == 2 and 0 < saved["progression"]["structures_done"] < N_TRAIN
    resumed = alone(machines.own(0), sets, "--max_num_epochs=5", "--restart_latest")
    assert resumed.said("processes 2 -> 1")
    assert_equal_runs(one, resumed)


def test_the_machine_of_the_launchers_store_gone_ends_the_other(machines: TwoMachines) -> None:
    """Without the store, the processes cannot ask each other; the launcher waits longer, until TCP gives up."""
    machines.start(*FLAGS, "--batch_size=2", "--max_num_epochs=1000")
    machines.wait_for("Epoch 0:")
    machines.cut_off()
    assert machines.seconds_until_ended(1) < WITHIN
    assert re.search(r"^the launcher at machine-0:\d+ has not answered for 25 s; the run ended", machines.said(1), re.M)


def missing(disk: Path) -> None:
    shutil.rmtree(disk / "sets" / "train")


def other(disk: Path) -> None:
    shutil.rmtree(disk / "sets" / "val")
    shutil.copytree(disk / "sets" / "train", disk / "sets" / "val")


def damaged(disk: Path) -> None:
    shard = disk / "sets" / "train" / "shard-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)


def left_behind(disk: Path) -> None:
    (disk / "checkpoints").mkdir()
    (disk / "checkpoints" / "tiny_run-7_last.pt").write_bytes(b"state")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, r"process 1 \(machine-1, process id \d+\): sets/train"),
        (other, r"Process 1 has other data than process 0 \(sets/val is"),
        (damaged, r"process 1 \(machine-1, process id \d+\): .*shard-00002.safetensors.* is damaged"),
        (
            left_behind,
            "process 1 on machine-1 finds a state of the run in checkpoints/.*, but process 0 on machine-0 has none",
        ),
    ],
)
def test_what_is_wrong_on_the_disk_of_one_machine_is_told_with_its_name(
    machines: TwoMachines, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(machines.own(1))
    machines.start(*FLAGS, "--batch_size=2", "--max_num_epochs=1000", "--restart_latest")
    assert machines.wait() == [1, 1], machines.said(0) + machines.said(1)
    told = machines.said(0) + machines.said(1)
    assert re.search(words, told) and "mace/" not in told, told
