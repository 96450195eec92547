"""Which errors are shown to users, under which name and unit, and the tables made of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from mace.conditions import SETTABLE
from mace.console.terminal import PlainConsole
from mace.errors import UserError
from mace.properties import PROPERTIES
from mace.structures.collection import StructureCollection
from mace.structures.reference_energies import Residual
from mace.units import DEBYE, MILLI

_PER_MILLI = 1.0 / MILLI
_TO_MILLIDEBYE = 1.0 / (DEBYE * MILLI)
_UNITS_OF_MACE_TORCH = str.maketrans({"/": " / ", "\u00b7": " ", "\u00c5": "A", "\u00b2": "^2", "\u00b3": "^3"})
MISSING_IN_TABLE = "-"
MISSING_IN_LINE = "n/a"


@dataclass(frozen=True)
class Phrase:
    """One error in the line written after an epoch, ``label=value unit``.

    Attributes:
        label: Word before the equals sign.
        metric: Name among the metrics of `mace.reporting.metrics.ErrorAccumulator`.
        unit: Unit after the number.
        factor: From the metric's unit to the unit shown.
    """

    label: str
    metric: str
    unit: str
    factor: float = _PER_MILLI

    def render(self, metrics: Mapping[str, float], width: int = 8) -> str:
        """Return the phrase with two decimals, or with ``n/a`` in place of a number that does not exist."""
        value = metrics.get(self.metric)
        number = MISSING_IN_LINE if value is None else f"{value * self.factor:.2f}"
        return f"{self.label}={number:>{width}} {self.unit}"


@dataclass(frozen=True)
class Column:
    """One error in the tables, and how the line after an epoch says it.

    Attributes:
        title: Heading in the table.
        metrics: Names of metrics; the first that exists is shown.
        digits: Decimals in the table.
        factor: From the metric's unit to that of the title.
        phrases: Phrases for the line; the first whose metric exists is used, none if the line leaves the error out.
    """

    title: str
    metrics: tuple[str, ...]
    digits: int
    factor: float = _PER_MILLI
    phrases: tuple[Phrase, ...] = ()

    def render(self, metrics: Mapping[str, float]) -> str:
        """Return the text of a cell, ``-`` if there is no such error."""
        name = next((name for name in self.metrics if metrics.get(name) is not None), None)
        return MISSING_IN_TABLE if name is None else f"{metrics[name] * self.factor:.{self.digits}f}"

    def phrase(self, metrics: Mapping[str, float]) -> Phrase | None:
        """Return the phrase that fits the metrics, the first one if none does."""
        fitting = (phrase for phrase in self.phrases if metrics.get(phrase.metric) is not None)
        return next(fitting, self.phrases[0] if self.phrases else None)


@dataclass(frozen=True)
class ErrorTable:
    """What one choice of ``--error_table`` shows.

    Attributes:
        columns: Columns after the one with the names.
        loss_format: How the loss is written in the line after an epoch.
        width: Least number of characters of a number in that line.
    """

    columns: tuple[Column, ...]
    loss_format: str = ".8f"
    width: int = 8

    def phrases(self, metrics: Mapping[str, float]) -> list[Phrase]:
        """Return the phrases of the line after an epoch, in order."""
        found = (column.phrase(metrics) for column in self.columns)
        return [phrase for phrase in found if phrase is not None]

    def in_words(self, metrics: Mapping[str, float], width: int = 0) -> str:
        """Return the phrases as text, each number with at least ``width`` characters."""
        return ", ".join(phrase.render(metrics, width) for phrase in self.phrases(metrics))


def _error(kind: str, name: str, per_atom: bool = False) -> Column:
    """Show an error of a property in thousandths of its unit."""
    row = PROPERTIES[name]
    symbol, unit = row.suffix.upper(), f"m{row.unit.translate(_UNITS_OF_MACE_TORCH)}"
    metric = f"{kind.lower()}_{row.suffix}{'_per_atom' * per_atom}"
    phrase = Phrase(f"{kind}_{symbol}{'_per_atom' * per_atom}", metric, unit)
    return Column(f"{kind} {symbol} / {unit}{' / atom' * per_atom}", (metric,), 1, phrases=(phrase,))


def _relative(kind: str, symbol: str, word: str = "relative", digits: int = 2) -> Column:
    metric = f"rel_{kind.lower()}_{symbol.lower()}"
    return Column(f"{word} {symbol} {kind} %", (metric,), digits, factor=1.0)


def _stress(kind: str, virials: Phrase) -> Column:
    """Stress where it is labeled, else virials (in total in the table, as ``virials`` says in the line)."""
    stress = f"{kind.lower()}_stress"
    return Column(
        f"{kind} Stress (Virials) / meV / A (A^3)",
        (stress, f"{kind.lower()}_virials"),
        1,
        phrases=(Phrase(f"{kind}_stress", stress, "meV / A^3"), virials),
    )


def _dipole(kind: str, label: str, digits: int) -> Column:
    metric = f"{kind.lower()}_mu_per_atom"
    phrase = Phrase(f"{kind}_{label}_per_atom", metric, "mDebye", _TO_MILLIDEBYE)
    return Column(f"{kind} MU / mDebye / atom", (metric,), digits, _TO_MILLIDEBYE, (phrase,))


_DIPOLE_IN_CHARGE_UNITS = Column(
    "RMSE MU / me A / atom",
    ("rmse_mu_per_atom",),
    2,
    phrases=(Phrase("RMSE_MU_per_atom", "rmse_mu_per_atom", "me A"),),
)
# The table has no "milli" in its title and shows the plain unit; the line has it and shows thousandths.
_POLARIZABILITY = Column(
    "RMSE ALPHA e A^2 / V / atom",
    ("rmse_polarizability_per_atom",),
    5,
    factor=1.0,
    phrases=(Phrase("RMSE_polarizability_per_atom", "rmse_polarizability_per_atom", "me A^2 / V"),),
)
_RMSE_VIRIALS = Phrase("RMSE_virials_per_atom", "rmse_virials_per_atom", "meV")
_MAE_VIRIALS = Phrase("MAE_virials", "mae_virials", "meV")
_PER_ATOM_RMSE = (_error("RMSE", "energy", per_atom=True), _error("RMSE", "forces"), _relative("RMSE", "F"))
_PER_ATOM_MAE = (_error("MAE", "energy", per_atom=True), _error("MAE", "forces"), _relative("MAE", "F"))

ERROR_TABLES: dict[str, ErrorTable] = {
    "PerAtomRMSE": ErrorTable(_PER_ATOM_RMSE),
    "TotalRMSE": ErrorTable((_error("RMSE", "energy"), _error("RMSE", "forces"), _relative("RMSE", "F"))),
    "PerAtomRMSEstressvirials": ErrorTable((*_PER_ATOM_RMSE, _stress("RMSE", _RMSE_VIRIALS))),
    "PerAtomMAEstressvirials": ErrorTable((*_PER_ATOM_MAE, _stress("MAE", _MAE_VIRIALS))),
    "PerAtomMAE": ErrorTable(_PER_ATOM_MAE),
    "TotalMAE": ErrorTable((_error("MAE", "energy"), _error("MAE", "forces"), _relative("MAE", "F"))),
    "DipoleRMSE": ErrorTable((_dipole("RMSE", "MU", 2), _relative("RMSE", "MU", digits=1))),
    "DipoleMAE": ErrorTable((_dipole("MAE", "MU", 2), _relative("MAE", "MU", digits=1))),
    "DipolePolarRMSE": ErrorTable(
        (_DIPOLE_IN_CHARGE_UNITS, _relative("RMSE", "MU", digits=1), _POLARIZABILITY), loss_format=".4f", width=0
    ),
    "EnergyDipoleRMSE": ErrorTable(
        (
            _error("RMSE", "energy", per_atom=True),
            _error("RMSE", "forces"),
            _relative("RMSE", "F", "rel", 1),
            _dipole("RMSE", "Mu", 1),
            _relative("RMSE", "MU", "rel", 1),
        )
    ),
}
"""What every choice of ``--error_table`` shows; metrics are in eV, Angstrom and e*Angstrom."""


_TABLES_OF = {"energy": "PerAtom", "dipole": "Dipole"}
"""How the names of the tables begin that show what models read out; those of the measures follow."""


def tables_of(outputs: Sequence[str], measure: str, stress: bool) -> list[str]:
    """List the tables that show every error of what a model predicts.

    Args:
        outputs: What it predicts, of `mace.properties.PROPERTIES`.
        measure: ``RMSE`` or ``MAE``.
        stress: Whether to show that of the stress with those of energy and forces.
    """
    found = [f"{start}{measure}" for name, start in _TABLES_OF.items() if name in outputs]
    return [f"{table}stressvirials" if stress and table.startswith("PerAtom") else table for table in found]


def tables_in_brief(outputs: Sequence[str], stress: bool) -> list[str]:
    """List the same for RMSE, with energies and dipoles in one table."""
    if not {"energy", "dipole"} <= set(outputs):
        return tables_of(outputs, "RMSE", stress)
    return ["EnergyDipoleRMSE", *(["PerAtomRMSEstressvirials"] if stress else [])]


def find_error_table(kind: str) -> ErrorTable:
    """Return the declaration of an error table.

    Raises:
        UserError: If there is no table of that name.
    """
    if kind not in ERROR_TABLES:
        raise UserError(f"There is no error table '{kind}'. Choose --error_table from {', '.join(ERROR_TABLES)}.")
    return ERROR_TABLES[kind]


def epoch_line(epoch: int | None, head: str, loss: float, metrics: Mapping[str, float], error_table: str) -> str:
    """Say the validation errors of one head in one line, which other programs parse.

    Args:
        epoch: Epoch, counted from zero; ``None`` before the first step.
        head: Name of the head.
        loss: Validation loss.
        metrics: What `mace.reporting.metrics.ErrorAccumulator.result` returns.
        error_table: One of `ERROR_TABLES`.

    Returns:
        For example ``Epoch 3: head: Default, loss=0.01234567, RMSE_E_per_atom=   12.34 meV, RMSE_F=   56.78 meV / A``.
        An error that does not exist is ``n/a``, in the same place and width as a number.

    Raises:
        UserError: If there is no such error table.
    """
    table = find_error_table(error_table)
    start = "Initial" if epoch is None else f"Epoch {epoch}"
    words = [f"{start}: head: {head}", f"loss={loss:{table.loss_format}}", table.in_words(metrics, table.width)]
    return ", ".join(word for word in words if word)


def errors_in_words(kind: str) -> Callable[[Mapping[str, float]], str]:
    """Return what says the errors of an evaluation in a few words, as `epoch_line` does.

    Raises:
        UserError: If there is no table of that name.
    """
    table = find_error_table(kind)
    return table.in_words


def contents_line(name: str, structures: StructureCollection) -> str:
    """Say how many structures of a set have each label, in one line with the words and the order of mace-torch.

    Args:
        name: Of the set, such as ``Total Training set``.
        structures: Its structures.

    Returns:
        For example ``Total Training set [energy: 10, stress: 0, virials: 0, ..., forces: 10, charges: 0]``.
    """
    labels = structures.label_counts()
    given = {word: len(structures) * (word in structures.condition_names) for word in SETTABLE}
    words = {
        **{label: labels[label] for label in ("energy", "stress", "virials")},
        "dipole components": 3 * labels["dipole"],
        "head": len(structures),
        "elec_temp": given["elec_temp"],
        "total_charge": given["total_charge"],
        "polarizability": labels["polarizability"],
        "total_spin": given["total_spin"],
        **{label: labels[label] for label in ("forces", "charges")},
    }
    return f"{name} [{', '.join(f'{word}: {count}' for word, count in words.items())}]"


def error_table(kind: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the errors of several sets as a plain-text table; no row is ever wrapped.

    Args:
        kind: One of `ERROR_TABLES`.
        rows: Metrics of every set, in eV, Angstrom and e*Angstrom; names that start with ``train`` come first, those
            with ``valid`` next, the others after them, each group in alphabetical order.

    Returns:
        The table, without a newline at its end; ``-`` stands where a set has no such error.

    Raises:
        UserError: If there is no table of that name.
    """
    columns = find_error_table(kind).columns
    table = Table(box=box.ASCII2, show_lines=False)
    table.add_column("config_type", no_wrap=True)
    for column in columns:
        table.add_column(Text(column.title), justify="right", no_wrap=True)
    first = {"train": 0, "valid": 1}
    for name in sorted(rows, key=lambda name: (first.get(re.split("[_/]", name)[0], 2), name)):
        table.add_row(Text(name), *(column.render(rows[name]) for column in columns))
    return _drawn(table)


