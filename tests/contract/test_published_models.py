"""Are published models found under the names that scripts use, kept apart by their addresses, and fetched safely?"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import original_files as files
import pytest
import torch

import mace.calculators
from mace.calculators import mace_mp, mace_off
from mace.errors import UserError
from mace.files import published
from mace.files.published import (
    ADDRESSES,
    DIGESTS,
    REPLAY_SETS,
    TRAINING_NAMES,
    PublishedModel,
    PublishedStructures,
    foundation_file,
    locate,
    published_model,
    replay_file,
)
from mace.finetuning.replay_sets import replay_source
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.structures.reading import read_sources

SMALL = published_model("mace_mp", "small")
BYTES = files.original_bytes()
OTHER = files.archive(*files.pickled(files.tree_of(files.model(), r_max=1)))
OWN_DIGEST = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads, and no way out of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for word in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(word, raising=False)
    monkeypatch.setattr(published, "TIMEOUT", 2.0)
    monkeypatch.setattr(socket, "getaddrinfo", _only_here(socket.getaddrinfo))
    return tmp_path / "cache" / "mace"


def _only_here(look_up: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(-2, "Name or service not known")
        return look_up(host, *arguments, **more)

    return getaddrinfo


Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(content: bytes, length: int | None = None, status: int = 200) -> Answer:
    """Answer with some bytes, and announce their number or another."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def raw(text: bytes) -> Answer:
    """Answer with what need not be HTTP."""
    return lambda request: request.wfile.write(text) and None


