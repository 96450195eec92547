"""Questions on a terminal, each with a proposed answer."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.prompt import InvalidResponse, Prompt, PromptBase

from mace.errors import UserError
from mace.quickstart.facts import Facts, Machine
from mace.quickstart.proposal import SIZES, choose_size, choose_valid_fraction
from mace.settings.other_commands import QuickstartSettings, read_duration


class _DurationPrompt(PromptBase[float]):
    """Asks for a duration, or nothing for no limit."""

    response_type = float
    validate_error_message = "Write a duration such as 3min, 2h or 1h30min, or nothing."

    def process_response(self, value: str) -> float:
        """Read the answer."""
        if not value.strip():
            return 0.0
        try:
            seconds = float(read_duration(value))
        except ValueError:
            seconds = 0.0
        if seconds <= 0.0:
            raise InvalidResponse(self.validate_error_message)
        return seconds


class _FractionPrompt(PromptBase[float]):
    """Asks for a number between zero and one."""

    response_type = float
    validate_error_message = "Write a number between 0 and 1, such as 0.1."

    def process_response(self, value: str) -> float:
        """Read the answer."""
        number = super().process_response(value)
        if not 0.0 < number < 1.0:
            raise InvalidResponse(self.validate_error_message)
        return number


def ask_for_files(console: Console) -> list[str]:
    """Ask for the training files."""
    answer = Prompt.ask("File with labeled structures", console=console).strip()
    if not answer:
        raise UserError("Name a file with labeled structures: mace_quickstart train.xyz")
    return answer.split() if not os.path.exists(answer) else [answer]


def ask(settings: QuickstartSettings, facts: Facts, machine: Machine, console: Console) -> QuickstartSettings:
    """Ask for what matters most and was not given; Enter takes what is proposed.

    Args:
        settings: What was given.
        facts: About the data.
        machine: Where the training will run.
        console: A terminal.

    Returns:
        The settings with the answers.
    """
    given, answers = settings.model_fields_set, dict[str, Any]()
    if "size" not in given and not {"num_channels", "hidden_irreps"} & given:
        for name, preset in SIZES.items():
            console.print(
                f"  {name}: {preset.channels} channels, max_L {preset.max_L}; {preset.words}", highlight=False
            )
        proposed, why = choose_size(None, machine)
        console.print(f"  proposed: {proposed}, {why}", highlight=False)
        answers["size"] = Prompt.ask("Size of the model", console=console, choices=list(SIZES), default=proposed)
    if "valid_file" not in given and "valid_fraction" not in given:
        fraction, reason = choose_valid_fraction(facts.structures)
        console.print(f"  {reason}", highlight=False)
        answers["valid_fraction"] = _FractionPrompt.ask(
            "Fraction of the structures for validation", console=console, default=fraction
        )
    if "time" not in given and "max_num_epochs" not in given:
        seconds = _DurationPrompt.ask(
            "Time the training may take, such as 30min (nothing: as long as is sensible)",
            console=console,
            default=0.0,
            show_default=False,
        )
        answers |= {"time": seconds} if seconds else {}
    return with_answers(settings, answers)


def with_answers(settings: QuickstartSettings, answers: dict[str, Any]) -> QuickstartSettings:
    """Add answers to what was given.

    Raises:
        UserError: If an answer is not valid.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    try:
        return QuickstartSettings(**{**given, **answers})
    except ValidationError as error:
        raise UserError(str(error)) from error
