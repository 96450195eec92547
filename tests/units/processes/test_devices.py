"""Is a device used as it is, whatever it lacks and whoever numbers it?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mace.errors import UserError
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
