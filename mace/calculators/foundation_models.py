"""Loaders of published models under the names scripts already call; they say what is missing instead of failing."""

from __future__ import annotations

from typing import Any, NoReturn

from mace.errors import UserError


def mace_mp(*arguments: Any, **settings: Any) -> NoReturn:
    """Refuse to load a materials model of the MACE-MP family.

    Raises:
        UserError: Always; these models cannot be opened yet.
    """
    _refuse("mace_mp")


def mace_off(*arguments: Any, **settings: Any) -> NoReturn:
    """Refuse to load a model for organic molecules of the MACE-OFF family.

    Raises:
        UserError: Always; these models cannot be opened yet.
    """
    _refuse("mace_off")


def mace_omol(*arguments: Any, **settings: Any) -> NoReturn:
    """Refuse to load a model of the MACE-OMOL family.

    Raises:
        UserError: Always; these models cannot be opened yet.
    """
    _refuse("mace_omol")


def mace_anicc(*arguments: Any, **settings: Any) -> NoReturn:
    """Refuse to load the MACE model of the ANI-1ccx data.

    Raises:
        UserError: Always; these models cannot be opened yet.
    """
    _refuse("mace_anicc")


def mace_polar(*arguments: Any, **settings: Any) -> NoReturn:
    """Refuse to load a model with long-range electrostatics.

    Raises:
        UserError: Always; these models cannot be opened yet.
    """
    _refuse("mace_polar")


def _refuse(loader: str) -> NoReturn:
    raise UserError(
        f"{loader}: published foundation models can be neither downloaded nor opened yet; train a model with "
        "mace_run_train and open it with MACECalculator(model_paths=...)."
    )
