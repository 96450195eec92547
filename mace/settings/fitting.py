"""Settings of the fit: what it starts from, loss, optimizer, schedule, stage two, averaging."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mace.settings.declaration import Settings, nearest, read_literal, setting, shown
from mace.settings.labels import Files

NonNegative = Annotated[float, Field(ge=0)]

LEARNING_RATE_FACTORS = (
    "embedding_lr_factor",
    "interactions_lr_factor",
    "products_lr_factor",
    "readouts_lr_factor",
)
"""The parts of the model whose learning rate has a factor of its own."""

_FINE_TUNING = "Fine-tuning"
_LOSS = "Loss and weights"
_OPTIMIZER = "Optimizer and schedule"
_STAGE_TWO = "Stage two and averaging"


def _complete_factors(factors: dict[str, float]) -> dict[str, float]:
    for key in factors:
        if key not in LEARNING_RATE_FACTORS:
            match = nearest(key, LEARNING_RATE_FACTORS) or LEARNING_RATE_FACTORS[0]
            raise ValueError(f"has the unknown part {key!r}; the nearest known is {match}.")
    return {key: factors.get(key, 1.0) for key in LEARNING_RATE_FACTORS}


def _parts(value: Any) -> int | str | None:
    """Read a number, or names as a list or separated by commas, which is how they are returned."""
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?\d+", value.strip()):
            value = int(value)
        else:
            value = read_literal(value) if value.strip().startswith("[") else value.split(",")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        if value is not None and value < 0:
            raise ValueError(
                f"cannot be {value}: mace-torch accepts a negative number and freezes nothing; name the parts, for "
                "example readouts."
            )
        return value
    words = [str(word).strip() for word in value] if isinstance(value, (list, tuple)) else []
    if not words or not all(re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", word) for word in words):
        raise ValueError(f"is {shown(value)}; give names of parts separated by commas, or a number of at least 0.")
    return ",".join(words)


class FineTuningSettings(Settings):
    """The foundation model and what is kept of it."""

    foundation_model: str | None = setting(
        None,
        "model to start from: a file of this program or of mace-torch, or the name of a published one such as medium "
        "or small_off; it decides the architecture",
        group=_FINE_TUNING,
        placeholder="NAME|FILE",
    )
    foundation_head: str | None = setting(
        None,
        "head of the foundation model to start from, if it has several",
        group=_FINE_TUNING,
        placeholder="NAME",
        only_with="foundation_model",
    )
    foundation_model_elements: bool = setting(
        False,
        "keep all elements of the foundation model, not only those of the data",
        group=_FINE_TUNING,
        only_with="foundation_model",
    )
    foundation_model_readout: bool = setting(
        True,
        "start the readouts from random weights",
        group=_FINE_TUNING,
        kind="switch_off",
        only_with="foundation_model",
    )
    freeze: Annotated[int | str | None, BeforeValidator(_parts)] = setting(
        None,
        "parts of the model that stay as they are, such as embedding,interactions.0,readouts; or a number as in "
        "mace-torch: from 1 the embedding, from 5 the interactions too, from 6 the products, from 7 the readouts",
        group=_FINE_TUNING,
        placeholder="PART,...|N",
        expects="names of parts separated by commas such as embedding,interactions.0, or a number of at least 0",
    )
    lora: bool = setting(
        False, "freeze the weights, and train low-rank corrections of all linear maps", group=_FINE_TUNING
    )
    lora_rank: int = setting(4, "rank of the corrections", group=_FINE_TUNING, only_with="lora", ge=1)
    lora_alpha: float = setting(
        1.0, "scale of the corrections, which are divided by their rank", group=_FINE_TUNING, only_with="lora", gt=0
    )
    foundation_filter_elements: bool = setting(
        True,
        "start the readouts from those of the foundation model; False is the same as foundation_model_readout, as in "
        "mace-torch",
        group=_FINE_TUNING,
        only_with="foundation_model",
    )
    foundation_model_kwargs: dict[str, Any] = setting(
        {},
        "arguments of the function that opens a foundation model in mace-torch; of these, head is the same as "
        "foundation_head",
        group=_FINE_TUNING,
        only_with="foundation_model",
        expects="a dictionary such as {'head': 'omat_pbe'}",
    )
    multiheads_finetuning: bool = setting(
        True,
        "keep a head, pt_head, for structures of the foundation model's own training, so that it does not forget "
        "(replay); with True, or any of the settings of replay, it is done",
        group=_FINE_TUNING,
        default_words="True if pt_train_file or pseudolabel_replay is given, or heads has a pt_head",
        only_with="foundation_model",
    )
    pt_train_file: Files | None = setting(
        None,
        "structures to replay: files, or a published set by name, mp, omat, matpes_pbe or matpes_r2scan",
        group=_FINE_TUNING,
        kind="several",
        placeholder="FILE...|NAME",
        default_words="mp with one of the first published models for materials, small, medium and large",
        only_with="foundation_model and multiheads_finetuning",
    )
    pt_valid_file: Files | None = setting(
        None,
        "structures to validate the replay on",
        group=_FINE_TUNING,
        kind="several",
        placeholder="FILE...",
        default_words="valid_fraction of those to replay",
        only_with="foundation_model and multiheads_finetuning",
    )
    num_samples_pt: int = setting(
        10000,
        "number of structures that are selected for replay; fewer if there are not as many",
        group=_FINE_TUNING,
        ge=1,
        default_words="10000 of a published set, all of a file",
        only_with="foundation_model and multiheads_finetuning",
    )
    subselect_pt: Literal["fps", "random"] = setting(
        "random",
        "how they are selected: at random, or as farthest points in the descriptors of the foundation model",
        group=_FINE_TUNING,
        only_with="foundation_model and multiheads_finetuning",
    )
    filter_type_pt: Literal["none", "combinations", "inclusive", "exclusive"] = setting(
        "none",
        "which structures may be selected, by elements (atomic_numbers, or those of the training structures): all, "
        "those without others, those with all of them, those with exactly them",
        group=_FINE_TUNING,
        only_with="foundation_model and multiheads_finetuning",
    )
    allow_random_padding_pt: bool = setting(
        True,
        "add others at random if fewer than num_samples_pt may be selected",
        kind="switch",
        negations=("disallow_random_padding_pt",),
        group=_FINE_TUNING,
        only_with="foundation_model and multiheads_finetuning",
    )
    weight_pt_head: float = setting(
        1.0,
        "weight of the structures that are replayed in the loss",
        group=_FINE_TUNING,
        gt=0,
        only_with="foundation_model and multiheads_finetuning",
    )
    real_pt_data_ratio_threshold: float = setting(
        0.1,
        "if the other heads have fewer structures than this share of those that are replayed, theirs are drawn several "
        "times in an epoch",
        group=_FINE_TUNING,
        ge=0,
        only_with="foundation_model and multiheads_finetuning",
    )
    force_mh_ft_lr: bool = setting(
        False,
        "with replay, do not change the defaults of learning rate and averaging",
        group=_FINE_TUNING,
        only_with="foundation_model and multiheads_finetuning",
    )
    pseudolabel_replay: bool = setting(
        False,
        "label the structures that are replayed with the foundation model itself; without pt_train_file these are the "
        "training structures",
        group=_FINE_TUNING,
        only_with="foundation_model and multiheads_finetuning",
    )
    pseudolabel_replay_compute_stress: bool = setting(
        False,
        "label all of them that repeat in three directions with stresses too, not only those that had one",
        group=_FINE_TUNING,
        only_with="pseudolabel_replay",
    )


class LossSettings(Settings):
    """What is minimized."""

    loss: Literal[
        "ef",
        "weighted",
        "forces_only",
        "virials",
        "stress",
        "dipole",
        "dipole_polar",
        "huber",
        "universal",
        "energy_forces_dipole",
        "l1l2energyforces",
    ] = setting(
        "weighted",
        "which labels are fitted and how errors count",
        group=_LOSS,
        default_words="weighted; dipole for AtomicDipolesMACE, energy_forces_dipole for EnergyDipolesMACE",
        unsupported_values={
            "dipole_polar": "losses of polarizabilities are not available yet; choose dipole.",
        },
    )
    energy_weight: float = setting(1.0, "weight of the energies per atom", group=_LOSS, ge=0)
    forces_weight: float = setting(100.0, "weight of the forces", group=_LOSS, ge=0)
    stress_weight: float = setting(1.0, "weight of the stresses", group=_LOSS, ge=0)
    virials_weight: float = setting(1.0, "weight of the virials per atom", group=_LOSS, ge=0)
    dipole_weight: float = setting(1.0, "weight of the dipoles per atom", group=_LOSS, ge=0)
    config_type_weights: dict[str, NonNegative] = setting(
        {"Default": 1.0},
        "weight of the structures of each config_type; Default is for all that are not named",
        group=_LOSS,
        placeholder="{TYPE:W,...}",
        expects="a dictionary of weights of at least 0 such as {'Default': 1.0, 'surface': 2.0}",
    )
    huber_delta: float = setting(
        0.01, "error at which huber and universal turn from squares to absolute values", group=_LOSS, gt=0
    )


class OptimizerSettings(Settings):
    """How the parameters are moved."""

    optimizer: Literal["adam", "adamw", "schedulefree"] = setting("adam", "method", group=_OPTIMIZER)
    max_num_epochs: int = setting(
        2048, "passes over the training set; 0 measures the model as it starts, and writes it", group=_OPTIMIZER, ge=0
    )
    patience: int = setting(
        2048, "evaluations without a better validation loss after which training ends", group=_OPTIMIZER, ge=1
    )
    lr: float = setting(0.01, "learning rate at the start", group=_OPTIMIZER, gt=0)
    weight_decay: float = setting(5e-7, "penalty on large weights", group=_OPTIMIZER, ge=0)
    amsgrad: bool = setting(True, "divide by the largest second moment seen so far", group=_OPTIMIZER, kind="switch")
    beta: float = setting(0.9, "decay of the first moment in adam and adamw", group=_OPTIMIZER, ge=0, lt=1)
    beta1_schedulefree: float = setting(
        0.9, "interpolation between iterate and average in schedulefree", group=_OPTIMIZER, ge=0, lt=1
    )
    beta2_schedulefree: float = setting(
        0.98, "decay of the second moment in schedulefree", group=_OPTIMIZER, ge=0, lt=1
    )
    lr_params_factors: Annotated[dict[str, NonNegative], AfterValidator(_complete_factors)] = setting(
        dict.fromkeys(LEARNING_RATE_FACTORS, 1.0),
        f"factors on the learning rate of parts of the model: {', '.join(LEARNING_RATE_FACTORS)}",
        group=_OPTIMIZER,
        placeholder="{PART:X,...}",
        expects="a dictionary of factors of at least 0 such as {'embedding_lr_factor': 0.5}",
        default_words="1.0 each",
    )
    clip_grad: float | None = setting(
        10.0, "largest norm of the gradient, longer ones are shortened; None for no limit", group=_OPTIMIZER, gt=0
    )
    nan_policy: Literal["rewind", "stop"] = setting(
        "rewind",
        "when loss, gradient or weights are not finite: go back to the last good state and lower the rate, or stop",
        group=_OPTIMIZER,
    )
    nan_retries: int = setting(3, "how often a run may go back before it stops", group=_OPTIMIZER, ge=0)
    scheduler: Literal["ReduceLROnPlateau", "ExponentialLR"] = setting(
        "ReduceLROnPlateau", "how the learning rate goes down", group=_OPTIMIZER
    )
    lr_factor: float = setting(0.8, "factor of each reduction by ReduceLROnPlateau", group=_OPTIMIZER, gt=0, lt=1)
    scheduler_patience: int = setting(
        50, "evaluations without a better loss before ReduceLROnPlateau reduces", group=_OPTIMIZER, ge=0
    )
    lr_scheduler_gamma: float = setting(0.9993, "factor per epoch of ExponentialLR", group=_OPTIMIZER, gt=0, le=1)
    lbfgs: bool = setting(
        False,
        "after the last epoch, go on with L-BFGS on the loss of all training structures at once",
        group=_OPTIMIZER,
        kind="switch",
    )
    lbfgs_steps: int = setting(
        100,
        "iterations of L-BFGS, each of which takes as long as an epoch or somewhat longer",
        group=_OPTIMIZER,
        ge=1,
        only_with="lbfgs",
    )
    lbfgs_history: int = setting(
        50,
        "earlier iterations that L-BFGS learns from; each takes twice the memory of the parameters",
        group=_OPTIMIZER,
        ge=1,
        only_with="lbfgs",
    )


class StageTwoSettings(Settings):
    """The second stage, with more weight on energies, and the averages of parameters."""

    swa: bool = setting(
        False,
        "end with a second stage of other weights and rate",
        group=_STAGE_TWO,
        aliases=("stage_two",),
        kind="switch",
    )
    start_swa: int | None = setting(
        None,
        "epoch at which stage two begins",
        group=_STAGE_TWO,
        aliases=("start_stage_two",),
        ge=0,
        default_words="the last 20% of max_num_epochs",
    )
    swa_lr: float = setting(0.001, "learning rate in stage two", group=_STAGE_TWO, aliases=("stage_two_lr",), gt=0)
    swa_energy_weight: float = setting(
        1000.0, "weight of the energies in stage two", group=_STAGE_TWO, aliases=("stage_two_energy_weight",), ge=0
    )
    swa_forces_weight: float = setting(
        100.0, "weight of the forces in stage two", group=_STAGE_TWO, aliases=("stage_two_forces_weight",), ge=0
    )
    swa_stress_weight: float = setting(
        10.0, "weight of the stresses in stage two", group=_STAGE_TWO, aliases=("stage_two_stress_weight",), ge=0
    )
    swa_virials_weight: float = setting(
        10.0, "weight of the virials in stage two", group=_STAGE_TWO, aliases=("stage_two_virials_weight",), ge=0
    )
    swa_dipole_weight: float = setting(
        1.0, "weight of the dipoles in stage two", group=_STAGE_TWO, aliases=("stage_two_dipole_weight",), ge=0
    )
    ema: bool = setting(
        False, "evaluate and keep an exponential average of the parameters", group=_STAGE_TWO, kind="switch"
    )
    ema_decay: float = setting(0.99, "share of the old average kept at each step", group=_STAGE_TWO, gt=0, lt=1)
