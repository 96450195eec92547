"""What users of the original lost weeks to, in data and losses, each made again and shown not to happen here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from training_runs import copper, isolated_atoms, labeled, rattled, train, water, write_water

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.model_file import load_model
from mace.model.prediction import predict
from mace.structures.configuration import Configuration
from mace.structures.labels import LabelKeys
from mace.structures.reading import read_configurations
from mace.structures.reference_energies import resolve_reference_energies
from mace.training.evaluation import evaluate
from mace.training.loss import make_loss

WEIGHTS = {"energy": 2.0, "forces": 10.0, "stress": 5.0, "virials": 3.0}
LOSSES = ("weighted", "ef", "forces_only", "stress", "virials", "huber", "universal", "l1l2energyforces")
PLAIN = ("--energy_key=energy", "--forces_key=forces", "--stress_key=stress")


def with_plain_keys(frames: list[Atoms]) -> list[Atoms]:
    """Move labels to where ASE itself keeps them, under the names energy, forces and stress."""
    moved = []
    for atoms in frames:
        atoms = atoms.copy()
        results = {"energy": atoms.info.pop("REF_energy", None), "forces": atoms.arrays.pop("REF_forces", None)}
        results |= {"stress": atoms.info.pop("REF_stress", None)}
        if results["stress"] is not None:
            results["stress"] = results["stress"].reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if v is not None})
        moved.append(atoms)
    return moved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MACE:
    """A tiny model that knows H, O and Cu, trained for one epoch, in float64."""
    folder = tmp_path_factory.mktemp("model")
    write(folder / "all.xyz", isolated_atoms("HOC") + isolated_atoms(["Cu"]) + water(4) + copper(4), format="extxyz")  # type: ignore[arg-type]
    train(folder, folder / "all.xyz", "--max_num_epochs=1")
    return load_model(folder / "tiny.model").model


@pytest.fixture(scope="module")
def mixed() -> list[Configuration]:
    """Molecules without stress beside crystals with it, some with weights, one with nothing but forces."""
    return _read(water(5) + copper(4, seed=3, config_stress_weight=0.5) + _without_energy(water(2, seed=7)))


def _without_energy(frames: list[Atoms]) -> list[Atoms]:
    for atoms in frames:
        del atoms.info["REF_energy"]
    return frames


def _read(frames: list[Atoms], keys: LabelKeys | None = None) -> list[Configuration]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/data.xyz", frames, format="extxyz")
        return read_configurations(f"{folder}/data.xyz", keys).configurations


def dataset(configurations: list[Configuration], model: MACE) -> InMemoryDataset:
    return InMemoryDataset(configurations, ElementTable(model.plan.atomic_numbers), model.plan.r_max)


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_a_frame_without_a_label_under_a_plain_key_is_masked_and_not_zero_at_full_weight(
    label: str, model: MACE, tmp_path: Path
) -> None:
    """With --energy_key energy the original trains unlabeled frames on zero, with their full weight."""
    frames = with_plain_keys(copper(6))
    for atoms in frames[::2]:
        del atoms.calc.results[label]
    configurations = _read(frames, LabelKeys(energy="energy", forces="forces", stress="stress"))
    assert [getattr(c, label) is None for c in configurations] == [True, False] * 3
    loss = make_loss("stress", {name: float(name == label) for name in WEIGHTS})
    masked = evaluate(model, dataset(configurations, model), loss, 10).loss
    only_labeled = evaluate(model, dataset(configurations[1::2], model), loss, 10).loss
    zero = {"energy": 0.0, "forces": np.zeros((4, 3)), "stress": np.zeros((3, 3))}
    filled = [c if i % 2 else replace(c, **{label: zero[label]}) for i, c in enumerate(configurations)]
    assert masked == pytest.approx(only_labeled, rel=1e-12)
    assert evaluate(model, dataset(filled, model), loss, 10).loss != pytest.approx(masked, rel=1e-3)


def test_a_run_says_how_many_frames_have_the_label(tmp_path: Path) -> None:
    """The same through the program: the count is in the log, and the run goes on with what is labeled."""
    frames = with_plain_keys(isolated_atoms() + water(12))
    for atoms in frames[2::2]:
        del atoms.calc.results["energy"]
    write(tmp_path / "train.xyz", frames, format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", *PLAIN[:2])
    assert run.said(r"energy 6 of 12 \(calculator 'energy'\), forces 12 of 12 \(calculator 'forces'\)")


def test_the_E0_of_an_isolated_atom_is_read_under_the_key_energy(tmp_path: Path) -> None:
    """With --energy_key energy the original reads 0.0 as the E0 of every isolated atom."""
    write(tmp_path / "train.xyz", with_plain_keys(isolated_atoms() + water(6)), format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", *PLAIN[:2], "--max_num_epochs=1")
    expected = [labeled(Atoms(symbol)).info["REF_energy"] for symbol in "HO"]
    assert all(abs(energy) > 1.0 for energy in expected)
    plan = load_model(run.folder / "tiny.model").model.plan
    assert plan.reference_energies == pytest.approx(expected, abs=1e-7)


def test_one_unlabeled_frame_does_not_make_the_average_E0_nan(tmp_path: Path) -> None:
    """With --E0s average one frame without an energy makes every E0 of the original NaN."""
    frames = water(8) + [labeled(Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]))]
    expected = resolve_reference_energies("average", [], _read(frames), ElementTable((1, 8))).energies
    bare = _without_energy(water(1, seed=9))
    found = resolve_reference_energies("average", [], _read(frames + bare), ElementTable((1, 8))).energies
    assert found == pytest.approx(expected, rel=1e-12)
    write(tmp_path / "train.xyz", frames + bare, format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", "--E0s=average", "--valid_fraction=0.3", "--max_num_epochs=1")
    assert all(np.isfinite(record["loss"]) for record in run.records)
    assert run.said("What these energies leave unexplained")


def test_undetermined_average_E0s_are_named(tmp_path: Path) -> None:
    """Water alone says nothing about hydrogen and oxygen apart; the original takes some solution silently."""
    write(tmp_path / "train.xyz", water(6), format="extxyz")
    assert train(tmp_path, tmp_path / "train.xyz", "--E0s=average", "--max_num_epochs=1").said(
        "do not determine the reference energies of H, O"
    )


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
def test_constraints_do_not_zero_forces(suffix: str, tmp_path: Path) -> None:
    """Frames with FixAtoms load zero forces in the original."""
    (atoms,) = with_plain_keys(copper(1))
    forces = atoms.calc.results["forces"].copy()
    atoms.set_constraint(FixAtoms([0, 2]))
    write(tmp_path / f"fixed.{suffix}", atoms)
    (configuration,) = read_configurations(str(tmp_path / f"fixed.{suffix}")).configurations
    np.testing.assert_allclose(configuration.forces, forces, atol=1e-7)
    assert np.abs(forces[[0, 2]]).min() > 1e-3


def test_the_stress_of_a_slab_is_per_volume_of_its_cell(model: MACE) -> None:
    """The original divides by a volume inflated along the open direction, 8 to 18 times too small a stress."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=5.0)
    slab.pbc, slab.info = (True, True, False), {}
    slab = labeled(rattled(slab, 0.05, np.random.default_rng(1)), stress=True)
    (configuration,) = _read([slab])
    np.testing.assert_allclose(configuration.stress, slab.info["REF_stress"].reshape(3, 3), atol=1e-7)

    def energy(strain: np.ndarray) -> float:
        deformed = replace(
            configuration,
            positions=configuration.positions @ (np.eye(3) + strain),
            cell=configuration.cell @ (np.eye(3) + strain),
        )
        return float(predict(model, dataset([deformed], model).batch([0]).graph, forces=False).energy)

    predicted = predict(model, dataset([configuration], model).batch([0]).graph, stress=True).stress
    assert predicted is not None
    step, volume = 1e-4, abs(np.linalg.det(configuration.cell))
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        derivative = (energy(strain) - energy(-strain)) / (2.0 * step) / volume
        assert float(predicted[0, i, j]) == pytest.approx(derivative, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("role", ["valid_file", "test_file", "test_dir"])
def test_an_element_that_is_not_in_training_is_known_before_training(role: str, tmp_path: Path) -> None:
    """The original crashes in the middle of the run, or at its end."""
    data = write_water(tmp_path / "train.xyz")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "copper.xyz", copper(2), format="extxyz")
    path = tmp_path / "other" if role == "test_dir" else tmp_path / "other" / "copper.xyz"
    with pytest.raises(UserError, match="copper.xyz: structure 0 contains Cu, which the training data does not"):
        train(tmp_path / "run", data, f"--{role}={path}")
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_eight_frames_and_a_batch_size_of_ten_train_on_all_eight(tmp_path: Path) -> None:
    """The original drops the last batch that is not full, so nothing is left of eight frames."""
    data = write_water(tmp_path / "train.xyz", count=8)
    valid = write_water(tmp_path / "valid.xyz", count=3, seed=1)
    runs = [
        train(tmp_path / size, data, f"--valid_file={valid}", f"--batch_size={size}", "--max_num_epochs=3")
        for size in ("10", "8", "3")
    ]
    steps = [[record["loss"] for record in run.records if record["mode"] == "opt"] for run in runs]
    assert [len(step) for step in steps] == [3, 3, 9]
    assert steps[0] == pytest.approx(steps[1], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["structure", "property", "atoms"])
