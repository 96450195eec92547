"""Is a device used as it is, whatever it lacks and whoever numbers it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import original_files as files
import pytest
import torch

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.model import prediction
from mace.processes import devices, team
from mace.processes.devices import (
    choose_device,
    is_out_of_memory,
    overridden_products,
    products_in,
    rounding_of_products,
    using,
    widest,
)
from mace.processes.launch import Launch
from mace.processes.team import own_device
from mace.runs import run
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import StepOutcome
from mace.training.phases import PhaseClock

SAID = [
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.",
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "HIP error: hipErrorOutOfMemory",
    "HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocblas_status_memory_error",
    "Triton Error [CUDA]: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "MPS backend out of memory (MPS allocated: 8.00 GB)",
    "XPU out of memory. Tried to allocate 1.00 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
]


@pytest.mark.parametrize("said", SAID)
def test_memory_that_runs_out_is_taken_for_that(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))


@pytest.mark.parametrize("said", ["CUBLAS_STATUS_EXECUTION_FAILED", "CUDA error: an illegal memory access", "NaN"])
def test_other_errors_are_not(said: str) -> None:
    assert not is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError("out of memory"))


def launch(local_rank: int, size: int = 4) -> Launch:
    return Launch(local_rank, size, local_rank, "here", 1)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "device_count", lambda kind: 4)
    assert [own_device("cuda", launch(rank)) for rank in range(4)] == [f"cuda:{rank}" for rank in range(4)]
    assert own_device("xpu", launch(1)) == "xpu:1"
    assert own_device("cuda:2", None) == own_device("cuda:2", launch(0, 1)) == "cuda:2"
    monkeypatch.setattr(team, "device_count", lambda kind: 1)  # as SLURM binds one to each task
    assert own_device("cuda", launch(3)) == "cuda:0"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:1", "leave out the number: each process takes one of its own with --device=cuda"),
        ("mps", "use cuda, xpu or cpu"),
        ("cuda", "process 3 of this machine has no GPU: there are 2"),
    ],
)
def test_devices_that_cannot_be_divided(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "device_count", lambda kind: 2)
    with pytest.raises(UserError, match=words):
        own_device(name, launch(3))


def test_two_processes_with_the_same_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several processes see one device, it may be the same one."""
    member = team.DistributedTeam.__new__(team.DistributedTeam)
    member.rank, member.size, member._device = 0, 3, torch.device("cuda:0")
    monkeypatch.setattr(team, "device_identity", lambda device: "GPU-1")
    monkeypatch.setattr(member, "gather", lambda item: [("a", "GPU-1"), ("b", "GPU-1"), ("b", "GPU-1")])
    with pytest.raises(UserError, match="Processes 1 and 2 have the same device, cuda GPU-1 of b"):
        member._connect_devices()


def test_numbers_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_widest", lambda kind, index: torch.float64)
    assert choose_device("xpu:1", "float32") == torch.device("xpu:1")
    with pytest.raises(UserError, match=r"--device=xpu:2: this machine has 2 such device\(s\), numbered from 0"):
        choose_device("xpu:2", "float32")


def test_mps_has_no_double_precision() -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda:1")) == torch.float64
    with pytest.raises(UserError, match="--device=mps has no double precision; add --default_dtype=float32"):
        choose_device("mps", "float64")


