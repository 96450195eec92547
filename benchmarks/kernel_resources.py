"""Compile all kernels in Triton of a model for graphics processors, without one, and print what each of them takes.

python benchmarks/kernel_resources.py --targets sm_90
python benchmarks/kernel_resources.py --targets sm_80 gfx942 --hidden-irreps 128x0e --dtype float64 --json table.json

Which kernels a model launches, with which constants and types, is seen by letting a training step and an evaluation
run on tensors without numbers. Spills are what a thread writes to memory and reads back where registers do not suffice.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

FAMILIES = ("conv", "contraction", "geometry", "silu", "products")
"""Beginnings of names of kernels, for `--kernels`."""


@dataclass(frozen=True)
class Resources:
    """What a kernel takes on a target.

    Attributes:
        kernel: Its name, with the number of the variant if there are several.
        dtype: Precision of the model.
        target: The target.
        warps: Warps of a program.
        registers: Registers of a thread.
        spill_stores: Bytes written where registers do not suffice; on devices of AMD, number of spilled registers.
        spill_loads: Bytes read back; on devices of AMD the same as the stores.
        shared: Bytes of shared memory of a program.
        instructions: Number of instructions.
        seconds: Time of compiling.
        failure: Why it did not compile, if it did not.
    """

    kernel: str
    dtype: str
    target: str
    warps: int = 0
    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    instructions: int = 0
    seconds: float = 0.0
    failure: str = ""


class _Driver:
    """Stands for the driver of a device that is not there; nothing is ever launched."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def gpu_target(name: str) -> Any:
    """Return Triton's description of a target such as ``sm_90`` or ``gfx942``."""
    from triton.backends.compiler import GPUTarget

    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def _target_here() -> str:
    """Return the target of the device of this machine, asked in another process, as this one will be divided."""
    code = "import torch; p = torch.cuda.get_device_properties(0); "
    code += "print(getattr(p, 'gcnArchName', '').split(':')[0] if torch.version.hip else f'sm_{p.major}{p.minor}')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def calls_of(options: argparse.Namespace, dtype: str) -> list[Any]:
    """Return the different kernels a model launches, as `watching.KernelCall`, by name and variant."""
    from crystals import make_molecules
    from predicted import make_batch, make_model, watch_evaluation, watch_step
    from watching import KernelCall

    elements = (1, 6, 8)
    own = argparse.Namespace(**vars(options) | {"dtype": dtype})
    batch = make_batch(make_molecules(10), elements, options.r_max)
    seen = watch_step(make_model(own, elements, 12.0), batch).calls
    tabulated = make_model(own, elements, 12.0)
    tabulated.use_radial_tables(256)
    seen += watch_evaluation(tabulated, batch.graph).calls
    found: dict[Any, Any] = {}
    for call in seen:
        if isinstance(call, KernelCall):
            found.setdefault((call.name, _variant(call)), call)
    return list(found.values())


def _variant(call: Any) -> tuple[Any, ...]:
    """Return what decides how a kernel is compiled."""
    kinds = []
    for parameter, value in zip(call.function.params, call.arguments, strict=False):
        if isinstance(value, torch.Tensor):
            kinds.append((value.dtype, value.data_ptr() % 16 == 0))
        elif parameter.is_constexpr or value is None:
            kinds.append(value)
        elif parameter.do_not_specialize:
            kinds.append(type(value))
        else:
            kinds.append((type(value), value == 1, value % 16 == 0))
    return (call.function, *kinds, *sorted((k, str(v)) for k, v in call.options.items()))


