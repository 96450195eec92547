"""The heads of a run: for each, the settings it would have as the only one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mace.errors import UserError
from mace.finetuning.foundation import FROM_FOUNDATION
from mace.formats.reading import iterate_frames, key_of_heads
from mace.model.plan import OUTPUTS
from mace.planning.replay import OF_MATERIALS_PROJECT, asked_by, replays
from mace.properties import PROPERTIES
from mace.settings import TrainingSettings, provided
from mace.settings.declaration import inert_notes, shown
from mace.settings.heads import REPLAY_HEAD, HeadSettings, fault_of_name
from mace.structures.configuration import DEFAULT_HEAD, HEAD_KEY
from mace.structures.prepared import StoredStructures, is_prepared
from mace.structures.sources import files_of

_LOGGER = logging.getLogger(__name__)

FILES = ("train_file", "valid_file", "test_file", "test_dir")
"""Settings of files that a head may share with others."""


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
        is_replay: Whether it is the head of the foundation model, with structures that are replayed.
        keyed: Labels whose key was given for this head alone.
    """

    name: str
    settings: TrainingSettings
    weight: float = 1.0
    shared: frozenset[str] = frozenset()
    key: str = HEAD_KEY
    names: tuple[str, ...] = (DEFAULT_HEAD,)
    is_replay: bool = False
    keyed: frozenset[str] = frozenset()

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
            raise error if self.is_alone else UserError(f"{self.prefix}{error}") from error

    @property
    def prefix(self) -> str:
        """How errors and lines of the log about it begin, if there are others."""
        return "" if self.is_alone else f"Head {self.name}: "


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
        if REPLAY_HEAD in given and settings.foundation_model is not None:
            raise UserError(
                f"--head_key: structures name the head {REPLAY_HEAD}, which is that of the foundation model; say so by "
                f"naming the heads, --heads={','.join(given)}."
            )
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
    for files in FILES:
        if getattr(settings, files) is not None and all(getattr(own, files) is not None for own in given.values()):
            _LOGGER.warning("--%s has no effect: every head has its own in --heads", files)
    if replayed is not None:  # first, as in mace-torch
        given = {REPLAY_HEAD: _for_replay(settings, replayed), **given}
    return {name: _head(settings, name, given, key) for name in names}


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


def _head(settings: TrainingSettings, name: str, heads: Mapping[str, HeadSettings], key: str) -> Head:
    """Put what was given for a head in place of what holds for all; files of all that several heads use are shared."""
    for note in inert_notes(heads[name]):
        _LOGGER.warning("Head %s: %s", name, note)
    given = heads[name].given()
    if given.get("E0s") in FROM_FOUNDATION and settings.foundation_model is None:
        raise UserError(
            f"Head {name}: E0s '{given['E0s']}' are the energies of a foundation model; add --foundation_model."
        )
    keyed = frozenset(label for label in PROPERTIES if given.get(f"{label}_key"))
    weight = given.pop("weight", 1.0)
    is_replay = name == REPLAY_HEAD and replays(settings)
    in_common_files = [
        other for other in heads if other != REPLAY_HEAD or not replays(settings) or _is_shared(settings)
    ]
    if is_replay:  # what was given for other structures does not hold for these
        given = {"mean": None, "std": None, **({} if name in in_common_files else dict.fromkeys(FILES)), **given}
    users = {files: [other for other in in_common_files if getattr(heads[other], files) is None] for files in FILES}
    shared = {files for files in FILES if getattr(settings, files) is not None and len(users[files]) > 1}
    settings_of_head = settings.model_copy(update=given)
    settings_of_head.model_fields_set.update(word for word, value in given.items() if value is not None)
    return Head(name, settings_of_head, weight, frozenset(shared - given.keys()), key, tuple(heads), is_replay, keyed)


def _is_shared(settings: TrainingSettings) -> bool:
    """Return whether the structures to replay are in the training files of all, where they name their head."""
    own = (settings.heads or {}).get(REPLAY_HEAD)
    return own is not None and own.train_file is None and settings.pt_train_file is None and bool(settings.train_file)


def _for_replay(settings: TrainingSettings, own: HeadSettings) -> HeadSettings:
    """Complete what was given for the head of the foundation model in ``--heads``, which comes first."""
    implied = None if own.train_file or settings.pt_train_file or _is_shared(settings) else _implied_set(settings)
    return own.model_copy(
        update={
            "train_file": own.train_file or settings.pt_train_file or implied,
            "valid_file": own.valid_file or settings.pt_valid_file,
            "weight": own.weight or settings.weight_pt_head,
            "E0s": own.E0s or "foundation",
        }
    )


def _implied_set(settings: TrainingSettings) -> str | None:
    """Return the published set to replay if no file is given; None to replay the training structures themselves.

    Raises:
        UserError: If there is nothing to replay.
    """
    if settings.pseudolabel_replay:
        return None
    if settings.foundation_model in OF_MATERIALS_PROJECT:
        _LOGGER.info("--pt_train_file=mp, the set that %s was trained on, is replayed", settings.foundation_model)
        return "mp"
    asked = ", ".join(f"--{name}" for name in asked_by(settings)) or f"--heads with {REPLAY_HEAD}"
    raise UserError(
        f"{asked}: fine-tuning with replay needs structures that the foundation model was trained on; give them with "
        "--pt_train_file (files, or one of mp, omat, matpes_pbe, matpes_r2scan), or add --pseudolabel_replay=True to "
        "replay your own structures with its labels, or --multiheads_finetuning=False to fine-tune on your data alone."
    )


def _names_in_files(settings: TrainingSettings, key: str) -> list[str]:
    """List the heads that the structures of the training files name, in the order in which they come; none or all must.

    Raises:
        UserError: If some structures name their head and others do not.
    """
    assert settings.train_file is not None, "required where no heads are given"
    names: dict[str | None, str] = {}
    for file in files_of(settings.train_file):
        if is_prepared(file):
            present = StoredStructures(file).heads.present()
            names |= {None if name == DEFAULT_HEAD else name: f"{file}: a structure" for name in present}
            continue
        entry = key_of_heads(file, key) or key
        for index, frame in enumerate(iterate_frames(file)):
            name = None if frame.info.get(entry) is None else str(frame.info[entry])
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
