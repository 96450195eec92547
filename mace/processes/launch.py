"""The rank of this process among several, read from the environment variables set by the launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mace.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of rank, number of processes, rank on the machine, and where the first process can be reached."""
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_MPI = {
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "PMI_RANK": ("PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
"""Variables of rank, number of processes, and both within a machine, of Open MPI and of MPICH and Intel MPI."""

_FIRST_PORT, _PORTS = 20000, 20000

HOW = (
    "use --devices=N on one machine, or start the program with torchrun --nproc_per_node=N -m mace.cli.run_train ..., "
    "with srun in a SLURM job "
    "(--launcher=slurm), or with mpirun (--launcher=mpi)"
)


@dataclass(frozen=True)
class Launch:
    """The place of this process among those of a run.

    Attributes:
        rank: Rank of the process, counted from zero.
        size: Number of processes.
        local_rank: Rank of the process among those on its machine.
        address: Host name or address of the first process.
        port: Port at which it can be reached.
        has_store: Whether the launcher itself runs the store at this address.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    has_store: bool = False


def find_launch(distributed: bool, launcher: str, environment: Mapping[str, str]) -> Launch | None:
    """Read this process's place among those of a run from the environment.

    Args:
        distributed: Whether several processes are requested. Processes started by torchrun are recognized without it,
            since otherwise each would run on its own and overwrite the files of the others.
        launcher: ``torchrun``, ``slurm``, ``mpi``, ``none`` for a single process, or ``auto`` to try the
            first three.
        environment: Environment variables of the process.

    Returns:
        The place, or None for a single process.

    Raises:
        UserError: If the launcher's variables are missing from the environment or make no sense.
    """
    if launcher == "none":
        if distributed:
            raise UserError(f"--distributed needs a launcher, but --launcher is none; {HOW}.")
        return None
    if launcher == "slurm" and not distributed and not any(name in environment for name in _SLURM):
        return None  # mace-torch's default, given although there is nothing to launch
    wanted = launcher
    if launcher == "auto":
        found = {
            "torchrun": all(n in environment for n in TORCHRUN) and (distributed or environment["WORLD_SIZE"] != "1"),
            "mpi": distributed and any(name in environment for name in _MPI),
            "slurm": distributed and all(name in environment for name in _SLURM),
        }
        wanted = next((name for name, is_there in found.items() if is_there), "")
    if not wanted:
        if distributed:
            raise UserError(f"--distributed: nothing in the environment tells of other processes; {HOW}.")
        return None
    launch = {"torchrun": _from_torchrun, "slurm": _from_slurm, "mpi": _from_mpi}[wanted](environment)
    if not 0 <= launch.rank < launch.size:
        raise UserError(f"--launcher={wanted}: process {launch.rank} of {launch.size} does not exist; {HOW}.")
    return launch


def check_size(devices: int | None, launch: Launch | None) -> None:
    """Check that there are as many processes as the setting says, if it says so.

    Raises:
        UserError: If there are not.
    """
    size = 1 if launch is None else launch.size
    if devices is not None and devices != size:
        raise UserError(
            f"--devices={devices}, but the run has {size} process{'es' * (size > 1)}: the command mace_run_train "
            "starts them itself, and with another launcher the flag is to be left out."
        )


def started_together(environment: Mapping[str, str]) -> int:
    """Return how many processes SLURM or MPI started together, this one included; 1 if there is no sign of others.

    >>> started_together({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"})
    2
    """
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", *(sizes[0] for sizes in _MPI.values())):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return 1


def _number(environment: Mapping[str, str], name: str, launcher: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"--launcher={launcher}: the environment has no number {name}, so the program was not started by it; {HOW}."
        ) from error


def _from_torchrun(environment: Mapping[str, str]) -> Launch:
    rank, size, local, port = (
        _number(environment, name, "torchrun") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    has_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, size, local, environment.get("MASTER_ADDR", "localhost"), port, has_store)


def _from_slurm(environment: Mapping[str, str]) -> Launch:
    rank, size, local = (_number(environment, name, "slurm") for name in _SLURM)
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    return Launch(
        rank, size, local, environment.get("MASTER_ADDR", first_host(hosts)), _port(environment, "SLURM_JOB_ID")
    )


def _from_mpi(environment: Mapping[str, str]) -> Launch:
    variable = next((name for name in _MPI if name in environment), "OMPI_COMM_WORLD_RANK")
    rank = _number(environment, variable, "mpi")
    size, local, local_size = (_number(environment, name, "mpi") for name in _MPI[variable])
    address = environment.get("MASTER_ADDR", "localhost" if local_size == size else "")
    if not address:
        raise UserError(
            "--launcher=mpi: on several machines the variable MASTER_ADDR must name that of process 0; for example "
            "mpirun -x MASTER_ADDR=$(hostname) ..."
        )
    return Launch(rank, size, local, address, _port(environment, "OMPI_MCA_ess_base_jobid"))


def _port(environment: Mapping[str, str], job: str) -> int:
    """Return the given port, or else one that differs from job to job."""
    if "MASTER_PORT" in environment:
        return int(environment["MASTER_PORT"])
    digits = re.sub(r"\D", "", environment.get(job, "")) or "0"
    return _FIRST_PORT + int(digits) % _PORTS


def first_host(hosts: str) -> str:
    """Return the first host of a list in SLURM's notation.

    >>> first_host("gpu[007-010,12],login")
    'gpu007'
    >>> first_host("node1,node2")
    'node1'
    """
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,]*)", hosts)
    if match is None:
        return hosts
    return "".join(part or "" for part in match.groups())
