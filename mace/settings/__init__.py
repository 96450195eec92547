"""What the user asks for: one typed declaration per setting, read from a command line and a YAML file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mace.settings.data import parse_E0s_literal
    from mace.settings.documentation import settings_table_markdown
    from mace.settings.training import TrainingSettings, parse_training_settings, provided

__all__ = [
    "TrainingSettings",
    "parse_E0s_literal",
    "parse_training_settings",
    "provided",
    "settings_table_markdown",
]

_PLACES = {"parse_E0s_literal": "data", "settings_table_markdown": "documentation"}


def __getattr__(name: str) -> Any:
    """Load the settings of a training only for those who ask for them; the small commands have few of their own."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'training')}"), name)
