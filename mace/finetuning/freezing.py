"""Which parameters a training moves: frozen parts, low-rank corrections, and the table that shows them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mace.errors import UserError
from mace.finetuning.foundation import keeps_readouts
from mace.finetuning.low_rank import LowRankCorrections
from mace.model.mace import MACE
from mace.reporting.tables import plain_table
from mace.settings import TrainingSettings
from mace.settings.declaration import nearest
from mace.training.optimization import MovedParameters, rate_factor

_LOGGER = logging.getLogger(__name__)

FROZEN_FROM = {"embedding": 1, "interactions": 5, "products": 6, "readouts": 7}
"""Lowest ``--freeze N`` that freezes each group of parameters, as in mace-torch; conditions are in none of them."""


@dataclass(frozen=True)
class PartRow:
    """What moves in one part of the model.

    Attributes:
        part: Its name.
        parameters: Number of parameters.
        moved: Number of them that the optimizer moves; with low-rank corrections, the numbers of these.
        rate_factor: Factor on the learning rate.
        ranks: Ranks of its corrections that are trained.
    """

    part: str
    parameters: int
    moved: int
    rate_factor: float
    ranks: tuple[int, ...]

    @property
    def ranks_in_words(self) -> str:
        """The lowest and the highest rank, such as ``1-4``; ``-`` without corrections."""
        return "-".join(map(str, dict.fromkeys((self.ranks[0], self.ranks[-1])))) if self.ranks else "-"

    def in_words(self) -> str:
        """Say it in a line, as in ``products.0: 1,024, frozen``."""
        words = [f"{self.part}: {self.parameters:,}"]
        if not self.moved:
            words.append("frozen")
        elif self.ranks:
            words.append(f"{self.moved:,} in corrections of rank {self.ranks_in_words}")
        if self.moved and self.rate_factor != 1.0:
            words.append(f"learning rate times {self.rate_factor:g}")
        return ", ".join(words)


def choose_moved(model: MACE, settings: TrainingSettings) -> MovedParameters:
    """Freeze parts of a model, and correct the others by low-rank matrices, if the settings say so.

    Args:
        model: The model with its initial weights, on its device; what is frozen no longer requires gradients.
        settings: The settings.

    Raises:
        UserError: If there is no such part, or nothing would be left to move, or a rank is too large.
    """
    frozen = frozen_parameters(model, settings.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if len(frozen) == len(model.roles):
        raise UserError(
            f"--freeze={settings.freeze} freezes all that the model has; name fewer parts, or measure it as it is with "
            "mace_eval_configs."
        )
    if not settings.lora:
        return MovedParameters(model)
    corrections = LowRankCorrections(model, settings.lora_rank, settings.lora_alpha, settings.seed)
    if not any(parameter.requires_grad for parameter in corrections.parameters()):
        raise UserError(
            f"--freeze={settings.freeze} leaves no linear map that --lora could correct; name fewer parts, or remove "
            "--lora."
        )
    return corrections


def frozen_parameters(model: MACE, freeze: int | str | None) -> set[str]:
    """Return the names of the parameters to freeze.

    Args:
        model: The model.
        freeze: A number as in mace-torch, see `FROZEN_FROM`, or names of parts separated by commas. A part is a module
            or a parameter, named as in the state dict of the model, or its beginning: ``interactions.0``.

    Raises:
        UserError: If the model has no such part.
    """
    names = list(model.roles)
    if freeze is None:
        return set()
    if isinstance(freeze, int):
        groups = {group for group, lowest in FROZEN_FROM.items() if freeze >= lowest}
        return {name for name, role in model.roles.items() if role.group.split("_")[0] in groups}
    frozen = set[str]()
    for part in freeze.split(","):
        found = {name for name in names if f"{name}.".startswith(f"{part}.")}
        if not found:
            match = nearest(part, (each for name in names for each in _beginnings(name)))
            hint = f"; did you mean {match}?" if match else ";"
            raise UserError(
                f"--freeze: the model has no part {part!r}{hint} Its parts are {', '.join(parts_of(names))}."
            )
        frozen |= found
    return frozen


def _beginnings(name: str) -> Iterator[str]:
    words = name.split(".")
    return (".".join(words[:length]) for length in range(1, len(words) + 1))


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to, as shown to users.

    >>> part_of("interactions.0.radial.weights.1"), part_of("conditions.mixing")
    ('interactions.0', 'conditions')
    """
    found = re.match(r"\w+(\.\d+)?", name)
    return found[0] if found else name


