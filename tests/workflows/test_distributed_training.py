"""Do several processes train the same model as one, and end together?"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.io import write
from torch.distributed import TCPStore
from training_runs import TINY_MODEL, Run, settings_of, train, untimed, water, write_water

from mace.console.interruption import Interruption
from mace.errors import RunInterrupted, UserError
from mace.processes import watchdog
from mace.processes.team import Team, heeding_signals
from mace.runs.resuming import require_one_state
from mace.training.checkpoints import CheckpointFolder, load_safely

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--name=tiny", "--seed=7", "--plot=False", "--kernels=torch", "--valid_fraction=0.25", "--ema", *TINY_MODEL,
]  # fmt: skip
TELLING_WHAT_IT_OPENS = f"""
import os, runpy, sys
told = open(sys.argv.pop(1), "w", buffering=1)
def tell(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        print(os.path.abspath(arguments[0]), file=told)
sys.addaudithook(tell)
sys.argv[0] = {str(ROOT / "mace" / "cli" / "run_train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A program that trains, and writes down which files it opens for writing."""

TOGETHER = 60.0
"""Seconds within which all processes end once one of them has."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


class Processes:
    """Two processes of a run, started as torchrun does it."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        of_second: tuple[str, ...] = (),
        ranks: tuple[int, ...] = (0, 1),
        program: str = TELLING_WHAT_IT_OPENS,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        self.outputs = [folder / f"output-{rank}" for rank in range(2)]
        self.all = []
        for rank, output in [(rank, self.outputs[rank]) for rank in ranks]:
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", program, str(self.opened(rank)), *FLAGS, *flags]
            command += of_second if rank == 1 else ()
            with output.open("w") as file:
                self.all.append(
                    subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )

    def wait(self, seconds: float = 240.0) -> list[int]:
        """Return the exit statuses."""
        try:
            return [process.wait(seconds) for process in self.all]
        finally:
            for process in self.all:
                process.kill()

    def wait_for(self, text: str, seconds: float = 240.0) -> None:
        """Wait until the first process says something."""
        end = time.monotonic() + seconds
        while text not in self.said(0):
            assert time.monotonic() < end and self.all[0].poll() is None, self.said(0)
            time.sleep(0.1)

    def opened(self, rank: int) -> Path:
        return self.folder / f"opened-{rank}"

    def written(self, rank: int) -> set[str]:
        """Names of the files in the folder of the run that a process has opened for writing."""
        paths = map(Path, self.opened(rank).read_text().splitlines())
        return {path.name for path in paths if path.is_relative_to(self.folder)}

    def said(self, rank: int) -> str:
        return self.outputs[rank].read_text()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz", 14)


def run_of(folder: Path, data: Path, *flags: str) -> Run:
    return Run(settings_of(folder, data, *FLAGS, *flags), folder, "")


def test_two_processes_equal_one(tmp_path: Path, data: Path) -> None:
    """Eleven structures in steps of four: the last step of an epoch has three, and so one process one less."""
    shared = (f"--train_file={data}", "--max_num_epochs=3", "--swa", "--start_swa=2", "--lbfgs", "--lbfgs_steps=3")
    processes = Processes(tmp_path / "two", *shared, "--batch_size=2", "--csv", "--plot=True", "--num_workers=2")
    one = train(tmp_path / "one", data, *FLAGS, *shared, "--batch_size=4")
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    two = run_of(tmp_path / "two", data)
    for ending in ("", "_stagetwo"):
        for name, value in one.weights(ending).items():
            torch.testing.assert_close(
                value, two.weights(ending)[name], rtol=1e-6, atol=1e-6 * float(value.detach().abs().max())
            )
    assert len(one.records) == len(two.records)
    for a, b in zip(one.records, two.records, strict=True):
        a, b = untimed(a), untimed(b)
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (b[key] if isinstance(a[key], str | None) else pytest.approx(b[key], rel=1e-6)), key
    assert two.said("2 processes with 2 structures each in a step, 4 together")
    assert processes.said(1) == ""  # only the first one speaks
    table = (tmp_path / "two" / "results" / f"{two.tag}_steps.csv").read_text().splitlines()
    assert len(table) == 1 + sum(record["mode"] == "opt" for record in two.records)  # and tells trackers
    assert any(f"{two.tag}.html" in name for name in processes.written(0))  # and writes the page
    assert processes.written(1) == set()
    # what two have begun, one can go on with
    longer = train(tmp_path / "two", data, *FLAGS, *shared, "--batch_size=4", "--max_num_epochs=5", "--restart_latest")
    assert longer.said("continuing with: .*processes 2 -> 1") and longer.epochs_trained == list(range(8))


@pytest.mark.slow
def test_two_processes_equal_one_with_heads(tmp_path: Path) -> None:
    """Batches of mixed heads are divided as others are, and the best model is chosen by the same loss of all heads."""
    for name, count in (("few", 6), ("many", 13)):
        write_water(tmp_path / f"{name}.xyz", count, count)
    tables = {
        name: {"train_file": f"{tmp_path / name}.xyz", "weight": weight}
        for name, weight in (("few", 2.0), ("many", 1.0))
    }
    flags = (
        f"--heads={tables}",
        "--head_sampling=balanced",
        "--max_num_epochs=3",
        "--lr_factor=0.5",
        "--scheduler_patience=0",
    )
    processes = Processes(tmp_path / "two", *flags, "--batch_size=2")
    one = train(tmp_path / "one", None, *FLAGS, *flags, "--batch_size=4")
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    two = Run(settings_of(tmp_path / "two", None, *FLAGS, *flags), tmp_path / "two", "")
    for name, value in one.weights().items():
        torch.testing.assert_close(value, two.weights()[name], rtol=1e-6, atol=1e-6 * float(value.detach().abs().max()))
    for a, b in zip(one.records, two.records, strict=True):
        assert a.get("head") == b.get("head") and a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    states = [run.last_state()["progression"] for run in (one, two)]
    assert states[0]["best_epochs"] == states[1]["best_epochs"]
    assert states[0]["lowest_loss"] == pytest.approx(states[1]["lowest_loss"], rel=1e-6)
    assert states[0]["draws"] == states[1]["draws"] == [[5, 8], [10, 7]]


@pytest.mark.slow
def test_two_processes_correct_and_freeze_as_one(tmp_path: Path, data: Path) -> None:
    """Low-rank corrections, whose gradients are added up, and a part without gradients."""
    shared = (f"--train_file={data}", "--max_num_epochs=3", "--lora=True", "--lora_rank=2", "--freeze=products.0")
    processes = Processes(tmp_path / "two", *shared, "--batch_size=2")
    one = train(tmp_path / "one", data, *FLAGS, *shared, "--batch_size=4").weights()
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    two = run_of(tmp_path / "two", data).weights()
    for name, value in one.items():
        largest = float(value.detach().abs().max())
        torch.testing.assert_close(value, two[name], rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.slow
def test_two_processes_replay_as_one(tmp_path: Path, data: Path) -> None:
    """Structures are selected and labeled once, by the first process."""
    start = train(tmp_path / "start", data, *FLAGS, "--max_num_epochs=0").folder / "tiny.model"
    write(tmp_path / "bare.xyz", [Atoms(frame.numbers, frame.positions) for frame in water(20, seed=3)])
    shared = (
        *(f"--train_file={data}", f"--foundation_model={start}", f"--pt_train_file={tmp_path}/bare.xyz"),
        *("--pseudolabel_replay=True", "--num_samples_pt=9", "--subselect_pt=fps", "--max_num_epochs=2", "--lr=0.001"),
        "--real_pt_data_ratio_threshold=3",
    )
    processes = Processes(tmp_path / "two", *shared, "--batch_size=2")
    one = train(tmp_path / "one", data, *FLAGS, *shared, "--batch_size=4")
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    two = run_of(tmp_path / "two", data)
    for name, value in one.weights().items():
        largest = float(value.detach().abs().max())
        torch.testing.assert_close(value, two.weights()[name], rtol=1e-6, atol=1e-6 * largest)
    assert len(list((tmp_path / "two" / "pseudolabels").iterdir())) == 1
    assert two.said("9 are taken as farthest points") and two.log.count("to compute") == 1
    assert processes.written(1) == set() and processes.said(1) == ""
    wrong = [Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])]
    write(tmp_path / "bare.xyz", wrong * 10)
    processes = Processes(tmp_path / "wrong", *shared)
    assert processes.wait(TOGETHER) == [2, 2]
    told = processes.said(0) + processes.said(1)
    assert told.count("structure 0 contains N, which the model was not trained on") == 1 and "frame #" not in told


def test_a_killed_process_ends_the_other_with_a_message(tmp_path: Path, data: Path) -> None:
    processes = Processes(tmp_path / "run", f"--train_file={data}", "--max_num_epochs=100000", "--batch_size=2")
    processes.wait_for("Epoch 1:")
    processes.all[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    statuses = processes.wait(TOGETHER)
    assert time.monotonic() - start < TOGETHER
    assert statuses == [2, -signal.SIGKILL]
    last_line = processes.said(0).splitlines()[-1]
    assert re.search(r"process 1 \(.*process id \d+\) has ended without a word", last_line), processes.said(0)
    assert "--restart_latest goes on from the last saved state" in last_line
    assert processes.written(1) == set()
    page = (tmp_path / "run" / "results" / "tiny_run-7.html").read_text(encoding="utf-8")
    assert "another process" in page or "process 1" in page
    errors = json.loads(re.search('id="errors-data">(.*?)</script>', page)[1])  # type: ignore[index]
    energies = errors["stages"][0]["properties"][0]["cells"]
    assert sum(cell["count"] for cell in energies) == 3  # the validation structures of both processes
    assert load_safely(tmp_path / "run" / "checkpoints" / "tiny_run-7_last.pt")["progression"]["epoch"] >= 1


def test_a_signal_to_one_process_saves_and_ends_all(tmp_path: Path, data: Path) -> None:
    flags = (f"--train_file={data}", "--batch_size=2")
    processes = Processes(tmp_path / "run", *flags, "--max_num_epochs=100000")
    processes.wait_for("Epoch 1:")
    processes.all[1].send_signal(signal.SIGTERM)
    assert processes.wait(TOGETHER) == [143, 143]
    assert "--restart_latest goes on from there" in processes.said(0).splitlines()[-1]
    assert processes.said(1) == ""
    state = load_safely(tmp_path / "run" / "checkpoints" / "tiny_run-7_last.pt")
    assert state["processes"] == 2 and state["progression"]["epoch"] >= 1


IMPATIENT = f"""
import os, time
from mace.processes import watchdog
from mace.runs import run
from mace.training import checkpoints, finiteness, loop
watchdog.PATIENCE = 6.0
def slowed(write):
    def slowly(*arguments):
        time.sleep(12.0 * os.path.exists("slow"))
        return write(*arguments)
    return slowly
checkpoints.CheckpointFolder.save_last = slowed(checkpoints.CheckpointFolder.save_last)
run.write_models = slowed(run.write_models)
def begin_stage(self, epoch, begin=loop.Trainer._begin_stage):
    if epoch == 2 and os.path.exists("diverge"):
        raise finiteness.Diverged("Epoch 2 has diverged.")
    begin(self, epoch)
loop.Trainer._begin_stage = begin_stage
{TELLING_WHAT_IT_OPENS}
"""
"""A program that writes slowly once there is a file ``slow``, and whose watchdogs are less patient than that."""


@pytest.mark.slow
def test_a_stop_waits_for_the_first_process_to_save(tmp_path: Path, data: Path) -> None:
    """The others have nothing to write, and must not be taken for failed while it does."""
    flags = (f"--train_file={data}", "--batch_size=2", "--max_num_epochs=100000", "--checkpoint_minutes=1000")
    processes = Processes(tmp_path / "run", *flags, program=IMPATIENT)
    processes.wait_for("Epoch 0:")
    (tmp_path / "run" / "slow").touch()
    processes.all[1].send_signal(signal.SIGTERM)
    assert processes.wait(TOGETHER) == [143, 143]
    last_line = processes.said(0).splitlines()[-1]
    assert "--restart_latest goes on from there" in last_line and "process 0 ended" not in last_line


@pytest.mark.slow
def test_divergence_waits_for_the_first_process_to_write_models(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diverge").touch()
    flags = (f"--train_file={data}", "--batch_size=2", "--max_num_epochs=5")
    processes = Processes(tmp_path / "run", *flags, program=IMPATIENT)
    processes.wait_for("Epoch 0:")
    (tmp_path / "run" / "slow").touch()
    assert processes.wait(TOGETHER) == [2, 2]
    assert "Epoch 2 has diverged." in processes.said(0) + processes.said(1)
    assert (tmp_path / "run" / "tiny.model").exists()


@pytest.mark.slow
def test_a_command_starts_the_processes_itself(tmp_path: Path, data: Path) -> None:
    flags = (f"--train_file={data}", "--batch_size=2", "--max_num_epochs=100000", "--devices=2")
    command = [sys.executable, "-m", "mace.cli.run_train", *FLAGS, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 240.0
        while "Epoch 1:" not in output.read_text():
            assert time.monotonic() < end and process.poll() is None, output.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TOGETHER) == 143
    finally:
        process.kill()
    said = output.read_text()
    assert said.count("2 processes with 2 structures each in a step, 4 together") == 1
    assert "--restart_latest goes on from there" in said.splitlines()[-1]
    assert load_safely(tmp_path / "checkpoints" / "tiny_run-7_last.pt")["processes"] == 2


def test_a_problem_of_all_is_told_once(tmp_path: Path, data: Path) -> None:
    processes = Processes(tmp_path / "run", f"--train_file={tmp_path / 'none.xyz'}")
    assert processes.wait(120) == [2, 2]
    told = [rank for rank in range(2) if "there is no such file" in processes.said(rank)]
    assert len(told) == 1, processes.said(0) + processes.said(1)


def test_other_settings_of_one_process_are_named_before_anything_is_trained(tmp_path: Path, data: Path) -> None:
    processes = Processes(
        tmp_path / "run", f"--train_file={data}", "--batch_size=2", of_second=("--lr=0.5", "--ema_decay=0.5")
    )
    assert processes.wait(TOGETHER) == [2, 2]
    told = processes.said(0) + processes.said(1)
    assert "Process 1 has other settings than process 0 (" in told and "--lr is 0.5 instead of 0.01" in told
    assert (
        "--ema_decay is 0.5 instead of 0.99" in told
        and "Traceback" not in told
        and not list(tmp_path.glob("run/*.model"))
    )


def test_other_data_of_one_process_are_named(tmp_path: Path, data: Path) -> None:
    """The same name, but in another folder: as where machines do not share one."""
    (tmp_path / "run").mkdir()
    other = tmp_path / "run" / "1"
    other.mkdir()
    write_water(tmp_path / "run" / "train.xyz", 14)
    write_water(other / "train.xyz", 15)
    start = f"import os; os.chdir(os.environ['RANK'] if os.environ['RANK'] == '1' else '.')\n{TELLING_WHAT_IT_OPENS}"
    processes = Processes(tmp_path / "run", "--train_file=train.xyz", "--batch_size=2", program=start)
    assert processes.wait(TOGETHER) == [2, 2]
    told = processes.said(0) + processes.said(1)
    assert "Process 1 has other data than process 0 (train.xyz " in told and "Traceback" not in told


def test_a_process_that_waits_for_others_heeds_a_signal() -> None:
    """Python looks for signals between its own steps only, and so never in a native call of the main thread."""
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with pytest.raises(RunInterrupted, match="Stopped by SIGTERM"), Interruption():
        heeding_signals(lambda: TCPStore("localhost", free_port(), 2, True, timedelta(seconds=20)))
    assert time.monotonic() - start < 5.0


def test_a_program_that_is_ending_is_not_hurried() -> None:
    """Launchers send signals to those that are about to say why they end."""
    with Interruption() as interruption:
        interruption.ignore()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    assert not interruption.requested


@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_raised_while_waiting_is_raised_here(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        heeding_signals(fail)
    assert heeding_signals(lambda: 5) == 5


def test_a_process_without_a_sign_of_life_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a machine that was cut off: nothing fails, nothing answers."""
    monkeypatch.setattr(watchdog, "INTERVAL", 0.05)
    monkeypatch.setattr(watchdog, "MISSED", 4)
    port = free_port()
    server = TCPStore("localhost", port, 1, True, timedelta(seconds=20), False)
    server.set("mace/alive/1", "7")
    watching = watchdog.Watchdog(TCPStore("localhost", port, 1, False, timedelta(seconds=20), False), 0, 2)
    watching.watch(["here, process id 4", "there, process id 5"], "here:29400")
    assert watching.found.result(20) == "process 1 (there, process id 5) has given no sign of life for 0 s"
    assert watching.lost() == watching.found.result()
    watching.stop()


def test_a_state_on_another_machine_is_not_passed_over(tmp_path: Path) -> None:
    class Two(Team):
        def __init__(self, *others: Any) -> None:
            self.others = others

        def gather(self, item: Any) -> list[Any]:
            return [item, *self.others]

    folder = CheckpointFolder(tmp_path, "tiny_run-7")
    require_one_state(Two(("there", None)), folder)
    with pytest.raises(UserError, match=r"process 2 on there finds .*tiny_run-7_last.pt, but process 0 on .* has none"):
        require_one_state(Two(("here", None), ("there", (5, 10**18))), folder)
    folder.last.write_bytes(b"state")
    os.utime(folder.last, ns=(10**18, 10**18))
    require_one_state(Two(("there", (5, 10**18)), ("elsewhere", None)), folder)
    with pytest.raises(UserError, match="has another one; put the folder of the run where all machines see it"):
        require_one_state(Two(("there", (5, 2 * 10**18))), folder)


def test_a_signal_after_a_death_names_the_dead(tmp_path: Path, data: Path) -> None:
    """As torchrun does: once a process is gone, it ends all others with SIGTERM."""
    processes = Processes(tmp_path / "run", f"--train_file={data}", "--max_num_epochs=100000", "--batch_size=2")
    processes.wait_for("LOADING INPUT DATA")
    processes.all[1].send_signal(signal.SIGKILL)
    processes.all[0].send_signal(signal.SIGTERM)
    assert processes.wait(TOGETHER) == [2, -signal.SIGKILL], processes.said(0)
    assert re.search(r"process 1 \(.*process id \d+\) has ended without a word", processes.said(0).splitlines()[-1])


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path, data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    flags = [f"--train_file={data}", "--max_num_epochs=2", "--batch_size=2", f"--work_dir={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "-m", "mace.cli.run_train", *FLAGS, *flags], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    assert run_of(tmp_path, data).epochs_trained == [0, 1]