def test_the_current_device_is_the_one_in_use_and_the_one_before_again(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [torch.device("cuda:0")]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    with using(torch.device("cuda:1")):
        assert current[-1] == torch.device("cuda:1")
    with using(torch.device("cpu")):
        assert current == [torch.device("cuda:0")]


def test_tf32_is_off_unless_asked_for() -> None:
    """Also where an environment variable, which torch reads when it is imported, has switched it on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for wanted, expected in ((False, "highest"), (True, "high")):
            with products_in(torch.device("cuda:0"), wanted):
                assert torch.get_float32_matmul_precision() == expected
                assert torch.backends.cuda.matmul.allow_tf32 == wanted
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert rounding_of_products(torch.device("cuda"), torch.float32) is None
    assert rounding_of_products(torch.device("cpu"), torch.float32) is None
    with products_in(torch.device("cuda"), True):
        assert rounding_of_products(torch.device("cuda"), torch.float64) is None
        assert "rounded to TensorFloat-32" in str(rounding_of_products(torch.device("cuda"), torch.float32))
    with products_in(torch.device("cpu"), True) as notes:
        assert notes == ["--tf32 has no effect on --device=cpu: only GPUs of NVIDIA have it"]


@pytest.mark.parametrize(
    ("environment", "tf32", "words"),
    [
        ({}, False, ""),
        ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, False, "has no effect here"),
        (
            {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "0"},
            False,
            "CUBLAS_OVERRIDE=1 has no effect",
        ),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, True, "--tf32 has no effect on the products"),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, False, "may multiply with TensorFloat-32, although --tf32 is not given"),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, True, ""),
    ],
)
def test_what_the_environment_says_of_tf32_is_told(environment: dict[str, str], tf32: bool, words: str) -> None:
    notes = overridden_products(tf32, environment)
    assert len(notes) == bool(words) and words in "".join(notes)


class Stream:
    """Stands for the queue of work of a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device


class Event:
    """Stands for a mark in the queue of a device."""

    recorded: ClassVar[list[torch.device]] = []

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Stream) -> None:
        Event.recorded.append(stream.device)


def test_times_are_taken_in_the_queue_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device is the current one: a mark in the queue of another one is reached at once."""
    monkeypatch.setattr(Event, "recorded", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    clock = PhaseClock(torch.device("cuda:1"))
    clock.mark("forward")
    assert Event.recorded == [torch.device("cuda:1")] * 2


def test_models_are_evaluated_with_their_device_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are launched by name go to the current device."""
    used = list[torch.device]()

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        used.append(device)
        yield

    monkeypatch.setattr(prediction, "using", use)
    model = files.model().to("meta")
    structure = Configuration(np.array([1, 8]), np.eye(3)[:2], np.zeros((3, 3)), (False,) * 3)
    graph = graph_of_structures([structure], ElementTable(model.plan.atomic_numbers), model.plan.r_max).to("meta")
    prediction.predict(model, graph)
    prediction.hessian(model, graph)
    assert used == [torch.device("meta")] * 2


def test_a_run_uses_its_device_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = list[str]()

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        log.append(f"use {device}")
        yield
        log.append("end")

    @contextmanager
    def context(*_: object) -> Iterator[None]:
        log.append("run")
        raise UserError("enough")
        yield

    monkeypatch.setattr(run, "using", use)
    monkeypatch.setattr(run, "run_context", context)
    with pytest.raises(UserError, match="enough"):
        run.run_training(parse_training_settings(["--name=x", "--train_file=x.xyz", f"--work_dir={tmp_path}"]))
    assert log == ["use cpu", "run"]


def test_second_derivatives_have_many_rows_at_a_time_on_a_device() -> None:
    copies = [prediction.copies_for_hessian(n, torch.device("cuda")) for n in (1, 10, 100, 1000)]
    assert copies == [3, 25, 2, 1] and prediction.copies_for_hessian(10, torch.device("cpu")) == 1


def test_who_waits_for_numbers_of_a_device_looks_after_the_others() -> None:
    """A GPU that waits for one that is gone never has them."""

    class Mark:
        def synchronize(self) -> None:
            raise AssertionError("this would wait for ever")

    def lost(work: Callable[[], None]) -> None:
        raise team.LostProcess("process 1 has ended")

    outcome = StepOutcome(
        np.zeros(0), torch.zeros(()), 0, 0.0, 0.0, 1, PhaseClock(torch.device("cpu")), torch.zeros(2), Mark(),  # type: ignore[arg-type]
        (False, False), lost,
    )  # fmt: skip
    with pytest.raises(team.LostProcess):
        outcome.read()
