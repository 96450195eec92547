"""Do the commands that select structures and heads obey the flags of mace-torch, and write whole files or none?"""

from __future__ import annotations

import gzip
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from mace.cli import fine_tuning_select, select_head
from mace.evaluation import annotation
from mace.files import published
from mace.model.heads import with_one_head
from mace.model.model_file import load_model, save_model
from mace.potential.potential import open_potential
from mace.structures.reading import read_configurations

ROOT = Path(__file__).parents[2]
NAMES = ("H2O", "CH3OH", "CH4", "CO2", "H2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with structures and a model, in which commands are run."""
    rng, frames = np.random.default_rng(0), []
    for place in range(30):
        atoms = molecule(NAMES[place % 5])
        atoms.rattle(0.1, rng=rng)
        atoms.info |= {"REF_energy": -1.0 * place, "number": place}
        atoms.arrays["REF_forces"] = rng.normal(size=atoms.positions.shape)
        frames.append(atoms)
    frames[4].info["config_weight"] = 3.0
    write(tmp_path / "replay.xyz", frames)
    write(tmp_path / "tuning.xyz", [molecule("H2O"), molecule("H2")])
    save_model(tmp_path / "our.model", files.model())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def select(line: str) -> list[Atoms]:
    """Run the command and read what it wrote."""
    fine_tuning_select.run(["--configs_pt=replay.xyz", "--output=out.xyz", *line.split()])
    return read("out.xyz", ":")  # type: ignore[no-any-return]


def numbers(frames: list[Atoms]) -> list[int]:
    return [int(frame.info["number"]) for frame in frames]


def test_everything_is_kept_and_marked(folder: Path) -> None:
    frames = select("--head_pt=pbe_mp --subselect=random")
    assert numbers(frames) == list(range(30))
    for frame, before in zip(frames, read("replay.xyz", ":"), strict=True):
        assert frame.info["pretrained"] and frame.info["head"] == "pbe_mp"
        assert frame.info["config_weight"] == (3.0 if frame.info["number"] == 4 else 1.0), "that of the file stays"
        assert frame.info["REF_energy"] == before.info["REF_energy"]
        np.testing.assert_allclose(frame.arrays["REF_forces"], before.arrays["REF_forces"], atol=1e-8)
        np.testing.assert_allclose(frame.positions, before.positions, atol=1e-8)
    assert not Path("out_combined.xyz").exists() and "head" not in select("")[0].info
    assert {frame.info["config_weight"] for frame in select("--weight_pt=0.5")} == {0.5}


def test_those_of_the_fine_tuning_say_what_to_filter_by_and_stand_behind(folder: Path) -> None:
    line = "--configs_ft tuning.xyz --filtering_type=exclusive --num_samples=4 --subselect=random"
    chosen = select(f"{line} --weight_pt=2 --weight_ft=7 --head_ft=new")
    assert len(chosen) == 4 and all(number % 5 == 0 for number in numbers(chosen))
    combined = read("out_combined.xyz", ":")
    assert [frame.info["pretrained"] for frame in combined] == [True] * 4 + [False] * 2
    assert [frame.info["config_weight"] for frame in combined] == [2] * 4 + [7] * 2
    assert [frame.info.get("head") for frame in combined] == [None] * 4 + ["new"] * 2
    fine_tuning_select.run([*line.split(), "--configs_pt=replay.xyz", "--output=zip/a.xyz.gz"])
    assert {path.name for path in Path("zip").iterdir()} == {"a.xyz.gz", "a_combined.xyz.gz"}
    assert gzip.open("zip/a_combined.xyz.gz", "rt").read().count("pretrained=T") == 4


def test_a_command_line_of_mace_torch(folder: Path) -> None:
    """All its flags."""
    chosen = select(
        "--configs_ft tuning.xyz --num_samples 9 --subselect fps --model our.model --device cpu "
        "--default_dtype float32 --head_pt pt_head --head_ft Default --filtering_type combinations "
        "--weight_ft 1.0 --weight_pt 1.0 --seed 3 --filter_atomic_numbers_pt [1,8]"
    )
    assert len(chosen) == 9 and {number % 5 for number in numbers(chosen)} == {0, 4}
    few = select("--num_samples 10 --filtering_type exclusive --filter_atomic_numbers_pt [1,8] --subselect random")
    assert len(few) == 10 and set(range(0, 30, 5)) < set(numbers(few)), "others are added"


def test_settings_in_a_file(folder: Path) -> None:
    Path("settings.yaml").write_text(
        "configs_pt: [replay.xyz]\noutput: out.xyz\nnum_samples: 3\nsubselect: random\nallow_random_padding: false\n"
    )
    fine_tuning_select.run(["--config=settings.yaml"])
    assert len(read("out.xyz", ":")) == 3


def test_descriptors_are_kept_and_taken_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = numbers(select("--num_samples=7 --model=our.model --save_descriptors=all.npz"))
    monkeypatch.setattr("mace.potential.potential.open_potential", None)  # no model is opened
    assert numbers(select("--num_samples=7 --descriptors=all.npz")) == computed


def test_a_published_set_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    place = published.PublishedStructures("omat", published.REPLAY_SETS["omat"]).place
    place.parent.mkdir()
    Path("replay.xyz").rename(place)
    fine_tuning_select.run(["--configs_pt=omat", "--output=out.xyz", "--num_samples=4", "--subselect=random"])
    assert len(read("out.xyz", ":")) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--subselect=random --model=our.model", "--model has no effect on --subselect=random"),
        ("--model=our.model", "--model has no effect on all that pass the filter, without --num_samples"),
        ("--filter_atomic_numbers_pt=[1]", "--filter_atomic_numbers_pt has no effect with --filtering_type=none"),
        ("--head_ft=a --weight_ft=2", "--head_ft=a has no effect without --configs_ft"),
        ("--subselect=random --num_samples=5 --quiet --device=cpu", "--device has no effect"),
    ],
)
def test_what_changes_nothing_is_told(folder: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    select(line)
    assert said in capsys.readouterr().out


def test_what_was_done_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select("--num_samples=3 --subselect=random")
    told = capsys.readouterr().out
    assert "30 structures in replay.xyz" in told and "3 are taken at random, with seed 42" in told
    assert "Wrote out.xyz with 3 structures" in told
    select("--num_samples=3 --subselect=random --quiet")
    assert not capsys.readouterr().out


def test_an_interrupted_command_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in folder.iterdir()}

    def interrupted(*arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(annotation, "annotated_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select("--subselect=random")
    assert {path.name for path in folder.iterdir()} == before


@pytest.fixture
def heads(folder: Path) -> Path:
    """The same model of three heads as files of both programs."""
    model = files.model(files.with_heads("pt_head", "low", "high"))
    save_model(folder / "heads.model", model)
    names = ["pt_head", "low", "high"]
    files.write_original(folder / "old.model", files.tree_of(model, files.state_of(model), heads=names))
    return folder


@pytest.mark.parametrize("source", ["heads.model", "old.model"])
@pytest.mark.parametrize("head", ["pt_head", "low", "high"])
def test_a_head_predicts_the_same_alone(heads: Path, source: str, head: str) -> None:
    select_head.run([source, "-n", head])
    structures = read_configurations("replay.xyz").configurations
    opened = (open_potential(f"{source}.{head}"), open_potential(source, head=head))
    results = [potential.evaluate(structures)[0] for potential in opened]
    for name in ("energy", "forces"):
        np.testing.assert_allclose(getattr(results[0], name), getattr(results[1], name), rtol=0, atol=1e-12)
    loaded = load_model(Path(f"{source}.{head}"))
    assert loaded.heads == ("Default",) and f"the head {head} of {source}" in (loaded.metadata.comment or "")


def test_one_of_two_heads_is_meant_if_the_other_is_replayed(folder: Path) -> None:
    model = files.model(files.with_heads("pt_head", "Default"))
    save_model(folder / "two.model", model)
    select_head.run(["--target_device=cpu", "two.model"])
    taken, expected = load_model(folder / "two.model.Default.cpu").model, with_one_head(model, "Default")
    assert all((one == other).all() for one, other in zip(taken.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("source", ["heads.model", "old.model"])
def test_heads_are_listed_and_nothing_written(heads: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in heads.iterdir()}
    select_head.run(["-l", source])
    assert capsys.readouterr().out == "Available heads:\n  pt_head\n  low\n  high\n"
    assert {path.name for path in heads.iterdir()} == before


@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
@pytest.mark.parametrize("name", ["fine_tuning_select", "select_head"])
def test_programs_are_found_as_modules_and_as_files(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (
        lambda: runpy.run_module(f"mace.cli.{name}", run_name="__main__", alter_sys=True),
        lambda: runpy.run_path(str(ROOT / "mace" / "cli" / f"{name}.py"), run_name="__main__"),
    ):
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as ended:
            start()
        assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: mace_")
