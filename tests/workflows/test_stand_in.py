"""Two packages of one name: does the stand-in satisfy programs that require mace-torch, is the latter noticed?"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "0.3.16+mace.train"


def write_wheel(folder: Path, name: str, requires: str = "", files: dict[str, str] | None = None) -> Path:
    """Write a wheel of version 0.3.16 by hand."""
    info = f"{name.replace('-', '_')}-0.3.16.dist-info"
    content = {
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3.16\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    path = folder / f"{name.replace('-', '_')}-0.3.16-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


class Environment:
    """A virtual environment with a ``mace`` of its own that finds all other libraries of this one."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin, self.wheels = folder / "bin", wheels
        self.site = next(folder.glob("lib/python*/site-packages"))
        self.install("--no-deps", "mace-train")  # first, or pip would take that of this environment for it
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        (self.site / "libraries.pth").write_text("\n".join(libraries) + "\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.bin / words[0]), *words[1:]], capture_output=True, text=True, cwd=self.bin)

    def pip(self, *words: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.bin)
        assert done.returncode == 0 or words[0] == "check", done.stderr
        return done.stdout

    def install(self, *words: str) -> str:
        return self.pip("install", "--no-index", f"--find-links={self.wheels}", *words)

    def trouble(self) -> list[str]:
        """What ``pip check`` says of this package and of mace-torch."""
        return [line for line in self.pip("check").splitlines() if "mace" in line]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of this package, of the stand-in, of a program that requires mace-torch, and of something like it."""
    pytest.importorskip("setuptools", "77")
    folder, copy = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("checkout")
    for name in ("mace", "packaging"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={folder}",
    ]
    subprocess.run([*build, str(copy), str(copy / "packaging" / "mace-torch")], check=True)
    write_wheel(folder, "program", "Requires-Dist: mace-torch==0.3.16\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path, wheels: Path) -> Environment:
    return Environment(tmp_path / "venv", wheels)


@pytest.mark.slow
def test_the_stand_in_satisfies_programs(environment: Environment, tmp_path: Path) -> None:
    environment.install("--no-deps", "program")
    assert environment.trouble() == ["program 0.3.16 requires mace-torch, which is not installed."]
    environment.install("mace-torch")  # the requirement, mace-train, is there
    assert not environment.trouble()
    write_wheel(tmp_path, "mace-torch", files={"mace/__version__.py": ""})
    assert "already satisfied" in environment.install(f"--find-links={tmp_path}", "program", "mace-torch>=0.3.16")
    code = "from importlib.metadata import version; import mace.calculators.calculator; print(version('mace-torch'))"
    assert environment.run("python", "-c", code).stdout.strip() == STAND_IN
    assert not (environment.site / "mace" / "__version__.py").exists()
    done = environment.run("mace_run_train", "--help")
    assert done.returncode == 0 and "--train_file" in done.stdout
    assert "mace_run_train" not in environment.pip("show", "--files", "mace-torch")


@pytest.mark.slow
def test_mace_torch_is_noticed_while_it_is_there_and_after(environment: Environment, tmp_path: Path) -> None:
    """The way out that the message names leads out."""
    original = {f"mace/{name}.py": "# of mace-torch\n" for name in ("__init__", "__version__", "cli/__init__")}
    theirs = write_wheel(tmp_path, "mace-torch", files=original)
    assert environment.run("mace_info", "--help").returncode == 0
    environment.install("--no-deps", str(theirs))
    assert not environment.trouble(), "pip does not notice"
    for words in (["mace_info", "--help"], ["mace_md", "--help"], ["mace_completion", "bash"]):
        done = environment.run(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("mace-torch 0.3.16 is installed") and "pip uninstall mace-torch" in done.stderr
    imported = environment.run("python", "-c", "import mace.calculators.calculator")
    assert "UserError: mace-torch 0.3.16 is installed" in imported.stderr
    environment.pip("uninstall", "--yes", "mace-torch")
    done = environment.run("mace_info", "--help")
    assert done.returncode == 2 and done.stderr.startswith("Files of mace-train are missing")
    environment.install("--force-reinstall", "--no-deps", "mace-train")
    assert environment.run("mace_info", "--help").returncode == 0


@pytest.mark.slow
def test_the_stand_in_takes_the_place_of_mace_torch(environment: Environment, tmp_path: Path) -> None:
    original = {f"mace/{name}.py": "# of mace-torch\n" for name in ("__init__", "__version__", "cli/__init__")}
    environment.install("--no-deps", str(write_wheel(tmp_path, "mace-torch", files=original)))
    environment.install("--no-deps", "--upgrade", f"mace-torch=={STAND_IN}")
    environment.install("--force-reinstall", "--no-deps", "mace-train")
    assert environment.run("mace_info", "--help").returncode == 0 and not environment.trouble()
