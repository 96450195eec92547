"""How threads wait for each other and for cores, and how many cores there are."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mace.processes.cores import (
    LOOK,
    SPIN_COUNT,
    Resting,
    RestPlan,
    WaitMeter,
    bound_spinning,
    is_number_set,
    usable_cores,
    waits_for_cores,
)


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_says_about_spinning_stays(given: dict[str, str]) -> None:
    environment = dict(given)
    bound_spinning(environment)
    assert environment == given


def test_spinning_is_bounded_otherwise() -> None:
    environment = {"PATH": "/bin"}
    bound_spinning(environment)
    assert environment == {"PATH": "/bin", "GOMP_SPINCOUNT": str(SPIN_COUNT)}


def test_programs_bound_it_before_torch_is_loaded() -> None:
    script = (
        "import os, sys; from mace.cli.command import run_program\n"
        "def main(arguments):\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "before = dict(os.environ); import mace.processes.cores; assert dict(os.environ) == before\n"
        "run_program(main)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    assert result.stdout.strip() == str(SPIN_COUNT)


@pytest.mark.parametrize(
    ("given", "environment", "is_set"),
    [
        (None, {}, False),
        (None, {"OMP_NUM_THREADS": ""}, False),
        (2, {}, True),
        (None, {"OMP_NUM_THREADS": "2"}, True),
        (None, {"MKL_NUM_THREADS": "1"}, True),
    ],
)
def test_whether_somebody_set_the_number(given: int | None, environment: dict[str, str], is_set: bool) -> None:
    assert is_number_set(given, environment) == is_set


def _system(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_quotas_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cores(tmp_path / "nothing") == 16
    second = {"sys/fs/cgroup/jobs/cpu.max": "400000 100000\n", "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n"}
    assert usable_cores(_system(tmp_path / "v2", "0::/jobs/mine\n", second)) == 4
    # a container sees its own group at the top, under the path that the host knows
    inside = _system(tmp_path / "inside", "0::/docker/abc\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"})
    assert usable_cores(inside) == 2
    first = {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}
    assert usable_cores(_system(tmp_path / "v1", "5:cpu,cpuacct:/a\n4:memory:/a\n", first)) == 1
    free = {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}
    assert usable_cores(_system(tmp_path / "free", "5:cpu,cpuacct:/a\n", free)) == 16


def test_threads_rest_where_cores_are_short_and_try_now_and_then() -> None:
    plan, now, trials, resting = RestPlan(), 1000.0, [], 0.0
    while now < 1400.0:  # as long as they spin, others are seen to be there
        was, rests = plan.rests, plan.decide(now, 0.0 if plan.rests else 0.8)
        if was and not rests:
            trials.append(now)
        resting += plan.look * rests
        now += plan.look
    gaps = [later - earlier for earlier, later in zip(trials, trials[1:], strict=False)]
    assert gaps[0] < 15.0 and max(gaps) < 90.0 and gaps == sorted(gaps), "they try ever more seldom"
    assert resting > 0.98 * 400.0
    while plan.rests:
        plan.decide(now, 0.0)
        now += plan.look
    for _ in range(100):
        assert not plan.decide(now, 0.02)
        assert plan.look == LOOK
        now += plan.look
    assert plan.decide(now, 0.5), "others have come back"
    now += 5.5
    assert not plan.decide(now, 0.5), "after a quiet time they try as soon as at first"


_RESTING = """
import os, sys, time, torch
from mace.processes.cores import Resting

def threads():
    return len(os.listdir("/proc/self/task"))

def spent():
    "Processor time of a second thread that waits between short parallel regions."
    torch.set_num_threads(2)
    ones = torch.ones(100_000)
    ones.add_(1.0)
    start, end = time.process_time(), time.monotonic() + 0.4
    while time.monotonic() < end:
        ones.add_(1.0)
        time.sleep(0.01)
    return time.process_time() - start

spin_count = os.environ.pop("GOMP_SPINCOUNT")  # which the runtime has read
resting = Resting()
assert resting.is_possible
os.environ["GOMP_SPINCOUNT"] = spin_count
assert not Resting().is_possible, "somebody has said how threads wait"
spins = spent()
before = threads()
resting.set(True, 2); resting.set(True, 2)
time.sleep(0.1)
started = threads() - before
resting.set(True, 1)
time.sleep(0.2)
enlarged = threads() - before
resting.set(True, 2)
rests = spent()
resting.set(False, 2)
time.sleep(0.2)
print(started, enlarged, threads() - before, spins, rests, spent())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only GCC's runtime can be told")
def test_resting_threads_use_no_core() -> None:
    """While the one thread sleeps, the other spins for as long as the count lets it, unless it rests."""
    if usable_cores() < 2:
        pytest.skip("there is one core, on which the runtime spins hardly at all")
    environment = {"GOMP_SPINCOUNT": "1000000000"}
    result = subprocess.run(
        [sys.executable, "-c", _RESTING], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    started, enlarged, left, spins, rests, spins_again = map(float, result.stdout.split())
    assert (started, enlarged, left) == (2.0, 3.0, 0.0), "a thread and its team, which end with it"
    assert rests < 0.5 * min(spins, spins_again)


def test_resting_without_the_runtime_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mace.processes.cores._gnu_runtime", lambda: None)
    before, resting = threading.active_count(), Resting()
    resting.set(True, 2)
    assert not resting.is_possible and threading.active_count() == before


@pytest.mark.skipif(waits_for_cores() is None, reason="the system does not tell")
def test_waiting_is_measured() -> None:
    """More threads than cores wait; threads that sleep do not."""
    script = (
        "import threading, time; from mace.processes.cores import WaitMeter, usable_cores\n"
        "def work():\n"
        "    end = time.monotonic() + 0.5\n"
        "    while time.monotonic() < end: hash_of(bytes(3_000_000))\n"
        "from hashlib import sha256 as hash_of\n"  # works outside the lock of the interpreter
        "threads = [threading.Thread(target=work) for _ in range(2 * usable_cores() + 1)]\n"
        "meter = WaitMeter(); [t.start() for t in threads]; time.sleep(0.4); busy = meter.read()\n"
        "[t.join() for t in threads]; print(busy)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) > 0.5
    meter = WaitMeter()
    time.sleep(0.05)
    found = meter.read()
    assert found is not None and 0.0 <= found < 2.0


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mace.processes.cores.waits_for_cores", lambda: None)
    assert WaitMeter().read() is None
