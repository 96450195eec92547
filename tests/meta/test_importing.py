"""Is importing the package light and without consequences?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

STATE = """
import os, sys, warnings, logging, random
import numpy, torch

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "random": torch.random.get_rng_state().tolist(),
        "python random": random.getstate(),
        "numpy random": str(numpy.random.get_state()),
        "environment": dict(os.environ),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "import system": (list(sys.meta_path), list(sys.path_hooks), list(sys.path)),
        "torch printing": vars(torch._tensor_str.PRINT_OPTS),
    }
"""

IMPORT_ALL = """
import importlib, pkgutil
import mace

def modules():
    found = [info.name for info in pkgutil.walk_packages(mace.__path__, "mace.")]
    return [name for name in found if name != "mace.modules"]  # importing it is an error, which is tested elsewhere
"""


def run(script: str) -> str:
    """Run a script in a fresh interpreter and return what it printed."""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, mace; print([m for m in ('torch', 'ase', 'numpy', 'matplotlib', 'vesin') if m in sys.modules])"
    )
    assert run(script).strip() == "[]"


def test_importing_settings_is_light() -> None:
    script = (
        "import sys, mace.settings; print([m for m in ('torch', 'ase', 'matplotlib', 'vesin') if m in sys.modules])"
    )
    assert run(script).strip() == "[]"


def test_every_module_can_be_imported_and_changes_nothing() -> None:
    script = f"""{STATE}
# libraries are imported first, what they change is theirs
import ase.io, matplotlib, rich.progress, pydantic, vesin, safetensors
before = state()
{IMPORT_ALL}
names = modules()
for name in names:
    importlib.import_module(name)
after = state()
print(len(names), [key for key in before if before[key] != after[key]])
"""
    count, changed = run(script).split(maxsplit=1)
    assert int(count) > 30
    assert changed.strip() == "[]"
