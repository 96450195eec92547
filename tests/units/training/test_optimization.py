"""Are the parameters moved, averaged and slowed down as the settings say?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mace.kernels import adam
from mace.kernels.adam import CompiledAdam, CompiledAdamW
from mace.kernels.c_backend import C
from mace.kernels.compiler import CompilationError, find_compiler
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.settings import TrainingSettings, parse_training_settings
from mace.training.optimization import DECAYED, MovingAverage, Schedule, make_optimizer, parameter_groups

KINDS = [
    (residual, normalization, gate)
    for residual in (True, False)
    for normalization in ("count", "density")
    for gate in ("silu", "None")
]


def tiny_model(residual: bool = True, normalization: str = "count", gate: str = "silu") -> MACE:
    plan = ModelPlan.model_validate(
        {
            "model": "ScaleShiftMACE",
            "r_max": 3.0,
            "l_max": 1,
            "n_channels": 3,
            "hidden_l": (0, 1),
            "interactions": (InteractionPlan(residual=residual, normalization=normalization),) * 2,  # type: ignore[arg-type]
            "correlation": (2, 2),
            "radial_mlp": (4,),
            "readout_channels": 4,
            "gate": gate,
            "distance_transform": "Agnesi",
            "pair_repulsion": True,
            "avg_num_neighbors": 4.0,
            "atomic_numbers": (1, 8),
            "reference_energies": (0.0, 0.0),
        }
    )
    return MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(1))


def settings(*flags: str) -> TrainingSettings:
    return parse_training_settings(["--name=a", "--train_file=a.xyz", *flags])


@pytest.mark.parametrize(("residual", "normalization", "gate"), KINDS)
def test_every_parameter_is_in_exactly_one_group(residual: bool, normalization: str, gate: str) -> None:
    model = tiny_model(residual, normalization, gate)
    grouped = [id(p) for group in parameter_groups(model, 0.01, 1e-4, {}) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_weight_decay_acts_on_linear_maps_of_messages_and_on_products_only() -> None:
    model = tiny_model()
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model, 0.01, 1e-4, {}):
        assert group["weight_decay"] == (1e-4 if group["name"] in DECAYED else 0.0)
        for parameter in group["params"]:
            name = names[id(parameter)]
            decayed = name.startswith("products.") or (name.startswith("interactions.") and ".linear." in name)
            assert decayed == (group["weight_decay"] > 0.0), name
    assert any("radial" in name or "mlp" in name for name in names.values())


def test_the_factors_multiply_the_learning_rate_of_their_part() -> None:
    factors = {
        "embedding_lr_factor": 0.5,
        "interactions_lr_factor": 2.0,
        "products_lr_factor": 3.0,
        "readouts_lr_factor": 0.0,
    }
    rates = {g["name"]: g["lr"] for g in parameter_groups(tiny_model(), 0.01, 0.0, factors)}
    expected = {"embedding": 0.005, "interactions_decay": 0.02, "interactions_no_decay": 0.02, "products": 0.03}
    assert rates == pytest.approx({**expected, "readouts": 0.0})


def test_the_optimizer_gets_what_was_set() -> None:
    optimizer = make_optimizer(tiny_model(), settings("--optimizer=adamw", "--beta=0.7", "--no_amsgrad", "--lr=0.5"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {(g["betas"][0], g["amsgrad"], g["lr"]) for g in optimizer.param_groups} == {(0.7, False, 0.5)}
    default = make_optimizer(tiny_model(), settings())
    assert type(default) is torch.optim.Adam
    assert all(g["amsgrad"] and g["betas"] == (0.9, 0.999) for g in default.param_groups)


def compiled_model() -> MACE:
    if find_compiler() is None:
        pytest.skip("there is no C compiler on this machine")
    return tiny_model().use_backend(C)


def test_compiled_kernels_bring_a_compiled_step_which_is_compiled_before_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, made = list[str](), adam.compile_and_load
    monkeypatch.setattr(adam, "compile_and_load", lambda source: compiled.append(source) or made(source))
    optimizer = make_optimizer(compiled_model(), settings("--lr=0.5", "--beta=0.7"))
    assert type(optimizer) is CompiledAdam and len(compiled) == 1
    assert all(g["amsgrad"] and g["betas"] == (0.7, 0.999) for g in optimizer.param_groups)
    assert type(make_optimizer(compiled_model(), settings("--optimizer=adamw"))) is CompiledAdamW


def test_without_a_compiled_step_torch_takes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(source: str) -> None:
        raise CompilationError("the disk is full")

    model = compiled_model()
    monkeypatch.setattr(adam, "compile_and_load", failing)
    assert type(make_optimizer(model, settings("--optimizer=adamw"))) is torch.optim.AdamW
    (message,) = caplog.messages
    assert "because the disk is full" in message


def test_the_moving_average_forgets_quickly_at_first() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = MovingAverage([parameter], 0.9)
    expected = 0.0
    for n in range(1, 200):
        with torch.no_grad():
            parameter.fill_(float(n))
        average.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert float(average.averages[0]) == pytest.approx(expected, rel=1e-13)


def test_the_average_is_lent_and_the_own_values_come_back_even_after_an_error() -> None:
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    average = MovingAverage([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(5.0)
    with pytest.raises(RuntimeError, match="in between"), average.applied():
        assert parameter.item() == 1.0
        raise RuntimeError("in between")
    assert parameter.item() == 5.0


def test_the_state_of_an_average_survives_but_its_decay_is_the_one_set_now(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    old = MovingAverage([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(2.0)
    old.update()
    torch.save(old.state_dict(), tmp_path / "state.pt")
    new = MovingAverage([parameter], 0.9)
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (new.n_updates, new.decay) == (1, 0.9)
    assert torch.equal(new.averages[0], old.averages[0])


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_the_plateau_counts_evaluations_and_not_epochs() -> None:
    chosen = settings("--lr=1.0", "--lr_factor=0.5", "--scheduler_patience=1")
    optimizer = make_optimizer(tiny_model(), chosen)
    schedule = Schedule(optimizer, chosen)
    schedule.epoch_ended(1.0)
    for _ in range(10):
        schedule.epoch_ended(None)
    schedule.epoch_ended(1.0)
    assert set(_rates(optimizer)) == {1.0}
    schedule.epoch_ended(1.0)
    assert set(_rates(optimizer)) == {0.5}


def test_a_loss_that_is_not_a_number_is_no_improvement() -> None:
    chosen = settings("--lr=1.0", "--lr_factor=0.5", "--scheduler_patience=0")
    optimizer = make_optimizer(tiny_model(), chosen)
    schedule = Schedule(optimizer, chosen)
    schedule.epoch_ended(1.0)
    schedule.epoch_ended(float("nan"))
    assert set(_rates(optimizer)) == {0.5}


def test_the_exponential_schedule_multiplies_once_per_epoch() -> None:
    chosen = settings("--lr=1.0", "--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.5")
    optimizer = make_optimizer(tiny_model(), chosen)
    schedule = Schedule(optimizer, chosen)
    optimizer.step()  # torch warns where a schedule moves before its optimizer
    for valid_loss in (1.0, None, float("nan")):
        schedule.epoch_ended(valid_loss)
    assert _rates(optimizer) == pytest.approx([0.125] * len(optimizer.param_groups))


def test_the_constant_rate_keeps_the_factors_of_the_parts() -> None:
    chosen = settings("--lr=1.0", "--lr_params_factors={'embedding_lr_factor': 0.1}")
    optimizer = make_optimizer(tiny_model(), chosen)
    Schedule(optimizer, chosen).set_constant(0.01)
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["embedding"] == pytest.approx(0.001)
    assert rates["products"] == pytest.approx(0.01)