def parts_of(names: Sequence[str]) -> list[str]:
    """List the parts that parameters belong to, in the order of the parameters."""
    return list(dict.fromkeys(map(part_of, names)))


def moved_rows(moved: MovedParameters, settings: TrainingSettings) -> list[PartRow]:
    """Count, for every part of the model, its parameters and how many are moved."""
    counted = [(part_of(name), parameter) for name, parameter in moved.model.named_parameters()]
    moving = [(part_of(name), p) for name, p in moved.named_parameters() if p.requires_grad]
    ranks = moved.ranks if isinstance(moved, LowRankCorrections) else {}
    groups = {part_of(name): role.group for name, role in moved.model.roles.items()}
    return [
        PartRow(
            part,
            sum(p.numel() for own, p in counted if own == part),
            sum(p.numel() for own, p in moving if own == part),
            rate_factor(groups[part], settings.lr_params_factors),
            tuple(sorted({rank for name, rank in ranks.items() if part_of(name) == part})),
        )
        for part in parts_of(list(moved.model.roles))
    ]


def moved_table(moved: MovedParameters, settings: TrainingSettings) -> str:
    """Draw what is moved and what is frozen, part by part, as a plain-text table."""
    rows = moved_rows(moved, settings)
    titles = ["part", "parameters", "trained", "learning rate factor", *(["LoRA rank"] if settings.lora else [])]
    cells = []
    for row in rows:
        factor = f"{row.rate_factor:g}" if row.moved else "frozen"
        ranks = [row.ranks_in_words] if settings.lora else []
        cells.append([row.part, f"{row.parameters:,}", f"{row.moved:,}", factor, *ranks])
    totals = [f"{sum(row.parameters for row in rows):,}", f"{sum(row.moved for row in rows):,}"]
    cells.append(["all", *totals, "", *([""] if settings.lora else [])])
    return plain_table(titles, cells)


def moved_in_words(moved: MovedParameters, settings: TrainingSettings) -> str:
    """Say how many parameters there are and how many are moved, then a line for each part."""
    rows = moved_rows(moved, settings)
    total, n_moved = sum(row.parameters for row in rows), sum(row.moved for row in rows)
    first = f"{total:,}" + ("" if n_moved == total else f", {n_moved:,} trained")
    return "\n".join([first, *(row.in_words() for row in rows)])


def log_moved(moved: MovedParameters, settings: TrainingSettings, starts_anew: bool) -> None:
    """Log what is moved and what is frozen.

    Args:
        moved: What is moved.
        settings: The settings.
        starts_anew: Whether the weights are random, those of no other model or earlier state.
    """
    _LOGGER.info("===========TRAINED PARAMETERS===========\n%s", moved_table(moved, settings))
    rows = moved_rows(moved, settings)
    still = [row.part for row in rows if row.moved and not row.rate_factor]
    if still:
        _LOGGER.info(
            "A learning rate factor of 0 (%s) leaves weights as they are but takes the time of their gradients, and "
            "counts in the norm that --clip_grad limits; --freeze does neither",
            ", ".join(still),
        )
    if settings.lora:
        _LOGGER.info(
            "LoRA: the weights are frozen, and to every linear map a product of matrices of rank %d is added, times %g "
            "/ %d; model files have the sums",
            settings.lora_rank,
            settings.lora_alpha,
            settings.lora_rank,
        )
    random = [row.part for row in rows if starts_anew or row.part.startswith(("readouts", "dipole_readouts"))]
    held = [row.part for row in rows if row.part in random and (settings.lora or not row.moved)]
    if held and (starts_anew or not keeps_readouts(settings)):
        what = "--lora corrects" if settings.lora else "--freeze keeps"
        _LOGGER.warning("%s weights that are random: nothing was learned before in %s", what, ", ".join(held))
