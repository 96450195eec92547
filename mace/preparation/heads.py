"""The heads of a run: for each, the settings it would have as the only one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mace.errors import UserError
from mace.finetuning.foundation import FROM_FOUNDATION
from mace.model.plan import OUTPUTS
from mace.planning.replay import REPLAY_HEAD, replays
from mace.properties import PROPERTIES
from mace.settings import TrainingSettings, provided
from mace.settings.declaration import inert_notes, shown
from mace.settings.heads import HeadSettings, fault_of_name
from mace.structures.configuration import DEFAULT_HEAD, HEAD_KEY
from mace.structures.formats import iterate_frames
from mace.structures.sources import files_of

_LOGGER = logging.getLogger(__name__)

FILES = ("train_file", "valid_file", "test_file", "test_dir")
"""Settings of files that a head may share with others."""

_OF_MATERIALS_PROJECT = ("small", "medium", "large")
"""Published models whose training structures are the set ``mp``."""


@dataclass(frozen=True)
class Head:
    """A head of the model to be trained.

    Attributes:
        name: Its name.
        settings: The settings of the run, with those given for this head in place of those for all.
        weight: Weight of its structures in the loss.
        shared: Which of `FILES` hold structures of other heads too; in these, every structure names its head.
        key: Entry of the comment line in which it does.
        names: Names of all heads.
        keyed: Labels whose key was given for this head alone.
        is_replay: Whether it is the head of the foundation model, with structures that are replayed.
    """

    name: str
    settings: TrainingSettings
    weight: float = 1.0
    shared: frozenset[str] = frozenset()
    key: str = HEAD_KEY
    names: tuple[str, ...] = (DEFAULT_HEAD,)
    keyed: frozenset[str] = frozenset()
    is_replay: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether the model has no other head."""
        return len(self.names) == 1

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Let errors inside a ``with`` block begin with the name of the head, if there are others."""
        try:
            yield
        except UserError as error:
            raise error if self.is_alone else UserError(f"Head {self.name}: {error}") from error


def heads_of(settings: TrainingSettings) -> dict[str, Head]:
    """Determine the heads of a run, by name, in the order of the model.

    Args:
        settings: The given settings.

    Raises:
        UserError: If the files name no heads, or the model can have only one.
    """
    key = settings.head_key or HEAD_KEY
    given = dict(settings.heads or {})
    replayed = given.pop(REPLAY_HEAD, HeadSettings()) if replays(settings) else None
    if settings.heads is None and settings.head_key:
        given = dict.fromkeys(_names_in_files(settings, key), HeadSettings())
    if not given:
        given = {DEFAULT_HEAD: HeadSettings()}
    names = (*([] if replayed is None else [REPLAY_HEAD]), *given)
    _check_choices(settings, names)
    if len(names) > 1 and "energy" not in OUTPUTS[settings.model]:
        raise UserError(
            f"--heads: --model={settings.model} predicts no energies, and heads differ in these only; train one model "
            "per data set."
        )
    if len(names) > 1 and "dipole" in OUTPUTS[settings.model]:
        _LOGGER.warning(
            "--model=%s: its heads share all weights, as in mace-torch, and differ in reference energies only; data "
            "sets whose forces or dipoles differ need models of their own",
            settings.model,
        )
    if len(names) == 1 and names[0] != DEFAULT_HEAD:
        _LOGGER.info("The only head is %s: the model is written as one without several heads", names[0])
    heads = {name: _head(settings, name, own, key, names) for name, own in given.items()}
    for files in FILES:
        if getattr(settings, files) is not None and all(getattr(own, files) is not None for own in given.values()):
            _LOGGER.warning("--%s has no effect: every head has its own in --heads", files)
    if replayed is not None:  # first, as in mace-torch
        heads = {REPLAY_HEAD: _replay_head(settings, replayed, key, names), **heads}
    return heads


def _check_choices(settings: TrainingSettings, names: tuple[str, ...]) -> None:
    """Check that the heads named by settings exist.

    Raises:
        UserError: If one does not.
    """
    chosen, typed = settings.select_by, provided(settings)
    if chosen != "all" and chosen not in names:
        raise UserError(f"--select_by: there is no head '{chosen}'; give all or one of {', '.join(names)}.")
    if chosen == "all" and "all" in names and "select_by" in typed:
        raise UserError("--select_by=all means all heads, and one has this name too; give that head another name.")
    for name in filter(None, map(str.strip, settings.skip_evaluate_heads.split(","))):
        if name not in names and "skip_evaluate_heads" in typed and name != REPLAY_HEAD:
            raise UserError(f"--skip_evaluate_heads: there is no head '{name}'; there are {', '.join(names)}.")
    if len(names) == 1 and settings.head_sampling != "all":
        _LOGGER.warning("--head_sampling=%s has no effect on a model with one head", settings.head_sampling)


def _head(settings: TrainingSettings, name: str, own: HeadSettings, key: str, names: tuple[str, ...]) -> Head:
    """Put what was given for a head in place of what holds for all."""
    for note in inert_notes(own):
        _LOGGER.warning("Head %s: %s", name, note)
    given = own.given()
    if given.get("E0s") in FROM_FOUNDATION and settings.foundation_model is None:
        raise UserError(
            f"Head {name}: E0s '{given['E0s']}' are the energies of a foundation model; add --foundation_model."
        )
    keyed = frozenset(label for label in PROPERTIES if given.get(f"{label}_key"))
    weight = given.pop("weight", 1.0)
    shared = frozenset(files for files in FILES if files not in given and getattr(settings, files) is not None)
    if len({*names} - {REPLAY_HEAD}) == 1:
        shared = frozenset()
    settings_of_head = settings.model_copy(update=given)
    settings_of_head.model_fields_set.update(name for name, value in given.items() if value is not None)
    return Head(name, settings_of_head, weight, shared, key, names, keyed)


def _replay_head(settings: TrainingSettings, own: HeadSettings, key: str, names: tuple[str, ...]) -> Head:
    """Return the head of the foundation model; what was given for it in ``--heads`` comes first."""
    own = own.model_copy(
        update={
            "train_file": own.train_file or settings.pt_train_file or _implied_set(settings),
            "valid_file": own.valid_file or settings.pt_valid_file,
            "weight": own.weight or settings.weight_pt_head,
            "E0s": own.E0s or "foundation",
        }
    )
    head = _head(settings, REPLAY_HEAD, own, key, names)
    # what was given for the other structures does not hold for these
    without = {
        name: None for name in ("valid_file", "test_file", "test_dir", "mean", "std") if getattr(own, name) is None
    }
    return replace(head, settings=head.settings.model_copy(update=without), shared=frozenset(), is_replay=True)


def _implied_set(settings: TrainingSettings) -> str | None:
    """Return the published set to replay if no file is given; None to replay the training structures themselves.

    Raises:
        UserError: If there is nothing to replay.
    """
    if settings.pseudolabel_replay:
        return None
    if settings.foundation_model in _OF_MATERIALS_PROJECT:
        _LOGGER.info("--pt_train_file=mp, the set that %s was trained on, is replayed", settings.foundation_model)
        return "mp"
    raise UserError(
        "--multiheads_finetuning=True replays structures of the foundation model's training: give them with "
        "--pt_train_file (files, or one of mp, omat, matpes_pbe, matpes_r2scan), or add --pseudolabel_replay=True to "
        "replay your own structures with its labels, or set it to False to fine-tune on your data alone."
    )


def _names_in_files(settings: TrainingSettings, key: str) -> list[str]:
    """List the heads that the structures of the training files name, in the order in which they come; none or all must.

    Raises:
        UserError: If some structures name their head and others do not.
    """
    assert settings.train_file is not None, "required where no heads are given"
    names: dict[str | None, str] = {}
    for file in files_of(settings.train_file):
        for index, frame in enumerate(iterate_frames(file)):
            name = None if frame.info.get(key) is None else str(frame.info[key])
            names.setdefault(name, f"{file}: structure {index}")
    if None in names and len(names) > 1:
        raise UserError(
            f"{names[None]} has no {key}= in its comment line, where others name their head; name the head of all "
            "structures, or leave out --head_key to train a single head."
        )
    for name, place in names.items():
        if name is not None and (problem := fault_of_name(name)):
            raise UserError(f"{place} names the head {shown(name)}, whose name {problem}; rename it in the file.")
    if None in names:
        _LOGGER.info("--head_key=%s: no structure names a head, so there is one, %s", key, DEFAULT_HEAD)
    return [name for name in names if name is not None]
