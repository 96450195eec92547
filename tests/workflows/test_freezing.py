"""Does a training leave alone what was frozen, and end alike however it is stopped, divided or taken up again?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import Run, same, write_water
from training_runs import train as train_with_a_page

from mace.errors import UserError
from mace.finetuning.freezing import frozen_parameters
from mace.model.model_file import load_model
from mace.training.checkpoints import load_safely

LORA = ("--lora=True", "--lora_rank=2", "--lora_alpha=4")
RESUME = "--restart_latest"


def train(folder: Path, data: Path, *flags: str) -> Run:
    return train_with_a_page(folder, data, "--no_report", *flags)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


@pytest.fixture
def start(tmp_path: Path, data: Path) -> Path:
    """A model that was trained before."""
    train(tmp_path / "before", data, "--name=before", "--lr=0.02", "--max_num_epochs=3")
    return tmp_path / "before" / "before.model"


def weights_in(path: Path) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in load_model(path).model.named_parameters()}


def moved_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


WAYS = {
    "adam with all that moves": (
        "--ema", "--ema_decay=0.5", "--weight_decay=0.1", "--swa", "--start_swa=2", "--lr=0.05"
    ),
    "adamw": ("--optimizer=adamw", "--weight_decay=0.5", "--ema", "--no_amsgrad"),
    "schedule-free": ("--optimizer=schedulefree", "--weight_decay=0.1", "--ema"),
    "single precision": ("--default_dtype=float32", "--ema", "--weight_decay=0.1"),
    "divided batches": ("--max_edges_per_batch=8", "--batch_size=6"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_no_frozen_bit_changes(tmp_path: Path, data: Path, way: tuple[str, ...]) -> None:
    if "--optimizer=schedulefree" in way:
        pytest.importorskip("schedulefree")
    before = train(tmp_path / "start", data, "--max_num_epochs=0", *way).weights()
    parts = "embedding,interactions.0,products.1.linear,readouts.0"
    run = train(tmp_path / "run", data, "--max_num_epochs=4", f"--freeze={parts}", *way)
    frozen = frozen_parameters(load_model(tmp_path / "run" / "tiny.model").model, parts)
    endings = ("", "_stagetwo") if "--swa" in way else ("",)
    state = run.last_state()
    for after in (*(run.weights(ending) for ending in endings), state["weights"], *state["best"].values()):
        assert moved_names(before, after) == set(before) - frozen
    if way == WAYS["adamw"]:
        free = train(tmp_path / "free", data, *way).weights()
        assert moved_names(before, free) == set(before)  # without the flag, all move


def test_frozen_parts_of_a_foundation_model_stay(tmp_path: Path, data: Path, start: Path) -> None:
    flags = (f"--foundation_model={start}", "--multiheads_finetuning=False", "--E0s=foundation", "--ema")
    run = train(tmp_path, data, "--freeze=5", *flags)
    assert moved_names(weights_in(start), run.weights()) == {
        name for name in run.weights() if name.startswith(("products", "readouts"))
    }
    assert run.said("TRAINED PARAMETERS") and run.said(r"interactions.1 +\| +\d+ \| +0 \| +frozen")
    assert not run.said("weights that are random")
    other = train(tmp_path, data, "--freeze=readouts.1", "--foundation_model_readout", *flags)
    assert other.said("--freeze keeps weights that are random: nothing was learned before in readouts.1")


def test_a_factor_of_zero_is_not_freezing(tmp_path: Path, data: Path) -> None:
    """The weights stay, but the log says that their gradients take time and count."""
    before = train(tmp_path / "start", data, "--max_num_epochs=0").weights()
    factors = "--lr_params_factors={'products_lr_factor': 0.0, 'readouts_lr_factor': 0.5}"
    run = train(tmp_path / "run", data, factors, "--freeze=embedding")
    expected = {name for name in before if not name.startswith(("embedding", "products"))}
    assert moved_names(before, run.weights()) == expected
    assert run.said(r"A learning rate factor of 0 \(products.0, products.1\) .* --freeze does neither")
    assert run.said(r"readouts.1 +\| +\d+ \| +\d+ \| +0.5 ")


def test_the_plan_shows_what_is_trained(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, "--dry_run", "--freeze=5", *LORA)
    plan = run.shown[run.shown.index("Plan of the run") :]
    assert re.search(r"products.1: \d+, \d+ in corrections of rank 2", plan)
    assert re.search(r"interactions.0: \d+, frozen", plan)


# low-rank corrections


def rank_of(matrices: Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrices, rtol=1e-9).max()) if matrices.numel() else 0


@pytest.mark.parametrize("way", [(), ("--ema",), ("--optimizer=schedulefree",)], ids=["plain", "averaged", "free"])
def test_what_is_written_is_the_start_and_corrections_of_the_rank(
    tmp_path: Path, data: Path, start: Path, way: tuple[str, ...]
) -> None:
    if "--optimizer=schedulefree" in way:
        pytest.importorskip("schedulefree")
    flags = (f"--foundation_model={start}", "--multiheads_finetuning=False", "--E0s=foundation")
    run = train(tmp_path, data, *LORA, *flags, *way, "--freeze=readouts.1")
    before, after = weights_in(start), run.weights()
    moved = moved_names(before, after)
    assert moved == {n for n in before if ".weights.l" not in n and not n.startswith("readouts.1")} - {
        n for n in before if not before[n].numel()
    }
    for name in moved:
        assert rank_of(after[name] - before[name]) <= min(2, *before[name].shape[-2:])
    assert max(rank_of(after[name] - before[name]) for name in moved) == 2
    state = run.last_state()
    assert state["weights"].keys() == before.keys()  # a plain model, whatever trained it
    assert run.said(r"every linear map a product of matrices of rank 2 is added, times 4 / 2")


@pytest.mark.parametrize(
    "way",
    [
        ("--ema", "--swa", "--start_swa=3", "--freeze=embedding"),
        ("--default_dtype=float32",),
        ("--optimizer=schedulefree",),
    ],
    ids=["averaged", "single precision", "free"],
)
def test_corrections_resume_bit_for_bit(tmp_path: Path, data: Path, way: tuple[str, ...]) -> None:
    if "--optimizer=schedulefree" in way:
        pytest.importorskip("schedulefree")
    straight = train(tmp_path / "a", data, "--max_num_epochs=6", *LORA, *way)
    train(tmp_path / "b", data, "--max_num_epochs=2", *LORA, *way)
    train(tmp_path / "b", data, "--max_num_epochs=4", RESUME, *LORA, *way)
    resumed = train(tmp_path / "b", data, "--max_num_epochs=6", RESUME, *LORA, *way)
    one, other = straight.last_state(), resumed.last_state()
    for part in ("weights", "moved", "optimizer", "schedule", "average", "progression", "best"):
        assert same(one[part], other[part]), part
    assert same(straight.weights(), resumed.weights())


@pytest.mark.parametrize("averaged", [(), ("--ema",)], ids=["plain", "averaged"])
def test_a_checkpoint_with_corrections_is_a_start(tmp_path: Path, data: Path, averaged: tuple[str, ...]) -> None:
    """Another run begins with the weights that were validated last."""
    train(tmp_path / "a", data, *LORA, *averaged, "--save_all_checkpoints")
    checkpoints = tmp_path / "a" / "checkpoints"
    start = f"--init_from={checkpoints / 'tiny_run-7_last.pt'}"
    again = train(tmp_path / "b", data, start, "--max_num_epochs=0").last_state()["weights"]
    assert same(load_safely(checkpoints / "tiny_run-7_epoch-1.pt")["weights"], again)


def test_going_back_takes_corrections_back(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mace.training import batch_step

    gradient, calls = batch_step.loss_gradient, list[int]()

    def spoiled(model: torch.nn.Module, *others: object, **named: object) -> Tensor:
        value: Tensor = gradient(model, *others, **named)  # type: ignore[arg-type]
        calls.append(0)
        if len(calls) == 5:
            next(p for p in model.parameters() if p.grad is not None).grad.mul_(float("nan"))  # type: ignore[union-attr]
        return value

    monkeypatch.setattr(batch_step, "loss_gradient", spoiled)
    run = train(tmp_path, data, "--max_num_epochs=3", *LORA, "--ema", "--freeze=readouts")
    assert run.said("going back to epoch 1") and run.epochs_evaluated == [None, 0, 1, 2]
    state = run.last_state()
    assert all(bool(torch.isfinite(value).all()) for value in state["weights"].values())
    for name, base in state["moved"]["base"].items():
        first, second = state["moved"]["factors"][name]
        expected = base + state["moved"]["scale"] * (first @ second)
        torch.testing.assert_close(state["weights"][name], expected, rtol=1e-12, atol=1e-12)


# taken up with other settings


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ((), LORA),
        (LORA, ()),
        (LORA, ("--lora=True", "--lora_rank=1", "--lora_alpha=4")),
        (LORA, ("--lora=True", "--lora_rank=2")),
    ],
)
def test_other_corrections_are_refused(
    tmp_path: Path, data: Path, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    train(tmp_path, data, *before)
    kept = load_safely(tmp_path / "checkpoints" / "tiny_run-7_last.pt")
    with pytest.raises(UserError, match=r"lora.* -> .*set these back"):
        train(tmp_path, data, RESUME, "--max_num_epochs=4", *now)
    assert same(kept, load_safely(tmp_path / "checkpoints" / "tiny_run-7_last.pt"))


@pytest.mark.parametrize(
    "way",
    [("--ema",), ("--optimizer=schedulefree",), ("--ema", *LORA), ("--optimizer=schedulefree", *LORA)],
    ids=["averaged", "free", "averaged corrections", "free corrections"],
)
def test_a_run_goes_on_with_other_parts_frozen(tmp_path: Path, data: Path, way: tuple[str, ...]) -> None:
    if "--optimizer=schedulefree" in way:
        pytest.importorskip("schedulefree")
    flags = (*way, "--save_all_checkpoints")

    def of_epoch(run: Run, epoch: int) -> dict[str, Tensor]:
        path = tmp_path / "checkpoints" / f"{run.tag}_epoch-{epoch}.pt"
        weights: dict[str, Tensor] = load_safely(path)["weights"]
        return weights

    train(tmp_path, data, "--max_num_epochs=2", "--freeze=readouts", *flags)
    run = train(tmp_path, data, "--max_num_epochs=4", "--freeze=interactions", RESUME, *flags)
    assert run.said("continuing with: .*freeze readouts -> interactions")
    moved = moved_names(of_epoch(run, 1), of_epoch(run, 3))
    assert moved and not any(name.startswith("interactions") for name in moved)
    assert any(name.startswith("readouts") for name in moved)
    again = train(tmp_path, data, "--max_num_epochs=6", RESUME, *flags)
    moved = moved_names(of_epoch(run, 3), of_epoch(again, 5))
    assert any(name.startswith("interactions") for name in moved)
