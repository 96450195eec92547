"""Settings of the labels: under which names and in which units files carry them, for all files or one by one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mace.errors import UserError
from mace.settings.command_line import Given
from mace.settings.declaration import Settings, as_list, declarations, read_literal, setting, shown
from mace.settings.reading import build_settings
from mace.units import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS

_KEY_DEFAULT = "REF_{0} if present, else {0}"

EnergyUnit = Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"]
LengthUnit = Literal["Angstrom", "bohr", "nm"]
StressUnit = Literal["eV/Angstrom^3", "GPa", "kbar", "Hartree/bohr^3"]

_SPELLINGS = {
    "ev": "eV",
    "mev": "meV",
    "ha": "Hartree",
    "eh": "Hartree",
    "ry": "Rydberg",
    "a": "Angstrom",
    "ang": "Angstrom",
    "a0": "bohr",
    "ev/a^3": "eV/Angstrom^3",
    "ev/ang^3": "eV/Angstrom^3",
    "ha/bohr^3": "Hartree/bohr^3",
}
"""Other ways to write units, in lower case."""


def _spell_unit(word: Any) -> Any:
    """Write a unit as it is declared, whatever the case, the sign of powers and the usual short names."""
    if not isinstance(word, str):
        return word
    plain = (
        word.strip()
        .lower()
        .replace("**", "^")
        .replace("\N{ANGSTROM SIGN}", "a")
        .replace("\N{LATIN SMALL LETTER A WITH RING ABOVE}", "a")
    )
    by_lower = {unit.lower(): unit for unit in (*ENERGY_UNITS, *LENGTH_UNITS, *STRESS_UNITS)}
    return by_lower.get(plain, _SPELLINGS.get(plain, word))


def _key(help: str, default_words: str) -> Any:
    """Declare the key of a label, which may be empty: then there is no such label."""
    return setting(
        None,
        help,
        group="Labels and keys",
        placeholder="KEY",
        default_words=default_words,
        may_be_empty=True,
    )


class LabelSettings(Settings):
    """Under which names and in which units the files carry their labels."""

    energy_key: str | None = _key(
        "name of the total energies in the files; with None or nothing here there is no such label, as for the next "
        "keys",
        _KEY_DEFAULT.format("energy"),
    )
    forces_key: str | None = _key("name of the forces", _KEY_DEFAULT.format("forces"))
    stress_key: str | None = _key("name of the stresses, +dE/dstrain/V", _KEY_DEFAULT.format("stress"))
    virials_key: str | None = _key("name of the virials, -dE/dstrain", _KEY_DEFAULT.format("virials"))
    dipole_key: str | None = _key("name of the dipoles", _KEY_DEFAULT.format("dipole"))
    polarizability_key: str | None = _key(
        "name of the polarizabilities, e^2*length^2/energy", _KEY_DEFAULT.format("polarizability")
    )
    charges_key: str | None = _key("name of the atomic charges [e]", _KEY_DEFAULT.format("charges"))
    total_charge_key: str | None = _key(
        "name of the total charges [e], for models with that condition (--embedding_specs)", "total_charge or charge"
    )
    total_spin_key: str | None = _key("name of the total spins, for models with that condition", "total_spin or spin")
    elec_temp_key: str | None = _key("name of the electronic temperatures, for models with that condition", "elec_temp")
    energy_unit: Annotated[EnergyUnit, BeforeValidator(_spell_unit)] | None = setting(
        None,
        "unit of energies and virials in the files; with length_unit it gives that of forces",
        group="Labels and keys",
        default_words="eV",
        expects=f"one of {', '.join(ENERGY_UNITS)}",
    )
    length_unit: Annotated[LengthUnit, BeforeValidator(_spell_unit)] | None = setting(
        None,
        "unit of positions and cells in the files, and of the length in dipoles",
        group="Labels and keys",
        default_words="Angstrom",
        expects=f"one of {', '.join(LENGTH_UNITS)}",
    )
    stress_unit: Annotated[StressUnit, BeforeValidator(_spell_unit)] | None = setting(
        None,
        "unit of stresses in the files, whatever the other units are",
        group="Labels and keys",
        default_words="eV/Angstrom^3",
        expects=f"one of {', '.join(STRESS_UNITS)}",
    )


class FileSettings(LabelSettings):
    """A file, or several, with names and units of their own; what is not given is as for all other files."""

    file: str | list[str] = setting(..., "a path, a pattern, or a list of them", kind="several", placeholder="FILE...")
    config_type_weights: dict[str, Annotated[float, Field(ge=0)]] | None = setting(
        None,
        "weight of the structures of each config_type in these files",
        expects="a dictionary of weights of at least 0 such as {'Default': 1.0, 'surface': 2.0}",
        default_words="as for all files",
    )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show what was given only."""
        return [(name, value) for name, value in super().__repr_args__() if value is not None]


def _read_files(value: Any) -> Any:
    """Turn tables among file names into `FileSettings`, from what a shell or a YAML file can hold."""
    known, read = declarations(FileSettings), []
    for item in as_list(value):
        if isinstance(item, str) and item.lstrip().startswith("{"):
            try:
                item = read_literal(item.strip())
            except ValueError as error:
                raise ValueError(f"has a table that is not written as a dictionary: {shown(item)}.") from error
        if isinstance(item, dict):
            table = {str(key).replace("-", "_"): entry for key, entry in item.items()}
            for key in table:
                if key not in known:
                    match = difflib.get_close_matches(key, known, n=1)
                    hint = f"did you mean {match[0]}?" if match else f"there are {', '.join(known)}."
                    raise ValueError(f"has the unknown key {shown(key)} in a table; {hint}")
            if not table.get("file"):
                raise ValueError(f"has a table without the key 'file': {shown(item)}.")
            given = {key: Given(entry, f"{table['file']}: {key}") for key, entry in table.items()}
            try:
                item = build_settings(FileSettings, given)
            except UserError as error:
                raise ValueError(f"has a table with a mistake: {' '.join(str(error).splitlines())}") from error
        read.append(item)
    if not read or not all(read):
        raise ValueError("no file")
    return read if isinstance(value, list) else read[0]


Files = Annotated[str | FileSettings | list[str | FileSettings], BeforeValidator(_read_files)]
"""What ``train_file`` and its like may be."""
