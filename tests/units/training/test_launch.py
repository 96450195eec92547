"""Does a process find its place among those that were started together?"""

from __future__ import annotations

import pytest

from mace.errors import UserError
from mace.processes.launch import Launch, find_launch, first_host

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_PORT": "4000",
}  # fmt: skip


def test_torchrun_is_noticed_by_itself() -> None:
    assert find_launch(False, "auto", TORCHRUN) == Launch(3, 8, 1, "first", 29500)
    assert find_launch(True, "torchrun", TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).has_store  # type: ignore[union-attr]


def test_slurm_is_asked_when_wanted() -> None:
    assert find_launch(False, "auto", SLURM) is None  # a job of several tasks may well hold a run of one process
    expected = Launch(5, 8, 1, "gpu07", 20000 + 123456 % 20000)
    assert find_launch(True, "auto", SLURM) == expected
    assert find_launch(False, "slurm", SLURM) == expected
    assert find_launch(True, "slurm", SLURM | {"MASTER_ADDR": "10.0.0.1"}).address == "10.0.0.1"  # type: ignore[union-attr]


def test_mpi_is_asked_when_wanted() -> None:
    assert find_launch(True, "auto", OPEN_MPI) == Launch(1, 2, 1, "localhost", 4000)
    with pytest.raises(UserError, match="MASTER_ADDR must name"):
        find_launch(True, "mpi", OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    intel = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    assert find_launch(True, "mpi", intel).size == 2  # type: ignore[union-attr]


def test_alone() -> None:
    assert find_launch(False, "auto", {}) is None
    assert find_launch(False, "none", TORCHRUN) is None
    assert find_launch(False, "auto", TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("distributed", "launcher", "environment", "words"),
    [
        (
            True,
            "auto",
            {},
            "--distributed: nothing in the environment tells of other processes; use --devices=N .* torchrun",
        ),
        (True, "none", {}, "--distributed needs a launcher"),
        (True, "slurm", {}, "--launcher=slurm: the environment has no number SLURM_PROCID"),
        (True, "torchrun", TORCHRUN | {"RANK": "x"}, "no number RANK"),
        (True, "torchrun", TORCHRUN | {"RANK": "8"}, "process 8 of 8 does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused(
    distributed: bool, launcher: str, environment: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        find_launch(distributed, launcher, environment)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n[1-3]", "n1"), ("n[04,7]", "n04"), ("a1,b2", "a1"), ("r1n[1-2]-ib,z", "r1n1-ib")],
)
def test_the_first_machine_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
