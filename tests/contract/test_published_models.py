"""Are published models found under the names that scripts use, kept where mace-torch keeps them, and fetched safely?"""

from __future__ import annotations

import io
import logging
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import original_files as files
import pytest
import torch

import mace.calculators
from mace.calculators import mace_mp, mace_off
from mace.compat.published import ADDRESSES, TRAINING_NAMES, foundation_file, published_model
from mace.errors import UserError
from mace.model.mace import MACE
from mace.model.model_file import save_model

SMALL = "20231210mace128L0_energy_epoch249model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path / "cache" / "mace"


def offline(address: str, timeout: float) -> Any:
    raise urllib.error.URLError("no route to host")


class Response(io.BytesIO):
    """What a server answers."""

    def __init__(self, content: bytes, length: int | None) -> None:
        super().__init__(content)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


def serving(content: bytes, asked: list[str], length: int | None = None) -> Any:
    def urlopen(address: str, timeout: float) -> Response:
        assert timeout > 0
        asked.append(address)
        return Response(content, len(content) if length is None else length)

    return urlopen


def test_every_loader_has_a_default() -> None:
    for loader, addresses in ADDRESSES.items():
        assert published_model(loader, None).address in addresses.values()
        assert all(address.startswith("https://") and address.endswith(".model") for address in addresses.values())
    assert set(ADDRESSES["mace_mp"]) <= set(TRAINING_NAMES) and "small_off" in TRAINING_NAMES


def test_offline_it_is_said_what_to_put_where(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        mace_mp("small")
    said = str(caught.value)
    assert "no route to host" in said and ADDRESSES["mace_mp"]["small"] in said and str(cache / SMALL) in said


@pytest.mark.parametrize("name", [SMALL, "2023-12-10-mace-128-L0_energy_epoch-249.model"])
def test_a_file_in_the_cache_is_taken(cache: Path, name: str) -> None:
    cache.mkdir(parents=True)
    files.write_original(cache / name, files.tree_of(files.model()))
    calculator = mace_mp("small", device="cpu")
    assert calculator.r_max == 4.0
    assert calculator.models[0].dtype == torch.float32, "the default of mace_mp"
    assert mace_mp("small", device="cpu", default_dtype="float64").models[0].dtype == torch.float64
    assert isinstance(mace_mp("small", device="cpu", return_raw_model=True), MACE)


def test_a_model_is_downloaded_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(urllib.request, "urlopen", serving(files.original_bytes(), asked))
    with caplog.at_level(logging.INFO, logger="mace"):
        mace_off("small", device="cpu")
        mace_off("small", device="cpu")
    assert asked == [ADDRESSES["mace_off"]["small"]]
    assert [path.name for path in cache.iterdir()] == ["MACE-OFF23_small.model"]
    assert "Academic Software License" in caplog.text and "SHA-256" in caplog.text


@pytest.mark.parametrize(
    ("content", "length", "reason"),
    [
        (b"<html>Not found</html>", None, "what arrived is no model"),
        (files.original_bytes()[:1000], 5000, "only 1000 of 5000 bytes"),
    ],
    ids=["a page", "a part"],
)
def test_what_is_no_model_is_not_kept(
    content: bytes, length: int | None, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", serving(content, [], length))
    with pytest.raises(UserError, match=reason):
        mace_mp("medium")
    assert not list(cache.iterdir())


def test_an_address_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(urllib.request, "urlopen", serving(files.original_bytes(), asked))
    mace_mp("https://example.org/my.model?raw=true", device="cpu")
    assert asked == ["https://example.org/my.model?raw=true"]
    own = save_model(tmp_path / "own.model", files.model())
    old = files.write_original(tmp_path / "old.model", files.tree_of(files.model()))
    for path in (own, old, str(old)):
        assert mace_off(path, device="cpu").models[0].plan.atomic_numbers == (1, 6, 8)
        assert foundation_file(str(path)) == Path(path)


@pytest.mark.parametrize("loader", ["mace_mp", "mace_off", "mace_omol"])
def test_misspelt_names_are_answered_with_the_known_ones(loader: str) -> None:
    with pytest.raises(UserError, match=f"{loader}: there is no published model 'smal' .* choose"):
        getattr(mace.calculators, loader)("smal")


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="mace_polar: models with long-range"):
        mace.calculators.mace_polar("polar-1-s")
    with pytest.raises(UserError, match="no such file and no published model"):
        foundation_file("smal")
    with pytest.raises(UserError, match="long-range electrostatics"):
        foundation_file("polar-1-s")