def named(calls: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield kernels with their names, which have a number where there are several variants."""
    count: dict[str, int] = {}
    for call in calls:
        name = call.name.lstrip("_")
        count[name] = number = count.get(name, 0) + 1
        yield (name if number == 1 else f"{name} ({number})"), call


def compile_for(name: str, call: Any, dtype: str, target: str) -> Resources:
    """Compile a kernel for a target; see `Resources`."""
    from triton.runtime import driver

    driver.set_active(_Driver(gpu_target(target)))
    call.function.device_caches.clear()
    start, told = time.perf_counter(), io.StringIO()
    read = _of_nvidia if target.startswith("sm_") else _of_amd
    try:
        with redirect_stdout(told):
            compiled = call.function.run(*call.arguments, grid=call.grid, warmup=True, **call.options)
        seconds = time.perf_counter() - start
        found = read(compiled, told.getvalue())
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one kernel, the others are still of interest
        text = str(error).strip().splitlines()
        return Resources(name, dtype, target, failure=f"{type(error).__name__}: {text[-1] if text else ''}"[:200])
    return Resources(name, dtype, target, call.options.get("num_warps", 4), **found, seconds=seconds)


def _of_nvidia(compiled: Any, told: str) -> dict[str, int]:
    """Read resources from a program for devices of NVIDIA, and from what its assembler told."""
    from triton.backends import nvidia

    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    registers = re.search(r"Used (\d+) registers", told)
    if spills is None or registers is None:
        raise RuntimeError("this Triton does not hand on what ptxas says")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        code = subprocess.run([str(tool), "-sass", str(file)], capture_output=True, text=True, check=True).stdout
    instructions = re.findall(_INSTRUCTION, code, re.MULTILINE)
    return {
        "registers": int(registers.group(1)),
        "spill_stores": int(spills.group(1)),
        "spill_loads": int(spills.group(2)),
        "shared": compiled.metadata.shared,
        "instructions": len(instructions) - instructions.count("NOP"),
    }


_INSTRUCTION = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)"


def _of_amd(compiled: Any, told: str) -> dict[str, int]:
    """Read resources from a program for devices of AMD; its own count of spilled registers is no number of loads."""
    code = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", code)
        return int(found.group(1)) if found else 0

    return {
        "registers": number("vgpr_count"),
        "spill_stores": number("vgpr_spill_count"),
        "spill_loads": number("vgpr_spill_count"),
        "shared": compiled.metadata.shared,
        "instructions": len(re.findall(r"^\s+(?:v|s|ds|global|buffer|flat|scratch)_\w+", code, re.MULTILINE)),
    }


def _compile_all(options: argparse.Namespace, dtype: str, target: str, share: int, shares: int) -> list[Resources]:
    """Compile every so-manieth kernel, in a process of its own."""
    calls = [(name, call) for name, call in named(calls_of(options, dtype))]
    if options.kernels:
        calls = [(name, call) for name, call in calls if name.startswith(tuple(options.kernels))]
    if options.one_of_each:
        calls = [next((name, call) for name, call in calls if name.startswith(kind)) for kind in options.kernels]
    found = []
    for name, call in calls[share::shares]:
        found.append(compile_for(name, call, dtype, target))
        print(f"{target} {dtype} {name}: {found[-1].seconds:.1f} s {found[-1].failure}", file=sys.stderr, flush=True)
    return found


def markdown(results: list[Resources]) -> list[str]:
    """Return a table in markdown for each target and precision."""
    lines = []
    for target, dtype in dict.fromkeys((one.target, one.dtype) for one in results):
        rows = sorted((one for one in results if (one.target, one.dtype) == (target, dtype)), key=lambda x: x.kernel)
        lines += ["", f"{target}, {dtype}", ""]
        lines += ["| kernel | warps | registers | spills | shared memory | instructions | compiled in |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for one in rows:
            if one.failure:
                lines.append(f"| `{one.kernel}` | {one.failure} | | | | | |")
                continue
            spills = f"{one.spill_stores} / {one.spill_loads}" if one.spill_stores or one.spill_loads else "0"
            lines.append(
                f"| `{one.kernel}` | {one.warps} | {one.registers} | {spills} | {one.shared} B | {one.instructions} | "
                f"{one.seconds:.1f} s |"
            )
    return lines


def make_parser() -> argparse.ArgumentParser:
    """Return the options of this command."""
    parser = argparse.ArgumentParser(
        description="Registers, spills, shared memory and compile times of all kernels in Triton of a model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--targets", nargs="+", default=["sm_80", "sm_90", "gfx942"], help="sm_<number>, gfx<name>, here"
    )
    parser.add_argument("--dtype", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    parser.add_argument("--hidden-irreps", "--hidden_irreps", default="128x0e+128x1o", help="features between layers")
    parser.add_argument("--l-max", type=int, default=3, help="highest degree of the harmonics")
    parser.add_argument("--correlation", type=int, default=3, help="factors of the symmetric contraction")
    parser.add_argument("--layers", type=int, default=2, help="number of interactions")
    parser.add_argument("--r-max", type=float, default=5.0, help="cutoff in Angstrom")
    parser.add_argument("--radial-mlp", type=int, nargs="+", default=[64, 64, 64], help="hidden radial layers")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only kernels whose names begin so")
    parser.add_argument("--one-of-each", action="store_true", help="only the first kernel of each of --kernels")
    parser.add_argument("--keep", action="store_true", help="keep what is compiled, for runs on a device to use")
    parser.add_argument("--jobs", type=int, default=1, help="compile in so many processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, write; return 1 if a kernel did not compile."""
    options, results = make_parser().parse_args(arguments), list[Resources]()
    console = Console(width=400, soft_wrap=True)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 keeps Triton from compiling; unset it.", file=sys.stderr)
        return 2
    targets = [_target_here() if target == "here" else target for target in options.targets]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
        if not options.keep:
            os.environ["TRITON_CACHE_DIR"] = folder  # nothing that was compiled before, so that times mean something
        with ProcessPoolExecutor(options.jobs) as pool:
            jobs = [
                pool.submit(_compile_all, options, dtype, target, share, options.jobs)
                for target in targets
                for dtype in options.dtype
                for share in range(options.jobs)
            ]
            for job in jobs:
                results += job.result()
                if options.json:
                    content = [asdict(one) for one in results]
                    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for line in markdown(results):
        console.print(line, markup=False, highlight=False)
    return int(any(one.failure for one in results))


if __name__ == "__main__":
    sys.exit(main())