def residual_table(residuals: Sequence[Residual]) -> str:
    """Draw what fitted reference energies leave unexplained, by config_type.

    Args:
        residuals: One entry for each type.

    Returns:
        The table, without a newline at its end.
    """
    table = Table(box=box.ASCII2, show_lines=False)
    for title in ("config_type", "structures", "RMS / meV / atom", "largest / meV / atom", "of"):
        table.add_column(title, justify="left" if title in ("config_type", "of") else "right", no_wrap=True)
    for item in residuals:
        numbers = (str(item.structures), f"{item.rms / MILLI:.1f}", f"{item.largest / MILLI:.1f}")
        table.add_row(Text(item.config_type), *numbers, Text(item.where))
    return _drawn(table)


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a plain-text table of given cells, the first column to the left and the others to the right.

    Returns:
        The table, without a newline at its end.
    """
    table = Table(box=box.ASCII2, show_lines=False)
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return _drawn(table)


def _drawn(table: Table) -> str:
    output = io.StringIO()
    # Wider than any table, so that rich has no reason to shorten a cell.
    PlainConsole(file=output, width=100_000, color_system=None, force_terminal=False).print(table, soft_wrap=True)
    return "\n".join(line.rstrip() for line in output.getvalue().rstrip("\n").splitlines())
