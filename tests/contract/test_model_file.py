"""What a model file promises: the same model back, the same bytes again, no code inside, and clear refusals."""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mace
from mace.errors import UserError
from mace.model import model_file
from mace.model.mace import MACE
from mace.model.model_file import METADATA_KEY, ModelMetadata, load_model, save_model
from mace.model.plan import InteractionPlan, ModelPlan


def _plan(**changes: Any) -> ModelPlan:
    numbers: dict[str, Any] = {
        "model": "MACE",
        "r_max": 4.1,
        "l_max": 2,
        "n_channels": 3,
        "hidden_l": (0, 1),
        "interactions": (InteractionPlan(residual=False, normalization="density"), InteractionPlan(residual=True)),
        "correlation": (2, 3),
        "radial_mlp": (5, 4),
        "avg_num_neighbors": 10.0 / 3.0,
        "atomic_numbers": (1, 8),
        "reference_energies": (-13.600000000000001, -2041.8396277138045),
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
    }
    return ModelPlan(**{**numbers, **changes})


def _model(dtype: torch.dtype = torch.float64, **changes: Any) -> MACE:
    return MACE(_plan(**changes), dtype).initialize(torch.Generator().manual_seed(3))


METADATA = ModelMetadata(
    name="water",
    created="2030-01-01T00:00:00+00:00",
    versions={"mace": "0.1.0", "torch": "2.0"},
    settings={"lr": 0.01, "E0s": {"1": -13.6}, "patience": None, "files": ["a.xyz", "b.xyz"]},
    seed=7,
    data_hash="0123abcd",
    epoch=12,
    stage="two",
    metrics={"valid": {"rmse_e_per_atom": 0.001, "rmse_f": 0.02}},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good model file."""
    return save_model(tmp_path / "water.model", _model(), METADATA)


def _rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Write the file again with a changed document and changed weights."""
    weights = load_file(path)
    with safe_open(path, framework="pt") as stream:
        document = json.loads(stream.metadata()[METADATA_KEY])
    change(document, weights)
    save_file(weights, path, {METADATA_KEY: json.dumps(document)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _model(dtype)
    loaded = load_model(save_model(tmp_path / "a.model", model, METADATA))
    assert loaded.metadata == METADATA
    assert loaded.model.plan == model.plan
    assert loaded.stored_dtype == loaded.model.dtype == dtype
    for kind in ("named_parameters", "named_buffers"):
        expected, found = dict(getattr(model, kind)()), dict(getattr(loaded.model, kind)())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_default_dtype_of_torch_has_no_influence(path: Path) -> None:
    expected = dict(load_model(path).model.named_buffers())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if before == torch.float32 else torch.float32)
    try:
        found = dict(load_model(path).model.named_buffers())
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_precision_on_request(path: Path) -> None:
    loaded = load_model(path, dtype=torch.float32)
    assert loaded.model.dtype == torch.float32 and loaded.stored_dtype == torch.float64
    assert loaded.model.reference_energies.dtype == torch.float64


def test_exact_constants_for_a_model_stored_in_single_precision(tmp_path: Path) -> None:
    path = save_model(tmp_path / "single.model", _model(torch.float32))
    exact = dict(_model(torch.float64).named_buffers())
    for name, tensor in load_model(path, dtype=torch.float64).model.named_buffers():
        assert torch.equal(tensor, exact[name]), name


def test_equal_models_give_equal_bytes(path: Path) -> None:
    first = path.read_bytes()
    for _ in range(5):
        assert save_model(path, _model(), METADATA).read_bytes() == first
    loaded = load_model(path)
    assert save_model(path, loaded.model, loaded.metadata).read_bytes() == first


def test_different_models_give_different_bytes(path: Path) -> None:
    first = path.read_bytes()
    assert save_model(path, _model(scale=1.5), METADATA).read_bytes() != first


def test_others_can_read_it(path: Path) -> None:
    """The documented layout: plain safetensors with one JSON document."""
    with safe_open(path, framework="np") as stream:
        document = json.loads(stream.metadata()["mace"])
        names = set(stream.keys())
    assert set(document) == {"version", "plan", "units", "metadata"}
    assert document["version"] == 1
    assert document["units"] == {
        "energy": "eV",
        "length": "Angstrom",
        "forces": "eV/Angstrom",
        "stress": "eV/Angstrom^3",
        "dipole": "e*Angstrom",
    }
    assert document["plan"]["reference_energies"] == [-13.600000000000001, -2041.8396277138045]
    assert names == {name for name, _ in _model().named_parameters()}


def test_metadata_has_versions_and_time_by_itself() -> None:
    metadata = ModelMetadata()
    assert metadata.versions["mace"] == mace.__version__
    assert torch.__version__.startswith(metadata.versions["torch"])  # older releases add the build to one of both
    assert metadata.versions["python"].startswith("3.")
    assert metadata.created.endswith("+00:00")


def test_numbers_json_lacks_become_null(path: Path) -> None:
    """A diverged error must not keep a model from being written, not even one that slipped past the checks."""
    metadata = METADATA.model_copy(update={"metrics": {"valid": {"rmse_f": math.nan, "rmse_e": 1.0}}})
    save_model(path, _model(), metadata)
    assert load_model(path).metadata.metrics == {"valid": {"rmse_f": None, "rmse_e": 1.0}}
    assert ModelMetadata(settings={"a": [math.inf]}).settings == {"a": [None]}


def test_loaded_model_is_independent_of_the_file(path: Path) -> None:
    loaded = load_model(path)
    before = {name: tensor.clone() for name, tensor in loaded.model.named_parameters()}
    path.write_bytes(bytes(len(path.read_bytes())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_written_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full half-way, the old file is whole and nothing is left behind."""
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="water.model: the model cannot be written .No space left on device"):
        save_model(path, _model(scale=2.0), METADATA)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_permissions_are_the_usual_ones(path: Path) -> None:
    ordinary = path.with_name("ordinary")
    ordinary.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_creates_folders(tmp_path: Path) -> None:
    assert save_model(tmp_path / "a" / "b" / "c.model", _model()).is_file()


def test_cannot_write_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model cannot be written"):
        save_model(tmp_path, _model())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_to_save_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    model = _model()
    with torch.no_grad():
        model.embedding[0, 0] = value
    with pytest.raises(UserError, match="'embedding' are NaN or infinite; the model is not saved"):
        save_model(tmp_path / "bad.model", model)
    assert not list(tmp_path.iterdir())


def _refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no such model file, seen from" in _refused(tmp_path / "none.model")


def test_folder(tmp_path: Path) -> None:
    assert "this is a directory" in _refused(tmp_path)


def test_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    assert "the model file is empty" in _refused(path)


class _Bomb:
    """Runs a command if anybody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


def test_a_header_of_any_length_can_be_read(tmp_path: Path) -> None:
    """The file begins with that length; one in 32 begins like a pickle."""
    starts = set()
    for length in range(0, 256, 8):
        path = save_model(tmp_path / "a.model", _model(), METADATA.model_copy(update={"comment": "x" * length}))
        starts.add(path.read_bytes()[:1])
        assert load_model(path).metadata.comment == "x" * length
    assert b"\x80" in starts


@pytest.mark.parametrize("write", [lambda bomb, path: torch.save(bomb, path), lambda b, p: p.write_bytes(b)])
def test_files_of_torch_save_are_named_and_not_run(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    path = tmp_path / "original.model"
    if "write_bytes" in write.__code__.co_names:
        write(pickle.dumps(_Bomb()), path)
    else:
        write(_Bomb(), path)
    assert "written by torch.save, as mace-torch does" in _refused(path)
    assert "mace_run_train" in _refused(path)


@pytest.mark.parametrize("text", [b"This is no model.\n" * 10, b"abc", struct.pack("<Q", 10**12) + b"{}"])
def test_something_else(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert "this is no complete model file" in _refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "this is no complete model file" in _refused(path)


def test_other_safetensors_file(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)
    assert "but no model written by mace_run_train" in _refused(path)


def test_document_that_is_no_json(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path, {METADATA_KEY: "{"})
    assert "not JSON" in _refused(path)


@pytest.mark.parametrize("document", ["[]", "{}", '{"version": "1"}', '{"version": true}'])
def test_document_without_version(path: Path, document: str) -> None:
    save_file({"x": torch.zeros(2)}, path, {METADATA_KEY: document})
    assert "has no version" in _refused(path)


def test_newer_version(path: Path) -> None:
    _rewrite(path, lambda document, weights: document.update(version=999))
    message = _refused(path)
    assert "format version 999" in message and "install a newer mace-train" in message


def test_version_that_never_was(path: Path) -> None:
    _rewrite(path, lambda document, weights: document.update(version=0))
    assert "format version 0 of model files never existed" in _refused(path)


def test_older_versions_are_upgraded_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_plan(
        document: dict[str, Any], weights: dict[str, torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        document["plan"] = document.pop("blueprint")
        return {**document, "version": 0}, weights

    def rename_embedding(
        document: dict[str, Any], weights: dict[str, torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        weights["embedding"] = weights.pop("emb")
        return {**document, "version": 1}, weights

    def make_old(document: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        document.update(version=-1, blueprint=document.pop("plan"))
        weights["emb"] = weights.pop("embedding")

    _rewrite(path, make_old)
    monkeypatch.setattr(model_file, "UPGRADES", {-1: rename_plan, 0: rename_embedding})
    loaded = load_model(path)
    assert torch.equal(loaded.model.embedding, _model().embedding)
    assert loaded.model.plan == _plan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, w: d["plan"].update(r_max=-1.0), "in the model file 'plan.r_max' is not valid"),
        (lambda d, w: d["plan"].update(color="red"), "in the model file 'plan.color' is not valid"),
        (lambda d, w: d.pop("plan"), "in the model file 'plan' is not valid"),
        (lambda d, w: d["metadata"].update(seed="x"), "in the model file 'metadata.seed' is not valid"),
        (lambda d, w: w.pop("embedding"), "it lacks 'embedding'"),
        (lambda d, w: w.update(extra=torch.zeros(1).double()), "it has the unknown 'extra'"),
        (lambda d, w: w.update(embedding=torch.zeros(9, 3).double()), "'embedding' has the shape [9, 3]"),
        (lambda d, w: d["plan"].update(n_channels=4), "has the shape"),
        (lambda d, w: w.update(embedding=torch.zeros(2, 3)), "has float32, float64"),
        (lambda d, w: w.update({k: v.half() for k, v in w.items()}), "has float16"),
        (lambda d, w: w["embedding"].mul_(math.nan), "'embedding' are NaN or infinite; the file is damaged"),
    ],
)
def test_contradictions(path: Path, change: Callable[..., None], message: str) -> None:
    _rewrite(path, change)
    assert message in _refused(path)


def test_missing_weights_are_counted(path: Path) -> None:
    _rewrite(path, lambda document, weights: [weights.pop(name) for name in list(weights)[:10]] and None)
    assert "and 7 more" in _refused(path)


def test_metadata_refuses_misspelled_names() -> None:
    with pytest.raises(ValueError, match="data_hsah"):
        ModelMetadata(data_hsah="x")  # type: ignore[call-arg]
