"""Which head of models that have several a calculator uses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from ase import Atoms

from mace.errors import UserError
from mace.model.heads import find_head
from mace.structures.configuration import HEAD_KEY

_LOGGER = logging.getLogger(__name__)


class HeadChoice:
    """The head that all models of a calculator use, unless a structure has its own.

    Args:
        models: Names of the heads of each model, and what has it, for messages.
        head: The head that is asked for; None for the only one, or one called default.

    Attributes:
        available: Names of the heads of the first model that has several, or of the only one.
        chosen: The head in use.

    Raises:
        UserError: If a model has no such head, or several and none of them is the default.
    """

    def __init__(self, models: Sequence[tuple[Sequence[str], str]], head: str | None) -> None:
        self._models = list(models)
        names = [of_model for of_model, _ in models]
        self.available = list(next((of_model for of_model in names if len(of_model) > 1), names[0]))
        self._warned = False
        self.chosen = self.find(head)
        if len(self.available) > 1:
            _LOGGER.info("Using the head %s of %s", self.chosen, ", ".join(self.available))

    def find(self, head: str | None) -> str:
        """Return the name of the head that is meant; see the class."""
        found = [(find_head(names, head, place), len(names) > 1) for names, place in self._models]
        meant = list(dict.fromkeys(name for name, one_of_several in found if one_of_several))
        if len(meant) > 1:
            raise UserError(
                f"MACECalculator: where no head is named, the models use {' and '.join(meant)}; name one with head=."
            )
        return meant[0] if meant else found[0][0]

    def of_structure(self, atoms: Atoms) -> str:
        """Return the head that a structure asks for, or the chosen one."""
        own = atoms.info.get(HEAD_KEY)
        return self.chosen if own is None or len(self.available) == 1 else self.find(str(own))

    def warn_of_other(self, atoms: Atoms) -> None:
        """Warn once if a structure asks for another head than the chosen one, which is used."""
        own = atoms.info.get(HEAD_KEY)
        if own is None or str(own) == self.chosen or len(self.available) == 1 or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"info['{HEAD_KEY}'] of the structure is '{own}', but the calculator uses the head '{self.chosen}'; set "
            "calculator.head, or use calculator.evaluate, which obeys the structure. This is said once.",
            stacklevel=2,
        )