def test_every_loss_obeys_every_weight(name: str, kind: str, model: MACE, mixed: list[Configuration]) -> None:
    """In the original huber ignores all weights, universal those of structures, l1l2energyforces those of forces."""
    loss = make_loss(name, WEIGHTS)
    names = [term.name for term in loss.terms]

    def weighed(c: Configuration, factor: float) -> Configuration:
        if kind == "structure":
            return replace(c, weight=factor)
        if kind == "property":
            return replace(c, property_weights=dict.fromkeys(names, factor))
        return replace(c, atom_weights={"forces": np.full(c.n_atoms, factor)})

    def value(factor: float) -> float:
        return evaluate(model, dataset([weighed(c, factor) for c in mixed], model), loss, 4).loss

    if kind == "atoms":
        others = make_loss(name, {**WEIGHTS, "forces": 0.0})
        rest = evaluate(model, dataset(mixed, model), others, 4).loss if others.terms else 0.0
        assert value(0.0) == pytest.approx(rest, rel=1e-12)
        assert value(1.0) > value(0.5) > rest
        return
    assert value(0.0) == 0.0
    assert value(1.0) > value(0.5) > 0.0
    if kind == "structure":
        assert value(2.0) == pytest.approx(2.0 * value(1.0), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_validation_loss_does_not_depend_on_the_validation_batch_size(
    name: str, model: MACE, mixed: list[Configuration]
) -> None:
    """The original prints its validation loss divided by valid_batch_size."""
    loss, data = make_loss(name, WEIGHTS), dataset(mixed, model)
    values = [evaluate(model, data, loss, size).loss for size in (1, 2, 3, 4, 10, 64)]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_training_and_validation_measure_the_same_number(name: str, model: MACE, mixed: list[Configuration]) -> None:
    loss, data = make_loss(name, WEIGHTS), dataset(mixed, model)
    batch = data.batch(range(len(data)))
    stepped = float(loss(predict(model, batch.graph, stress=True, training=True), batch.targets).detach())
    assert evaluate(model, data, loss, 3).loss == pytest.approx(stepped, rel=1e-12)


def test_the_program_prints_the_same_loss_for_every_validation_batch_size(tmp_path: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    valid = write_water(tmp_path / "valid.xyz", count=5, seed=1)
    runs = [
        train(tmp_path / size, data, f"--valid_file={valid}", f"--valid_batch_size={size}", "--max_num_epochs=1")
        for size in ("1", "2", "5", "50")
    ]
    initial = [next(r["loss"] for r in run.records if r["mode"] == "eval") for run in runs]
    assert initial == pytest.approx([initial[0]] * 4, rel=1e-10)


@pytest.mark.parametrize("way", ["absent", "weight zero"])
@pytest.mark.parametrize("loss", ["stress", "universal", "huber"])
def test_molecules_without_stress_beside_bulk_with_stress_train_together(way: str, loss: str, tmp_path: Path) -> None:
    """Both ways users write it: no stress at all, or a meaningless one with config_stress_weight = 0."""
    molecules = water(8, config_type="molecule")
    for atoms in molecules if way == "weight zero" else ():
        atoms.set_cell(np.diag([20.0, 20.0, 20.0]))
        atoms.pbc = True
        atoms.info |= {"REF_stress": np.full(9, 1000.0), "config_stress_weight": 0.0}
    frames = isolated_atoms() + isolated_atoms(["Cu"]) + molecules + copper(8, config_type="bulk")  # type: ignore[arg-type]
    write(tmp_path / "train.xyz", frames, format="extxyz")
    run = train(tmp_path, tmp_path / "train.xyz", f"--loss={loss}", "--max_num_epochs=6", "--lr=0.02", "--seed=3")
    losses = [record["loss"] for record in run.records if record["mode"] == "eval"]
    assert losses[-1] < losses[0] < 1000.0  # a stress of 1000 would have given a million
    expected = "stress 8 of 16" if way == "absent" else "stress 16 of 16"
    assert run.said(expected)
    by_type = [line for line in run.log.splitlines() if line.startswith("| train/molecule")]
    assert by_type and all(line.rstrip(" |").endswith("-") for line in by_type)
    assert all("-" not in line.split("|")[-2] for line in run.log.splitlines() if line.startswith("| train/bulk"))


def test_several_files_with_keys_and_units_of_their_own_are_one_set(tmp_path: Path) -> None:
    """The same structures in one file, and in three with other names, units and weights."""
    from ase.units import Bohr, Hartree

    frames = water(12)
    write(tmp_path / "one.xyz", isolated_atoms() + frames, format="extxyz")
    renamed, atomic = [a.copy() for a in frames[4:8]], [a.copy() for a in frames[8:]]
    for atoms in renamed:
        atoms.info["E_dft"], atoms.arrays["F_dft"] = atoms.info.pop("REF_energy"), atoms.arrays.pop("REF_forces")
    for atoms in atomic:
        atoms.positions /= Bohr
        atoms.info["REF_energy"] /= Hartree
        atoms.arrays["REF_forces"] *= Bohr / Hartree
    write(tmp_path / "a.xyz", isolated_atoms() + frames[:4], format="extxyz")
    write(tmp_path / "b.xyz", renamed, format="extxyz")
    write(tmp_path / "c.xyz", atomic, format="extxyz")
    valid = write_water(tmp_path / "valid.xyz", count=3, seed=1)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"train_file:\n  - {tmp_path}/a.xyz\n"
        f"  - {{file: '{tmp_path}/b.xyz', energy_key: E_dft, forces_key: F_dft}}\n"
        f"  - file: {tmp_path}/c.xyz\n    energy_unit: Ha\n    length_unit: bohr\n"
        f"valid_file: {{file: '{valid}', config_type_weights: {{Default: 2.0}}}}\n",
        encoding="utf-8",
    )
    flags = ("--max_num_epochs=2",)
    one = train(tmp_path / "one", tmp_path / "one.xyz", f"--valid_file={valid}", *flags)
    several = train(tmp_path / "several", None, f"--config={config}", *flags)
    assert len(one.records) == len(several.records)
    for ours, theirs in zip(one.records, several.records, strict=True):
        factor = 2.0 if ours["mode"] == "eval" else 1.0
        assert theirs["loss"] == pytest.approx(factor * ours["loss"], rel=1e-5)


def test_energies_alone_need_no_forces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original always differentiates; here neither training nor validation does where nothing asks for forces."""
    wanted: list[tuple[bool, bool]] = []
    original: Callable[..., object] = predict

    def spy(model: MACE, graph: object, forces: bool = True, stress: bool = False, **more: object) -> object:
        wanted.append((forces, stress))
        return original(model, graph, forces, stress, **more)

    monkeypatch.setattr("mace.training.step.predict", spy)
    monkeypatch.setattr("mace.training.evaluation.predict", spy)
    frames = isolated_atoms() + water(8)
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    write(tmp_path / "train.xyz", frames, format="extxyz")
    train(tmp_path, tmp_path / "train.xyz", "--forces_weight=0")
    assert set(wanted) == {(False, False)}


def test_weights_of_atoms_reach_the_model(tmp_path: Path) -> None:
    """Atoms of weight zero do not teach: whatever their forces are, the same model comes out."""
    results = []
    for size in (0.0, 50.0):
        frames = water(6)
        for atoms in frames:
            atoms.arrays["forces_weight"] = np.array([1.0, 0.0, 2.0])
            atoms.arrays["REF_forces"][1] += size
        write(tmp_path / f"{size}.xyz", isolated_atoms() + frames, format="extxyz")
        flags = ("--scaling=no_scaling", "--valid_fraction=0.3")
        results.append(train(tmp_path / str(size), tmp_path / f"{size}.xyz", *flags).weights())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
