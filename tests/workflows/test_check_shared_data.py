"""Are reports on published data right, and free of false alarms? Skipped where the data are not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.structures.reading import read_configurations

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
EXAMPLES = ROOT / "examples"
ACAC_E0s = {1: -13.568422178253735, 6: -1026.8538996116154, 8: -2037.796869412825}

needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}")


def inspect(training: Sequence[Path], test: Sequence[Path] = (), **demands: object) -> DataReport:
    sets = [StructureSet("training", read_configurations([str(path) for path in training], skip_non_finite=True))]
    sets += [StructureSet("test", read_configurations(str(path), skip_non_finite=True)) for path in test]
    return inspect_sets(sets, Demands(**{"r_max": 5.0, **demands}))  # type: ignore[arg-type]


def frames(report: DataReport) -> dict[str, int]:
    return {Path(file.file).stem: file.whole.frames for file in report.files}


def alarms(report: DataReport) -> list[str]:
    return [finding.sentence for finding in report.findings if finding.level != "note"]


@needs_shared_data
def test_acetylacetone() -> None:
    folder = SHARED / "acac"
    tests = [folder / f"test_{name}.xyz" for name in ("MD_300K", "MD_600K", "dihedral", "H_transfer")]
    report = inspect([folder / "isolated_atoms.xyz", folder / "train_300K.xyz"], tests)
    assert frames(report) == {
        "isolated_atoms": 0,
        "train_300K": 500,
        "test_MD_300K": 650,
        "test_MD_600K": 650,
        "test_dihedral": 45,
        "test_H_transfer": 15,
    }
    assert report.files[0].labels.isolated_atoms == 3
    assert {file.whole.elements for file in report.files[1:]} == {("H", "C", "O")}
    assert {(file.whole.smallest, file.whole.largest) for file in report.files[1:]} == {(15, 15)}
    forces = {Path(file.file).stem: file.whole.labeled["forces"] for file in report.files}
    assert (forces["test_dihedral"], forces["test_H_transfer"], forces["test_MD_300K"]) == (0, 0, 650)
    assert report.files[1].labels.of("energy").places == {"calculator": 500}
    assert report.reference_energies == pytest.approx(ACAC_E0s)
    assert not report.findings


@needs_shared_data
@pytest.mark.parametrize(("symbol", "train", "test"), [("Mo", 194, 23), ("Li", 241, 29)])
def test_zuo(symbol: str, train: int, test: int) -> None:
    folder = SHARED / "zuo2020"
    report = inspect([folder / f"{symbol}_train.extxyz"], [folder / f"{symbol}_test.extxyz"], E0s="average")
    assert frames(report) == {f"{symbol}_train": train, f"{symbol}_test": test}
    for file in report.files:
        assert file.whole.elements == (symbol,)
        assert file.whole.periodic == file.whole.frames == file.whole.labeled["stress"] == file.whole.labeled["forces"]
        assert file.labels.of("stress").key == "REF_stress"
        assert file.whole.smallest >= 2 and file.whole.largest <= 84
    assert {finding.name for finding in report.findings} == {"thin-cells"}


@needs_shared_data
def test_uio66() -> None:
    report = inspect([SHARED / "uio66" / "UiO66_janus.extxyz"], labels=("energy", "forces", "stress"))
    (file,) = report.files
    assert [(group.config_type, group.frames) for group in file.groups] == [("bulk", 18), ("IsolatedAtom", 4)]
    assert (file.whole.smallest, file.whole.largest, file.whole.labeled["stress"]) == (114, 114, 18)
    assert file.groups[-1].labeled["stress"] == 0
    assert not report.findings


@pytest.mark.parametrize("name", ["methanol", "silicon"])
def test_examples(name: str) -> None:
    report = inspect([EXAMPLES / name / f"{name}_train.xyz"], [EXAMPLES / name / f"{name}_test.xyz"])
    assert alarms(report) == []
