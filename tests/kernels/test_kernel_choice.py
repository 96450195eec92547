"""Does a model get the kernels that were asked for, or those that are possible, and is it told which?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mace.errors import UserError
from mace.kernels import c_backend, compiler
from mace.kernels.compiler import compile_and_load, find_compiler
from mace.model import kernel_choice
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.prediction import predict

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


def forget() -> None:
    """Let everything be decided anew."""
    for remembered in (
        compile_and_load,
        compiler._warn,
        kernel_choice._warn,
        c_backend.library,
    ):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MACE_KERNELS", raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_candidates", list)


@pytest.fixture
def stored(load_case: Any) -> Any:
    return load_case("vector_l1_c3_t1")


@pytest.fixture
def model(stored: Any) -> MACE:
    return stored.model()


def compiled(model: MACE) -> bool:
    """Return whether a model is set to use compiled kernels."""
    return model.backend.name == "c"


@needs_compiler
@pytest.mark.parametrize(
    ("wanted", "variable", "expected"),
    [
        ("auto", None, "c"),
        ("auto", "", "c"),
        ("c", None, "c"),
        ("torch", None, "torch"),
        ("auto", "torch", "torch"),
        ("auto", "c", "c"),
        ("c", "torch", "c"),
        ("torch", "c", "torch"),
    ],
)
def test_who_decides(
    model: MACE, monkeypatch: pytest.MonkeyPatch, wanted: str, variable: str | None, expected: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("MACE_KERNELS", variable)
    assert choose_kernels(model, wanted) == expected
    assert compiled(model) == (expected == "c")


def test_unknown_words(model: MACE, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--kernels=fortran is not one of auto, torch, c"):
        choose_kernels(model, "fortran")
    monkeypatch.setenv("MACE_KERNELS", "fortran")
    with pytest.raises(UserError, match="MACE_KERNELS=fortran is not one of"):
        choose_kernels(model)


def test_without_a_compiler(stored: Any, no_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    """Torch runs; one line, however many models there are, names the way to the fast kernels."""
    models = [stored.model(), stored.model()]
    assert [choose_kernels(model) for model in models] == ["torch", "torch"]
    (message,) = caplog.messages
    assert "\n" not in message
    for part in ("in torch", "no C compiler", "gcc", "mace-train[compiler]"):
        assert part in message
    assert not compiled(models[0])
    assert predict(models[0], stored.dataset().batch([0]).graph).energy.isfinite().all()


@pytest.mark.parametrize("source", ["--kernels", "MACE_KERNELS"])
def test_compiled_ones_wanted_without_a_compiler(
    model: MACE, no_compiler: None, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "MACE_KERNELS":
        monkeypatch.setenv(source, "c")
    with pytest.raises(UserError, match=rf"{source}=c is not possible.*no C compiler.*mace-train\[compiler\]"):
        choose_kernels(model, "c" if source == "--kernels" else "auto")
    assert not compiled(model)


@needs_compiler
def test_too_many_terms(model: MACE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No other compiler would help, so none is recommended."""
    monkeypatch.setattr(c_backend, "LARGEST_NUMBER_OF_TERMS", 1)
    assert choose_kernels(model) == "torch"
    (message,) = caplog.messages
    assert "terms" in message and "gcc" not in message
    with pytest.raises(UserError, match="terms.*use --kernels=torch"):
        choose_kernels(model, "c")


@pytest.mark.parametrize("wanted", ["auto", "c"])
def test_other_devices(model: MACE, wanted: str) -> None:
    model = model.to("meta")
    if wanted == "auto":
        assert choose_kernels(model, wanted) == "torch"
    else:
        with pytest.raises(UserError, match="CPU only, not on meta"):
            choose_kernels(model, wanted)
