"""Worker of Symmetrix-XL, run by an interpreter that has it; it evaluates the model that mace-torch has written."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from molecules import read_box
from moving_box import moving, through_calculator
from workers import Settings, Task, serve

CONVERTER = "symmetrix_extract_mace"


def prepare(settings: Settings) -> Task:
    """Convert the model, build the calculator, which compiles code for it; write its results on the box."""
    package = _identity()
    # taken as it is: of its two profiles the one it chooses by itself, which saves memory, was also the faster one
    converted = _convert(settings["weights"] + ".model")
    calculator = import_module("symmetrix").Symmetrix(converted, dtype=settings["dtype"])
    task = _box(settings, calculator)
    runtime = import_module("symmetrix.runtime_diagnostics").openmp_runtime_diagnostics(strict=False)["runtime"]
    task.facts.update(package=package, threads=runtime["kokkos_concurrency"])
    return task


def _identity() -> str:
    """Name the package and which of its libraries, one per kind of processor, it has chosen."""
    try:
        release = version("symmetrix-xl")
    except PackageNotFoundError:
        raise RuntimeError(
            "this interpreter has no Symmetrix-XL: "
            "pip install torch mace-torch==0.3.16 symmetrix-xl==0.1.1 symmetrix-xl-cpu-avx512==0.1.1"
        ) from None
    symmetrix = import_module("symmetrix")
    symmetrix.load_backend()
    return f"symmetrix-xl {release} ({symmetrix.selected_backend()['selector']})"


def _convert(model_file: str) -> str:
    """Turn a model file of mace-torch into one of Symmetrix with its own command; return the new file."""
    command = shutil.which(CONVERTER, path=sysconfig.get_path("scripts"))
    if command is None:
        raise RuntimeError(f"the environment of this interpreter has no command {CONVERTER}")
    converted = model_file + ".json"
    # it prints; nothing of it may get into the pipe to the parent
    done = subprocess.run([command, "--model", model_file, "--output", converted], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{CONVERTER} failed:\n{done.stdout}{done.stderr}")
    return converted


def _box(settings: Settings, calculator: Any) -> Task:
    """Energy and forces of a box through its calculator, from positions that differ every time."""
    atoms = read_box(settings["box"])
    step = moving(settings, atoms, through_calculator(settings, atoms, calculator))
    return Task(step, {"atoms": len(atoms), "what": _describe(calculator, settings["dtype"])})


def _describe(calculator: Any, dtype: str) -> str:
    """Say what was measured: how it computes, and whether the stress is among what it computed."""
    stress = "computed too" if "stress" in calculator.results else "not computed"
    how = f"{calculator.streamed_edges} execution, profile {calculator.execution_profile}"
    return f"its Symmetrix in {dtype}, {how}, stress {stress}"


if __name__ == "__main__":
    serve(prepare)
