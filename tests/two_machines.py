"""Two machines in one: network namespaces with addresses, host names and disks of their own, joined by a cable.

Run as a program it is a training program that tells what it reads of prepared sets: see `main`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]

MACHINES = (0, 1)

_SETUP = 'hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"; cd "$4"; shift 4; exec "$@"'
"""Makes a machine out of a network namespace: with a name, the names of others, and its own disk where all have one."""


def why_not() -> str:
    """Say why there can be no network namespaces here; nothing if there can."""
    probe = f"mace-{os.getpid()}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
        if made.returncode == 0:
            subprocess.run(["ip", "netns", "delete", probe], check=True)
    except FileNotFoundError:
        return "there is no program 'ip' (iproute2)"
    return made.stderr.strip()


class TwoMachines:
    """The machines, in a ``with`` block at whose end they and all their programs are gone.

    Args:
        folder: An empty folder; each machine has its own ``disk`` there.
    """

    def __init__(self, folder: Path) -> None:
        self.disk = folder / "disk"
        self._own = [folder / f"disk-of-{machine}" for machine in MACHINES]
        self._spaces = [f"mace-{os.getpid()}-{machine}" for machine in MACHINES]
        self._cables = [f"mace{os.getpid() % 100000}-{machine}" for machine in MACHINES]
        self._outputs = [folder / f"output-of-{machine}" for machine in MACHINES]
        self._started: list[subprocess.Popen[bytes]] = []
        self._names = folder / "hosts"
        self._names.write_text("".join(f"{address_of(m)} {name_of(m)}\n" for m in MACHINES) + "127.0.0.1 localhost\n")
        self.disk.mkdir()
        for own in self._own:
            own.mkdir()

    def __enter__(self) -> TwoMachines:
        """Lay the cable."""
        for space in self._spaces:
            _ip("netns", "add", space)
        first, second = self._cables
        _ip("link", "add", first, "type", "veth", "peer", "name", second)
        for machine, (space, cable) in enumerate(zip(self._spaces, self._cables, strict=True)):
            _ip("link", "set", cable, "netns", space)
            _ip("-n", space, "address", "add", f"{address_of(machine)}/24", "dev", cable)
            _ip("-n", space, "link", "set", cable, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for machine in MACHINES:
            for pid in self.trainers(machine):
                os.kill(pid, signal.SIGKILL)
        for space in self._spaces:
            _ip("netns", "delete", space)

    def own(self, machine: int) -> Path:
        """The disk of a machine, as seen from here."""
        return self._own[machine]

    def start(self, *flags: str, of_second: tuple[str, ...] = ()) -> None:
        """Start training with torchrun on both machines."""
        for machine in MACHINES:
            environment = os.environ | {
                "GLOO_SOCKET_IFNAME": self._cables[machine],
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            }
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
            torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={name_of(0)}:29400", "--rdzv-id=mace"]
            machine_of = ["ip", "netns", "exec", self._spaces[machine], "unshare", "--uts", "sh", "-ec", _SETUP, "sh"]
            machine_of += [name_of(machine), str(self._names), str(self._own[machine]), str(self.disk)]
            with self._outputs[machine].open("wb") as output:
                self._started.append(
                    subprocess.Popen(
                        [*machine_of, *torchrun, __file__, *flags, *(of_second if machine == 1 else ())],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )

    def launchers(self) -> list[subprocess.Popen[bytes]]:
        """The two torchruns."""
        return self._started[-2:]

    def trainers(self, machine: int) -> list[int]:
        """Process ids of the training programs of a machine."""
        found = subprocess.run(
            ["ip", "netns", "pids", self._spaces[machine]], capture_output=True, text=True, check=True
        )
        return [pid for pid in map(int, found.stdout.split()) if _is_trainer(pid)]

    def wait(self, seconds: float = 300.0) -> list[int]:
        """Return the exit statuses of both torchruns."""
        return [launcher.wait(seconds) for launcher in self.launchers()]

    def seconds_until_ended(self, machine: int) -> float:
        """Wait for the training program of a machine to end, not forever."""
        start = time.monotonic()
        while self.trainers(machine) and time.monotonic() - start < 120.0:
            time.sleep(0.2)
        return time.monotonic() - start

    def cut_off(self) -> None:
        """Cut the cable."""
        _ip("-n", self._spaces[1], "link", "set", self._cables[1], "down")

    def said(self, machine: int) -> str:
        """What was written to the terminal of a machine."""
        return self._outputs[machine].read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, machine: int = 0, seconds: float = 240.0) -> None:
        """Wait until a machine says something."""
        end = time.monotonic() + seconds
        while text not in self.said(machine):
            ended = self.launchers()[machine].poll()
            assert time.monotonic() < end and ended is None, self.said(0) + self.said(1)
            time.sleep(0.05)

    def events(self, machine: int) -> list[dict[str, Any]]:
        """What the training program of a machine has told of itself."""
        path = self._own[machine] / "told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def address_of(machine: int) -> str:
    """Return the address of a machine."""
    return f"10.77.0.{machine + 1}"


def name_of(machine: int) -> str:
    """Return the host name of a machine."""
    return f"machine-{machine}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _is_trainer(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return __file__.encode() in words and b"torch.distributed.run" not in words


def main() -> None:
    """Train, and write down in the file ``told`` which structures of which set are read when."""
    from mace.cli import run_train
    from mace.processes.team import DistributedTeam
    from mace.structures import prepared
    from mace.training.loop import Trainer

    told = open("told", "w", buffering=1, encoding="utf-8")
    tensor, train, leave = prepared._Rows.tensor, Trainer.train, DistributedTeam.leave

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=told)

    def told_tensor(self: Any, name: str) -> Any:
        tell(set=self._stored.folder.name, tensor=name, structures=self._structures.tolist())
        return tensor(self, name)

    def told_train(self: Any) -> Any:
        tell(now="training", rank=int(os.environ["RANK"]))
        return train(self)

    def told_leave(self: Any) -> None:
        tell(now="left")
        leave(self)

    prepared._Rows.tensor = told_tensor  # type: ignore[method-assign]
    Trainer.train = told_train  # type: ignore[method-assign]
    DistributedTeam.leave = told_leave  # type: ignore[method-assign]
    run_train.main()


if __name__ == "__main__":
    main()
