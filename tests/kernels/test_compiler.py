"""Do kernels get compiled, whatever state machine, home and cache are in? Most tests start programs for that."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mace.kernels import compiler
from mace.kernels.c_source.parts import entry, prelude
from mace.kernels.compiler import CompilationError, NoCompilerError, ThreadPool, compile_and_load, thread_pool

ROOT = Path(__file__).parents[2]
GCC = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
SYSTEM_PATH = f"{Path(GCC).parent}:/usr/bin:/bin" if GCC else ""
SOURCE = "int answer(void) { return 42; }"
PROGRAM = f"""\
import logging, sys
logging.basicConfig(format="%(message)s")
if "no zig" in sys.argv:
    sys.modules["ziglang"] = None
from mace.kernels.compiler import compile_and_load
print(compile_and_load({SOURCE!r}).answer())
"""
needs_compiler = pytest.mark.skipif(GCC is None, reason="there is no C compiler on this machine")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 CPUs")


class Machine:
    """Programs with a home and a search path of their own; what the compiler ``logged`` is asked, is written down."""

    def __init__(self, folder: Path) -> None:
        self.home, self.bin, self.temporary = folder / "home", folder / "bin", folder / "tmp"
        for made in (self.home, self.bin, self.temporary):
            made.mkdir()
        self.log = folder / "log"
        self.environment = {
            "HOME": str(self.home),
            "PATH": str(self.bin),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "CC": "logged",
        }
        self.script("logged")

    def script(self, name: str, before: str = "") -> None:
        """Install a compiler that notes its arguments and sources, does something more, and calls the real one."""
        writing = f'echo "arguments $@" >> {self.log}\nfor a; do case $a in *.c) /bin/cat $a >> {self.log};; esac; done'
        file = self.bin / name
        file.write_text(f'#!/bin/sh\n{writing}\n{before}\nPATH={SYSTEM_PATH} exec {GCC} "$@"\n')
        file.chmod(0o755)

    def start(self, program: str = PROGRAM, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a program."""
        command, pipe = [sys.executable, "-c", program, *arguments], subprocess.PIPE
        return subprocess.Popen(command, env=self.environment | variables, stdout=pipe, stderr=pipe, encoding="utf-8")

    def run(self, program: str = PROGRAM, *arguments: str, **variables: str) -> tuple[str, str]:
        """Run a program; return its output and its messages."""
        output, messages = self.start(program, *arguments, **variables).communicate()
        return output.strip(), messages

    def asked(self) -> int:
        """Count how often the compiler was given the source."""
        return self.log.read_text().count(SOURCE) if self.log.exists() else 0

    def kept(self) -> list[Path]:
        """List what is kept at home."""
        return sorted((self.home / ".cache" / "mace" / "kernels").glob("kernel-*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@needs_compiler
def test_result_is_kept(machine: Machine) -> None:
    """A second process calls no compiler at all."""
    assert machine.run() == ("42", "")
    (library,) = machine.kept()
    assert library.suffix == ".so" and library.stat().st_mode & 0o777 == 0o700
    asked = machine.log.read_text()
    assert machine.run() == ("42", "")
    assert machine.log.read_text() == asked


@needs_compiler
def test_one_process_compiles_for_all(machine: Machine) -> None:
    machine.script("logged", before="/bin/sleep 0.3")
    programs = [machine.start() for _ in range(4)]
    assert [program.communicate() for program in programs] == [("42\n", "")] * 4
    assert machine.asked() == 1
    assert len(machine.kept()) == 1


@needs_compiler
@pytest.mark.parametrize("harm", ["truncated", "empty", "writable", "link"])
def test_harmed_library_is_made_again(machine: Machine, harm: str) -> None:
    machine.run()
    (library,) = machine.kept()
    content = library.read_bytes()
    if harm == "writable":
        library.chmod(0o777)
    elif harm == "link":
        library.rename(machine.temporary / "elsewhere.so")
        library.symlink_to(machine.temporary / "elsewhere.so")
    else:
        library.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
    output, messages = machine.run()
    assert output == "42"
    assert messages.count("\n") == 1 and str(library) in messages and "made again" in messages
    assert machine.asked() == 2
    assert machine.run() == ("42", "")


@needs_compiler
@pytest.mark.parametrize("harm", ["others can write", "home is no folder"])
def test_without_a_private_folder(machine: Machine, harm: str) -> None:
    """A folder that lasts as long as the process serves instead, and one line says so."""
    shared = machine.home / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    wrong = {"MACE_KERNEL_CACHE": str(shared)} if harm == "others can write" else {"HOME": os.devnull}
    output, messages = machine.run(**wrong)
    assert output == "42"
    assert messages.count("\n") == 1 and "MACE_KERNEL_CACHE" in messages
    assert not list(shared.iterdir())
    assert not list(machine.temporary.iterdir())


@needs_compiler
def test_named_folder(machine: Machine, tmp_path: Path) -> None:
    assert machine.run(MACE_KERNEL_CACHE=str(tmp_path / "a" / "b")) == ("42", "")
    assert list((tmp_path / "a" / "b").glob("kernel-*.so"))
    assert machine.run(XDG_CACHE_HOME=str(tmp_path / "c")) == ("42", "")
    assert list((tmp_path / "c" / "mace" / "kernels").glob("kernel-*.so"))


@needs_compiler
def test_compiler_with_arguments(machine: Machine) -> None:
    assert machine.run(CC="logged -Danswer=answer -DWITH='two words'") == ("42", "")
    assert "arguments -Danswer=answer -DWITH=two words -O2" in machine.log.read_text()


@needs_compiler
@pytest.mark.parametrize("named", ["broken", "absent", "un'finished"])
def test_next_compiler_is_taken(machine: Machine, named: str) -> None:
    machine.script("broken", before="echo licence expired >&2; exit 3")
    machine.script("gcc")
    output, messages = machine.run(CC=named)
    assert output == "42"
    assert messages.count("\n") == 1 and named in messages
    assert ("licence expired" in messages) == (named == "broken")


@needs_compiler
def test_no_working_compiler(machine: Machine) -> None:
    machine.script("broken", before="echo licence expired >&2; exit 3")
    output, messages = machine.run(PROGRAM, "no zig", CC="broken")
    assert output == "" and "NoCompilerError" in messages and "licence expired" in messages
    output, messages = machine.run(PROGRAM, "no zig", CC="")
    assert output == "" and "NoCompilerError: no C compiler was found" in messages


@needs_compiler
def test_compiler_that_makes_no_libraries(machine: Machine) -> None:
    """What cannot be loaded, as from a compiler for another machine, is no result."""
    machine.script("strange", before='for a; do last=$a; done; echo nothing > "$last"; exit 0')
    machine.script("gcc")
    output, messages = machine.run(CC="strange")
    assert output == "42" and "cannot be loaded" in messages


@needs_compiler
@needs_x86
@pytest.mark.parametrize(
    ("refused", "used", "messages"),
    [("-mprefer*", "-march=native", 0), ("-m*", "-ffp-contract=fast", 1)],
)
def test_old_compiler(machine: Machine, refused: str, used: str, messages: int) -> None:
    """Flags that a compiler does not know are left out."""
    machine.script("logged", before=f"for a; do case $a in {refused}) exit 1;; esac; done")
    output, told = machine.run()
    assert output == "42" and told.count("\n") == messages
    last = [line.split() for line in machine.log.read_text().splitlines() if line.startswith("arguments")][-1]
    assert used in last and not any(word.startswith(refused.strip("*")) for word in last)


@needs_compiler
@needs_x86
def test_target(machine: Machine) -> None:
    machine.run()
    assert machine.run(MACE_KERNEL_TARGET="x86-64") == ("42", "")
    assert "-march=x86-64 " in machine.log.read_text()
    assert len(machine.kept()) == 2
    output, messages = machine.run(PROGRAM, "no zig", MACE_KERNEL_TARGET="abacus")
    assert output == "" and "MACE_KERNEL_TARGET=abacus" in messages


EQUALITY = """\
import numpy as np, torch
from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.kernels.convolution import Convolution
from mace.kernels.c_source.parts import lanes
from mace.kernels.backend import TORCH
from mace.structures.configuration import Configuration

positions = np.random.default_rng(0).uniform(0, 2.5, (5, 3))
molecule = Configuration(np.ones(5, dtype=int), positions, np.zeros((3, 3)), (False,) * 3)
graph = InMemoryDataset([molecule], ElementTable((1,)), 2.5).batch([0]).graph
generator = torch.Generator().manual_seed(0)
worst = 0.0
for dtype in (torch.float32, torch.float64):
    convolution = Convolution((0, 1), 1).to(dtype)
    paths = convolution.paths
    n_pairs, n_slots, n = len(graph.pair_sender), len(graph.sender_of_slot), 2 * lanes(dtype)
    shapes = [(n_slots, 4), (n_pairs, len(paths), n), (5, 1, n), (5, 3, n)]
    leaves = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    harmonics = leaves[0] * (graph.pair_of_slot != n_pairs - 1).to(dtype).unsqueeze(1)
    radial = leaves[1] * (torch.arange(n_pairs) < n_pairs - 1).to(dtype).view(-1, 1, 1)
    features = dict(enumerate(leaves[2:]))
    blocks = radial.view(n_pairs, len(paths), 2, -1).transpose(1, 2)
    theirs = list(TORCH.convolve(convolution, features, radial, harmonics, graph).values())
    ours = list(C.convolve(convolution, features, blocks, harmonics, graph).values())
    for value in (theirs, ours):
        value += torch.autograd.grad(sum((v * v).sum() for v in value), leaves, retain_graph=True)
    scale = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip(ours, theirs):
        worst = max(worst, float(((a - b).abs().max() / b.abs().max() / scale).detach()))
print(" ".join(find_compiler()), worst)
"""


@needs_compiler
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"MACE_KERNEL_TARGET": "x86-64-v3"}, id="AVX2", marks=needs_x86),
        pytest.param({"MACE_KERNEL_TARGET": "x86-64"}, id="SSE2", marks=needs_x86),
        pytest.param({"CC": "logged -D__GNUC__=11"}, id="GCC before 12"),
    ],
)
def test_results_with_other_vectors(machine: Machine, variables: dict[str, str]) -> None:
    """Narrower registers, and the older builtin for permutations, change nothing."""
    output, messages = machine.run(EQUALITY, **variables)
    assert output, messages
    assert float(output.split()[-1]) < 1.0


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_results_with_ziglang(machine: Machine) -> None:
    """Without any other compiler that of the wheel serves."""
    known = str(compiler.cache_folder() / "zig")  # what it prepares for all sources takes it long
    output, messages = machine.run(EQUALITY, CC="", ZIG_GLOBAL_CACHE_DIR=known)
    assert " -m ziglang cc " in output and not messages, messages
    assert float(output.split()[-1]) < 1.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache for this process."""
    if GCC is None:
        pytest.skip("there is no C compiler on this machine")
    monkeypatch.setenv("MACE_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)  # after a failure it would be tried next, and begin slowly
    compiler._warn.cache_clear()
    yield tmp_path
    compile_and_load.cache_clear()


def test_wrong_source(folder: Path) -> None:
    with pytest.raises(CompilationError, match="error") as caught:
        compile_and_load("int answer(void) { return ")
    assert not isinstance(caught.value, NoCompilerError)
    assert not list(folder.glob("kernel-*"))


def test_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "fcntl", None)
    assert compile_and_load(SOURCE).answer() == 42


def test_waits_only_so_long(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A process that holds a lock and never ends does not stop all others."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(compiler, "LOCK_SECONDS", 0.2)
    (command, *_) = compiler._candidates()
    with (folder / f"kernel-{compiler._key(SOURCE, command)}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert compile_and_load(SOURCE).answer() == 42
    assert "no longer waits" in caplog.text


WHO = f"""\
#include <pthread.h>
{prelude(torch.float64)}
static void who_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {{
  for (int64_t b = begin; b < end; b++) {{ p[0][b] += 1 + thread; p[1][b] = (T)(uintptr_t)pthread_self(); }}
}}
{entry("who")}"""
"""A kernel that notes for every block which share it belongs to, and which thread worked on it."""


def who(pool: ThreadPool, threads: int) -> tuple[list[float], int]:
    """Run it on 8 blocks; return shares counted from one, and the number of different threads."""
    shares, workers = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    pointers = (ctypes.c_void_p * 2)(shares.data_ptr(), workers.data_ptr())
    addresses = map(ctypes.c_void_p, (pool.parallel, pool.thread_number, pool.team_size))
    compile_and_load(WHO).who(pointers, (ctypes.c_int64 * 1)(), ctypes.c_int64(8), ctypes.c_int64(threads), *addresses)
    return shares.tolist(), len(set(workers.tolist()))


needs_pool = pytest.mark.skipif(thread_pool().parallel == 0, reason="torch's OpenMP runtime has no GNU entry point")


@needs_pool
def test_threads_share_the_work(folder: Path) -> None:
    assert who(thread_pool(), 1) == ([1.0] * 8, 1)
    assert who(thread_pool(), 2) == ([1.0] * 4 + [2.0] * 4, 2)
    assert who(thread_pool(), 3) == ([1.0] * 2 + [2.0] * 3 + [3.0] * 3, 3)


@needs_pool
def test_fewer_threads_than_wanted(machine: Machine) -> None:
    """What the runtime refuses to start threads for is done all the same."""
    if GCC is None:
        pytest.skip("there is no C compiler on this machine")
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_compiler as t; "
    program += "print(t.who(t.thread_pool(), 3))"
    output, messages = machine.run(program, OMP_THREAD_LIMIT="1")
    assert output == "([1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0], 1)", messages


@needs_pool
def test_threads_are_those_of_torch() -> None:
    """No second OpenMP runtime, with threads of its own, is in the process."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list what a process has loaded")
    torch.randn(64, 64) @ torch.randn(64, 64)
    files = {}
    for line in maps.read_text().splitlines():
        addresses, *_, file = line.split(maxsplit=5) if line.count("/") else (line.split()[0], "")
        low, high = (int(end, 16) for end in addresses.split("-"))
        files[range(low, high)] = file
    (runtime,) = {file for addresses, file in files.items() if thread_pool().parallel in addresses}
    loaded = {file for file in files.values() if "gomp" in Path(file).name or "iomp" in Path(file).name}
    assert loaded == {runtime}


def test_without_a_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One thread does everything, and one line says so."""
    with monkeypatch.context() as patch:
        patch.setattr(compiler.ctypes, "CDLL", lambda name: object())
        thread_pool.cache_clear()
        with caplog.at_level(logging.WARNING):
            pool = thread_pool()
            thread_pool.cache_clear()
            thread_pool()
    thread_pool.cache_clear()
    assert pool == ThreadPool(0, 0, 0, 0)
    assert [record.message for record in caplog.records if "one thread" in record.message] == [caplog.messages[0]]
    assert who(pool, 2) == ([1.0] * 8, 1)
