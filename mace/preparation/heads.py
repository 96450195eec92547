"""The heads of a run: for each, the settings it would have as the only one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mace.errors import UserError
from mace.model.plan import OUTPUTS
from mace.settings import TrainingSettings
from mace.settings.declaration import inert_notes
from mace.settings.heads import HeadSettings
from mace.structures.configuration import DEFAULT_HEAD, HEAD_KEY
from mace.structures.formats import iterate_frames
from mace.structures.sources import files_of

_LOGGER = logging.getLogger(__name__)

FILES = ("train_file", "valid_file", "test_file")
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
    """

    name: str
    settings: TrainingSettings
    weight: float = 1.0
    shared: frozenset[str] = frozenset()
    key: str = HEAD_KEY
    names: tuple[str, ...] = (DEFAULT_HEAD,)

    @property
    def is_alone(self) -> bool:
        """Whether the model has no other head."""
        return len(self.names) == 1


def heads_of(settings: TrainingSettings) -> dict[str, Head]:
    """Determine the heads of a run, by name, in the order of the model.

    Args:
        settings: The given settings.

    Raises:
        UserError: If the files name no heads, or the model can have only one.
    """
    key = settings.head_key or HEAD_KEY
    given = settings.heads
    if given is None and settings.head_key:
        given = dict.fromkeys(_names_in_files(settings, key), HeadSettings())
    if not given:
        return {DEFAULT_HEAD: Head(DEFAULT_HEAD, settings)}
    names = tuple(given)
    if len(names) > 1 and "energy" not in OUTPUTS[settings.model]:
        raise UserError(
            f"--heads: --model={settings.model} predicts no energies, and heads differ in these only; train one model "
            "per data set."
        )
    if len(names) == 1:
        _LOGGER.info("The only head is %s: the model is written as one without several heads", names[0])
    heads = {name: _head(settings, name, own, key, names) for name, own in given.items()}
    if settings.select_by != "all" and settings.select_by not in heads:
        raise UserError(f"--select_by: there is no head '{settings.select_by}'; give all or one of {', '.join(heads)}.")
    return heads


def _head(settings: TrainingSettings, name: str, own: HeadSettings, key: str, names: tuple[str, ...]) -> Head:
    """Put what was given for a head in place of what holds for all."""
    for note in inert_notes(own):
        _LOGGER.warning("Head %s: %s", name, note)
    given = own.given()
    weight = given.pop("weight", 1.0)
    shared = frozenset(files for files in FILES if files not in given and getattr(settings, files) is not None)
    if "test_dir" not in given:
        given["test_dir"] = None  # the files of a folder say nothing of heads
    settings_of_head = settings.model_copy(update=given)
    settings_of_head.model_fields_set.update(name for name, value in given.items() if value is not None)
    return Head(name, settings_of_head, weight, shared if len(names) > 1 else frozenset(), key, names)


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
    if None in names:
        _LOGGER.info("--head_key=%s: no structure names a head, so there is one, %s", key, DEFAULT_HEAD)
    return [name for name in names if name is not None]
