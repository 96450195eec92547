"""What the user asks for: one typed declaration per setting, read from a command line and a YAML file."""

from mace.settings.data import parse_E0s_literal
from mace.settings.training import TrainingSettings, parse_training_settings, provided

__all__ = [
    "TrainingSettings",
    "parse_E0s_literal",
    "parse_training_settings",
    "provided",
    "settings_table_markdown",
]


def settings_table_markdown() -> str:
    """Write the tables of all settings as Markdown."""
    # imported late, so that `python -m mace.settings.documentation` does not load that module twice
    from mace.settings.documentation import settings_table_markdown as write

    return write()