def to(place: str) -> Answer:
    """Send elsewhere."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", place)
        request.end_headers()

    return answer


class Server(ThreadingHTTPServer):
    """Answers as it is told, by path, and counts."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def at(self, path: str, answer: Answer) -> PublishedModel:
        """Answer so at a path, and return what is published there."""
        self.answers[path] = answer
        return PublishedModel("mace_mp", f"http://127.0.0.1:{self.server_port}{path}")


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answers[self.path](self)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def _serve_instead(server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Answer all addresses from the server."""
    server.at("/model", whole(content))
    real, here = published.open_address, f"http://127.0.0.1:{server.server_port}/model"

    def open_here(address: str) -> Any:
        server.asked.append(address)
        return real(here)

    monkeypatch.setattr(published, "open_address", open_here)


def test_every_loader_has_a_default() -> None:
    for loader, addresses in ADDRESSES.items():
        assert published_model(loader, None).address in addresses.values()
        assert all(address.startswith("https://") and address.endswith(".model") for address in addresses.values())
    assert set(ADDRESSES["mace_mp"]) <= set(TRAINING_NAMES) and "small_off" in TRAINING_NAMES


def test_published_files_have_digests() -> None:
    known = [address for addresses in ADDRESSES.values() for address in addresses.values()]
    assert set(DIGESTS) == {address for address in known if not re.search("ani500k|mh-1", address)}
    assert len(set(DIGESTS.values())) == len(DIGESTS)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in DIGESTS.values())


def test_offline_it_is_said_what_to_put_where() -> None:
    with pytest.raises(UserError) as caught:
        mace_mp("small")
    said = str(caught.value)
    assert "Name or service not known" in said and SMALL.address in said and str(SMALL.place) in said


@pytest.mark.parametrize("place", [SMALL.place.name, *(place.name for place in SMALL.places_of_mace_torch)])
def test_a_file_in_the_cache_is_taken(cache: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIGESTS, SMALL.address, OWN_DIGEST)
    cache.mkdir(parents=True)
    (cache / place).write_bytes(BYTES)
    calculator = mace_mp("small", device="cpu")
    assert calculator.r_max == 4.0
    assert calculator.models[0].dtype == torch.float32, "the default of mace_mp"
    assert mace_mp("small", device="cpu", default_dtype="float64").models[0].dtype == torch.float64
    assert isinstance(mace_mp("small", device="cpu", return_raw_model=True), MACE)


@pytest.mark.parametrize("name", ["small", "small-0b2", "mh-1"])
def test_a_file_of_the_same_last_part_is_no_published_model(
    name: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions and mace-torch keep any file under the last part of its address, this name too."""
    cache.mkdir(parents=True)
    for place in published_model("mace_mp", name).places_of_mace_torch:
        place.write_bytes(OTHER)
    with pytest.raises(UserError, match="cannot be downloaded .*Name or service not known"):
        mace_mp(name)
    assert "is left alone: it is not known to be the file at" in caplog.text


def test_another_file_at_the_place_of_a_published_model_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    SMALL.place.write_bytes(OTHER)
    with pytest.raises(UserError, match="this is not the file that was published at .*delete it"):
        mace_mp("small")


def test_a_model_is_downloaded_once(
    cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = ADDRESSES["mace_off"]["small"]
    monkeypatch.setitem(DIGESTS, address, OWN_DIGEST)
    _serve_instead(server, monkeypatch, BYTES)
    with caplog.at_level(logging.INFO, logger="mace"):
        mace_off("small", device="cpu")
        mace_off("small", device="cpu")
    assert server.asked == [address, "/model"]
    assert [path.name for path in cache.iterdir()] == [published_model("mace_off", "small").place.name]
    assert "Academic Software License" in caplog.text and f"SHA-256 {OWN_DIGEST}, as expected" in caplog.text


@pytest.mark.parametrize(("loader", "name"), [("mace_mp", "medium"), ("mace_off", "large"), ("mace_omol", None)])
def test_another_file_than_the_published_one_is_not_kept(
    loader: str, name: str | None, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve_instead(server, monkeypatch, BYTES)
    with pytest.raises(UserError, match=rf"{loader}: the file at https:.* has SHA-256 {OWN_DIGEST}, not .* not kept"):
        locate(published_model(loader, name))
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("/first/model.model", "/second/model.model"),
        ("/model.model?version=1", "/model.model?version=2"),
        ("/a-b/x.model", "/ab/x.model"),
        ("/first/2023-12-10-mace-128-L0_energy_epoch-249.model", "/20231210mace128L0_energy_epoch249model"),
    ],
)
def test_two_addresses_are_two_models(one: str, two: str, server: Server) -> None:
    first, second = locate(server.at(one, whole(BYTES))), locate(server.at(two, whole(OTHER)))
    assert (first.read_bytes(), second.read_bytes()) == (BYTES, OTHER)
    assert locate(server.at(one, whole(OTHER))).read_bytes() == BYTES and server.asked == [one, two]
    assert first.name.endswith(one.rpartition("/")[2].partition("?")[0])
    assert SMALL.place not in (first, second) and not any(p.exists() for p in SMALL.places_of_mace_torch)


FAILURES: dict[str, tuple[Answer, str]] = {
    "a page": (whole(b"<html>Not found</html>"), "what arrived is no model"),
    "nothing": (whole(b""), "what arrived is no model"),
    "a part": (whole(BYTES[:1000], 5000), "only 1000 of 5000 bytes"),
    "all but one byte": (whole(BYTES[:-1], len(BYTES)), f"only {len(BYTES) - 1} of {len(BYTES)} bytes"),
    "a part, not announced": (raw(b"HTTP/1.0 200 OK\r\n\r\n" + BYTES[:-200]), "no complete model"),
    "not found": (whole(b"gone", status=404), "Not Found"),
    "forbidden": (whole(b"no", status=403), "Forbidden"),
    "server error": (whole(b"oops", status=500), "Internal Server Error"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "SSH-2.0"),
    "nothing at all": (lambda request: None, "closed connection|Remote end"),
    "chunks that end early": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFF\r\n" + BYTES[:1000]), "IncompleteRead"
    ),
    "a length that is none": (raw(b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\n" + BYTES), "many"),
    "a circle": (to("/circle"), "redirect"),
    "elsewhere on disk": (to("file:///etc/passwd"), "not allowed"),
    "an address that is none": (to("http://[::1"), "Invalid IPv6"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_is_a_sentence_and_leaves_nothing(name: str, server: Server, cache: Path) -> None:
    answer, reason = FAILURES[name]
    server.answers["/circle"] = to("/circle")
    with pytest.raises(UserError, match=reason) as caught:
        locate(server.at("/some.model", answer))
    said = str(caught.value)
    assert "cannot be downloaded" in said and "put the file at" in said and "\n" not in said and said.endswith(".")
    assert not list(cache.iterdir())


def test_nobody_listens_and_nobody_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "TIMEOUT", 0.2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="refused"):
            locate(PublishedModel("mace_mp", f"http://127.0.0.1:{taken.getsockname()[1]}/a.model"))
        taken.listen()
        with pytest.raises(UserError, match="timed out"):
            locate(PublishedModel("mace_mp", f"http://127.0.0.1:{taken.getsockname()[1]}/a.model"))


def test_redirects_are_followed_but_not_to_less_security(server: Server) -> None:
    server.at("/there.model", whole(BYTES))
    assert locate(server.at("/here.model", to("/there.model"))).read_bytes() == BYTES
    handler = published._SecureRedirects()
    secure = urllib.request.Request("https://example.org/a.model")
    for target in ("http://example.org/a.model", "ftp://example.org/a.model"):
        with pytest.raises(urllib.error.URLError, match="redirected from https to"):
            handler.redirect_request(secure, None, 302, "Found", {}, target)
    assert handler.redirect_request(secure, None, 302, "Found", {}, "https://example.com/a").host == "example.com"
    used = urllib.request.build_opener(published._SecureRedirects)
    assert any(isinstance(handler, published._SecureRedirects) for handler in used.handlers)


def test_an_endless_body_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(published, "MAX_FILE", 100_000)
    with pytest.raises(UserError, match="does not end after"):
        locate(server.at("/a.model", raw(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(2_000_000))))
    assert not list(cache.iterdir())


def test_an_address_and_a_file(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve_instead(server, monkeypatch, BYTES)
    mace_mp("https://example.org/my.model?raw=true", device="cpu")
    assert server.asked[0] == "https://example.org/my.model?raw=true"
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


WATER = b"""3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-14 stress="1 0 0 0 1 0 0 0 1" pbc="T T T" Lattice="9 0 0 0 9 0 0 0 9"
O 0 0 0 0 0 0.5
H 0 0.76 0.59 0 0 0
H 0 -0.76 0.59 0 0 -0.5
"""


@pytest.mark.parametrize("name", REPLAY_SETS)
def test_every_replay_set_is_its_own_file(
    name: str, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _serve_instead(server, monkeypatch, WATER * 3)
    shown: list[tuple[str, int | None]] = []

    def show(blocks: Any, description: str, total: int | None) -> Any:
        shown.append((description, total))
        return blocks

    with caplog.at_level(logging.INFO, logger="mace"):
        source = replay_source(name, show)
        again = replay_source(name, show)
    assert server.asked == [REPLAY_SETS[name], "/model"], "once"
    assert shown == [(f"Downloading {name}", 1)]
    assert source == again and [str(path) for path in cache.iterdir()] == [source.paths]
    (first, *_) = read_sources([source]).configurations
    assert first.energy == -14.0 and first.forces is not None and first.stress is not None
    assert len({PublishedStructures("", address).place for address in REPLAY_SETS.values()}) == len(REPLAY_SETS) == 4


def test_offline_it_is_said_where_a_replay_set_goes(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        replay_file("omat")
    said = str(caught.value)
    place = PublishedStructures("omat", REPLAY_SETS["omat"]).place
    assert said.startswith("omat: the file of structures is not on this machine") and str(place) in said
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(WATER)
    assert replay_file("omat") == place
    with pytest.raises(UserError, match="no published structures named 'mpp'; choose mp, omat, matpes_pbe, matpes_r2"):
        replay_file("mpp")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Not found</html>", "no extended XYZ, at its structure 0"),
        (b"", "what arrived is empty"),
        (WATER + b"\n" + WATER[:-30], "ends within its structure 1"),
        (WATER + WATER[:-1], "ends within its structure 1"),
        (WATER + b"3\n", "ends within its structure 1"),
        (WATER + b"99999999999999\n", "ends within its structure 1"),
        (WATER + b"and more\n", "no extended XYZ, at its structure 1"),
    ],
)
def test_incomplete_structures_are_not_kept(
    content: bytes, reason: str, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve_instead(server, monkeypatch, content)
    with pytest.raises(UserError, match=f"mp: .* cannot be downloaded .*{reason}.*put the file at"):
        replay_file("mp")
    assert not list(cache.iterdir())
