"""Is exactly that frozen which was named, do corrections move as they should, and does what is frozen cost nothing?"""

from __future__ import annotations

from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from torch.func import functional_call

from mace.elements import ElementTable
from mace.errors import UserError
from mace.finetuning.freezing import choose_moved, frozen_parameters, moved_rows, moved_table, part_of
from mace.finetuning.low_rank import LowRankCorrections, averaged_weights
from mace.graphs.dataset import Batch
from mace.graphs.graph import pair_vectors
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiled import Kernel
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.program.passes import Tape
from mace.settings import TrainingSettings, parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage, make_optimizer
from mace.training.step import loss_gradient, update_parameters

LOSS = make_loss("weighted", {"energy": 1.0, "forces": 10.0}, 0.01)


def settings(*flags: str) -> TrainingSettings:
    return parse_training_settings(["--name=x", "--train_file=x.xyz", *flags])


def batch_for(model: MACE) -> Batch:
    rng = np.random.default_rng(4)
    structures = [
        Configuration(
            np.array([8, 1, 1, 6]), rng.normal(size=(4, 3)), np.zeros((3, 3)), (False,) * 3,
            energy=float(rng.normal()), forces=rng.normal(size=(4, 3)),
        )
        for _ in range(3)
    ]  # fmt: skip
    return InMemoryDataset(structures, ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch(range(3))


def parts_frozen(model: MACE, freeze: Any) -> set[str]:
    return {name.split(".")[0] for name in frozen_parameters(model, settings(f"--freeze={freeze}").freeze)}


def test_numbers_mean_what_they_mean_in_the_original() -> None:
    """Facts of mace-torch 0.3.16: it compares with 1, 5, 6 and 7, and freezes the element embedding and three lists."""
    model = files.model()
    assert parts_frozen(model, 0) == parts_frozen(model, None) == set()
    for number in (1, 2, 4):
        assert parts_frozen(model, number) == {"embedding"}
    assert parts_frozen(model, 5) == {"embedding", "interactions"}
    assert parts_frozen(model, 6) == {"embedding", "interactions", "products"}
    for number in (7, 100):
        assert parts_frozen(model, number) == {"embedding", "interactions", "products", "readouts"}


def test_the_highest_number_leaves_conditions_and_freezes_readouts_of_dipoles(load_case: Any) -> None:
    conditions = load_case("conditions/temperature_sites_l2_c3_t2").model()
    left = set(conditions.roles) - frozen_parameters(conditions, 7)
    assert left and all(name.startswith("condition") for name in left)
    dipoles = load_case("dipoles/energy_tensor_l2_c2_t3").model()
    assert frozen_parameters(dipoles, 7) == set(dipoles.roles)


@pytest.mark.parametrize(
    "part", ["embedding", "interactions", "interactions.1", "interactions.0.radial", "products.1.linear", "readouts.0"]
)
def test_a_part_is_a_module_or_a_parameter(part: str) -> None:
    model = files.model()
    of_state = {name for name in model.state_dict() if name == part or name.startswith(f"{part}.")}
    assert of_state and frozen_parameters(model, part) == of_state


def test_parts_are_written_as_text_or_list() -> None:
    expected = "embedding,interactions.0,readouts"
    assert settings(f"--freeze={expected}").freeze == expected
    assert settings("--freeze", "embedding, interactions.0 ,readouts").freeze == expected
    assert settings("--freeze=['embedding', 'interactions.0', 'readouts']").freeze == expected
    assert TrainingSettings(
        name="x", train_file="x.xyz", freeze=["embedding", "interactions.0", "readouts"]
    ).freeze == (expected)
    assert settings("--freeze=5").freeze == 5 and settings("--freeze=None").freeze is None
    model = files.model()
    assert frozen_parameters(model, expected) == {
        name for name in model.roles if name.startswith(("embedding", "interactions.0.", "readouts."))
    }


@pytest.mark.parametrize("value", ["-1", "True,", "a b", "5.5", "['a'", "[]", "embedding,,readouts"])
def test_what_is_no_list_of_parts(value: str) -> None:
    with pytest.raises(UserError, match="--freeze"):
        settings(f"--freeze={value}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--freeze=readout"], "no part 'readout'; did you mean readouts.* embedding, interactions.0, .*readouts.1"),
        (["--freeze=interactions.7"], "no part 'interactions.7'; did you mean interactions"),
        (["--freeze=interaction.0"], "did you mean interactions.0"),
        (["--freeze=7"], "--freeze=7 freezes all"),
        (["--freeze=embedding,interactions,products,readouts"], "freezes all"),
        (["--lora=True", "--lora_rank=2", "--freeze=6,"], "--freeze"),
        (
            ["--lora=True", "--freeze=embedding,interactions,readouts,products.0.linear,products.1.linear"],
            "leaves no linear map",
        ),
        (["--lora=True", "--lora_rank=64"], r"--lora_rank=64 is above the width of embedding, which maps 3 to \d+"),
    ],
)
def test_what_cannot_be_trained(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_moved(files.model(), settings(*flags))


def test_a_rank_is_measured_by_what_is_trained() -> None:
    model = files.model()
    widths = {name: max(p.shape[-2:]) for name, p in model.named_parameters() if model.roles[name].is_map}
    largest = min(widths.values())
    assert choose_moved(model, settings("--lora=True", f"--lora_rank={largest}"))
    narrow = ",".join(name for name, width in widths.items() if width == largest)
    with pytest.raises(UserError, match=f"choose at most {largest}"):
        choose_moved(files.model(), settings("--lora=True", f"--lora_rank={largest + 1}"))
    assert choose_moved(files.model(), settings("--lora=True", f"--lora_rank={largest + 1}", f"--freeze={narrow}"))


def corrections_of(model: MACE, rank: int = 2, alpha: float = 3.0) -> LowRankCorrections:
    """Corrections that are not zero."""
    corrections = LowRankCorrections(model, rank, alpha, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in corrections.parameters():
            if factor.requires_grad:
                factor.copy_(torch.randn(factor.shape, generator=generator, dtype=factor.dtype))
    return corrections


def unmerged(corrections: LowRankCorrections) -> dict[str, torch.Tensor]:
    """The weights, differentiable by the factors, map by map and in another order of multiplication."""
    state, factors = corrections.state_dict(), dict(corrections.named_parameters())
    weights = {}
    for name, base in state["base"].items():
        first, second = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
        weights[name] = base + torch.einsum("...ir,...ro->...io", first, second * state["scale"])
    return weights


def test_every_linear_map_is_corrected_and_nothing_else() -> None:
    model = files.model()
    corrections = LowRankCorrections(model, 2, 1.0, seed=1)
    others = set(model.roles) - set(corrections.ranks)
    assert others == {name for name in model.roles if ".weights.l" in name}  # those of the contractions
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in corrections.ranks)
    for name, factor in corrections.named_parameters():
        weight = model.get_parameter(name.rsplit(".", 1)[0])
        assert factor.shape[:-2] == weight.shape[:-2]  # a pair for each element, degree and path
        assert corrections.ranks[name.rsplit(".", 1)[0]] <= min(2, *weight.shape[-2:])


def test_corrections_are_zero_at_the_start() -> None:
    model = files.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    corrections = LowRankCorrections(model, 2, 1.0, seed=1)
    corrections.update_model()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(bool(f.any()) == name.endswith("lora_A") for name, f in corrections.named_parameters())


@pytest.mark.parametrize("kernels", ["torch", "c"])
def test_merged_weights_predict_what_unmerged_ones_do(kernels: str) -> None:
    model = files.model()
    batch = batch_for(model)
    plain = predict(model, batch.graph).forces
    corrections = corrections_of(model)
    with torch.no_grad():
        expected = functional_call(model, unmerged(corrections), (batch.graph, _vectors(model, batch))).energies
    corrections.update_model()
    model.use_backend(C if kernels == "c" else TORCH)
    found = model(batch.graph, _vectors(model, batch)).energies
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert float((predict(model, batch.graph).forces - plain).abs().max()) > 1e-3  # type: ignore[operator]


def _vectors(model: MACE, batch: Batch) -> torch.Tensor:
    return pair_vectors(batch.graph, model.plan.r_max, model.dtype)


@pytest.mark.parametrize("kernels", ["torch", "c"])
def test_gradients_are_those_of_differentiating_through_the_sum(kernels: str) -> None:
    model = files.model()
    batch = batch_for(model)
    corrections = corrections_of(model)
    corrections.update_model()
    model.use_backend(C if kernels == "c" else TORCH)
    loss_gradient(model, batch, LOSS)
    corrections.take_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    found = {name: factor.grad for name, factor in corrections.named_parameters()}

    reference = files.model().requires_grad_(False)

    class Unmerged(torch.nn.Module):
        """The model with the sums in the place of its weights, for all that reads it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(reference, name)

        def forward(self, *inputs: Any) -> Any:
            return functional_call(reference, unmerged(corrections), inputs)

    prediction = predict(Unmerged(), batch.graph, training=True)  # type: ignore[arg-type]
    factors = dict(corrections.named_parameters())
    _, slopes = LOSS.value_and_slopes(prediction, batch.targets)
    predicted = [getattr(prediction, name) for name in slopes]
    expected = torch.autograd.grad(predicted, list(factors.values()), list(slopes.values()), allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    assert sum(gradient is not None for gradient in expected) > 20
    for name, gradient in zip(factors, expected, strict=True):
        wanted = torch.zeros_like(factors[name]) if gradient is None else gradient
        own = torch.zeros_like(factors[name]) if found[name] is None else found[name]
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-10 * largest)


def test_averaged_factors_give_the_weights_that_are_validated() -> None:
    corrections = corrections_of(files.model())
    average = MovingAverage(corrections.parameters(), 0.5)
    with torch.no_grad():
        for factor in corrections.parameters():
            factor.mul_(2.0)
    average.update()
    corrections.update_model()
    with average.applied():
        corrections.update_model()
        expected = {name: value.clone() for name, value in corrections.model.state_dict().items()}
    found = averaged_weights(expected, corrections.state_dict(), average.state_dict()["averages"])
    assert found.keys() == set(corrections.state_dict()["base"])
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_table_adds_up() -> None:
    model = files.model()
    flags = settings("--freeze=embedding,products.0", "--lr_params_factors={'readouts_lr_factor': 0.5}")
    moved = choose_moved(model, flags)
    rows = {row.part: row for row in moved_rows(moved, flags)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["embedding"].moved == rows["products.0"].moved == 0
    assert rows["products.1"].moved == rows["products.1"].parameters > 0
    assert rows["readouts.1"].rate_factor == 0.5 and rows["products.1"].rate_factor == 1.0
    assert "frozen" in moved_table(moved, flags)
    flags = settings("--lora=True", "--lora_rank=2", "--freeze=embedding")
    corrections = choose_moved(files.model(), flags)
    assert isinstance(corrections, LowRankCorrections)
    rows = {row.part: row for row in moved_rows(corrections, flags)}
    assert sum(row.moved for row in rows.values()) == sum(
        p.numel() for name, p in corrections.named_parameters() if part_of(name) != "embedding"
    )
    assert rows["readouts.0"].ranks == (1,) and rows["embedding"].ranks == ()


# what is frozen costs nothing


def kernels_called(model: MACE, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels of the program that a gradient runs."""
    called = list[str]()

    def noted(tape: Tape, name: str, *others: Any) -> Kernel:
        called.append(name)
        return kernel(tape, name, *others)

    kernel = Tape.kernel
    with monkeypatch.context() as patch:
        patch.setattr(Tape, "kernel", noted)
        loss_gradient(model.use_backend(C), batch_for(model), LOSS)
    return called


def weight_gradients(model: MACE) -> int:
    """How many matrix products, backward, have the shape of a weight; counted by the profiler of torch."""
    batch = batch_for(model.use_backend(TORCH))
    with torch.profiler.profile(record_shapes=True) as profile:
        loss_gradient(model, batch, LOSS)
    return sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::bmm"))


def test_kernels_leave_out_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = files.model()
    all_kernels = kernels_called(model, monkeypatch)
    assert all_kernels.count("contraction_backward_full") == model.plan.n_layers
    choose_moved(model, settings("--freeze=products"))
    without_products = kernels_called(model, monkeypatch)
    assert without_products.count("contraction_backward_full") == 0  # that by the features is needed below
    choose_moved(model, settings("--freeze=6"))
    of_readouts = kernels_called(model, monkeypatch)
    assert len(of_readouts) < len(without_products)
    assert "conv_backward_parameters" not in of_readouts


def test_fewer_products_are_computed_the_more_is_frozen() -> None:
    model, counts = files.model(), list[int]()
    for freeze in ("0", "embedding", "5", "6"):
        choose_moved(model, settings(f"--freeze={freeze}"))
        counts.append(weight_gradients(model))
    assert counts[0] >= counts[1] > counts[2] > counts[3]


def test_frozen_parameters_have_no_gradients_and_no_state() -> None:
    model = files.model()
    flags = settings("--freeze=5", "--weight_decay=0.1", "--optimizer=adamw", "--lr=0.1")
    moved = choose_moved(model, flags)
    optimizer, average = make_optimizer(moved, flags), MovingAverage(moved.parameters(), 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss_gradient(model, batch_for(model), LOSS)
    update_parameters(moved, optimizer, 10.0, average)
    frozen = frozen_parameters(model, 5)
    for (name, parameter), averaged in zip(model.named_parameters(), average.averages, strict=True):
        assert (parameter.grad is None) == (name in frozen) == torch.equal(parameter, before[name]), name
        assert (parameter in optimizer.state) != (name in frozen)
        assert torch.equal(averaged, before[name]) == (name in frozen)


def test_a_batch_that_depends_on_nothing_that_is_trained_moves_nothing() -> None:
    model = files.model()
    choose_moved(model, settings("--freeze=embedding,interactions,products,readouts.0"))
    model.readouts[1].requires_grad_(False)
    model.embedding.requires_grad_(True)
    energies_of_no_pairs = make_loss("weighted", {"energy": 1.0, "forces": 0.0}, 0.01)
    alone = Configuration(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3, energy=1.0)
    batch = InMemoryDataset([alone], ElementTable(model.plan.atomic_numbers), model.plan.r_max).batch([0])
    loss_gradient(model, batch, energies_of_no_pairs)
    assert model.embedding.grad is None or bool(torch.isfinite(model.embedding.grad).all())
