"""Settings of several heads: levels of theory that share a model but its readouts and constants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mace.errors import UserError
from mace.settings.command_line import Given, advice
from mace.settings.data import read_E0s
from mace.settings.declaration import Settings, declarations, nearest, read_literal, setting, shown
from mace.settings.labels import Files, LabelSettings
from mace.settings.reading import build_settings

REPLAY_HEAD = "pt_head"
"""Name of the head of a foundation model whose training structures are replayed, as in mace-torch."""

_HEADS = "Heads"
_ONE_NUMBER = "one average number of neighbors is measured over the structures of all heads"
_LONGEST_NAME = 100
_KEYS = {"info_keys": "Atoms.info", "arrays_keys": "Atoms.arrays"}


class HeadSettings(LabelSettings):
    """What is special about one head; what is not given is as for all heads."""

    train_file: Files | None = setting(None, "structures to train on", kind="several", placeholder="FILE...")
    valid_file: Files | None = setting(None, "structures to validate on", kind="several", placeholder="FILE...")
    valid_fraction: float | None = setting(None, "fraction of the training set to validate on", gt=0, lt=1)
    test_file: Files | None = setting(None, "structures to test on", kind="several", placeholder="FILE...")
    test_dir: str | None = setting(None, "folder with test sets, each a file or a folder of parts", placeholder="DIR")
    weight: float | None = setting(None, "weight of the structures of this head in the loss", gt=0)
    config_type_weights: dict[str, Annotated[float, Field(ge=0)]] | None = setting(
        None,
        "weight of the structures of each config_type",
        expects="a dictionary of weights of at least 0 such as {'Default': 1.0, 'surface': 2.0}",
    )
    keep_isolated_atoms: bool | None = setting(None, "train on isolated atoms too")
    E0s: Annotated[str | dict[int, float] | None, BeforeValidator(read_E0s)] = setting(
        None, "energies of isolated atoms", unit="eV", placeholder="isolated|average|FILE|{Z:E,...}"
    )
    scaling: Literal["std_scaling", "rms_forces_scaling", "no_scaling"] | None = setting(
        None, "what the learned energies are measured in"
    )
    mean: float | None = setting(None, "shift of the energy per atom", unit="eV")
    std: float | None = setting(None, "scale of the learned energies", unit="eV or eV/Angstrom", gt=0)
    info_keys: dict[str, str] | None = setting(None, "keys of labels of whole structures, by property")
    arrays_keys: dict[str, str] | None = setting(None, "keys of labels of atoms, by property")
    head_key: str | None = setting(None, "name of heads", inert="--head_key outside of --heads holds for all heads")
    atomic_numbers: str | list[int] | None = setting(
        None,
        "elements",
        inert="the elements are those in the data of all heads, or of --atomic_numbers outside of --heads",
    )
    statistics_file: str | None = setting(None, "file statistics.json of mace_prepare_data, for E0s, scale and shift")
    compute_avg_num_neighbors: bool | None = setting(
        None, "measure the mean number of neighbors", inert=_ONE_NUMBER, inactive=(True,)
    )
    avg_num_neighbors: float | None = setting(None, "mean number of neighbors", inert=_ONE_NUMBER)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show what was given only."""
        return self.given().items()

    def given(self) -> dict[str, Any]:
        """Return what was given, by name, with the keys of ``info_keys`` and ``arrays_keys`` under their own names."""
        found = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for place in _KEYS:  # which win, as in mace-torch
            found |= {f"{name}_key": key for name, key in found.pop(place, {}).items()}
        return {name: value for name, value in found.items() if not declarations(type(self))[name].inert}


def _read_table(value: str) -> Any:
    """Read heads written as a literal, a file, or names separated by commas."""
    text = value.strip()
    if text[:1] in ("{", "["):
        return read_literal(text)
    if Path(text).suffix.lower() in (".yaml", ".yml", ".json") or "/" in text:
        from mace.settings.yaml_file import read_table  # needed by few runs

        table = read_table(text, "names")
        return table["heads"] if list(table) == ["heads"] else table  # as it would stand in --config
    return [name.strip() for name in text.split(",")] if text else []


def _read_heads(value: Any) -> Any:
    """Turn what a shell, a YAML file or a separate file can hold into settings of heads, by name."""
    if isinstance(value, str):
        try:
            value = _read_table(value)
        except UserError as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"is not written as a dictionary of heads: {error}.") from error
    if isinstance(value, list):
        value = [(name, None) for name in value]
    elif isinstance(value, dict):
        value = list(value.items())
    else:
        raise ValueError(
            f"must be a dictionary of heads, such as {{'dft': {{'train_file': 'dft.xyz'}}}}, not {shown(value)}."
        )
    heads = dict[str, HeadSettings]()
    for given, table in value:
        if not isinstance(given, (str, int)):
            raise ValueError(f"must have the name of a head, not {shown(given)}.")
        name = str(given)
        if problem := fault_of_name(name):
            raise ValueError(f"has the head {shown(name)}, whose name {problem}.")
        if name in heads:
            raise ValueError(f"names the head {shown(name)} twice.")
        heads[name] = table if isinstance(table, HeadSettings) else _read_head(name, table)
    if not heads:
        raise ValueError("names no head.")
    return heads


def fault_of_name(name: str) -> str:
    """Say what is wrong with the name of a head, which becomes part of file names and of lists; nothing if all is well.

    >>> fault_of_name("pbe+d3"), fault_of_name("a/b")
    ('', "has the character '/'")
    """
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "begins or ends with a space"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    wrong = next((character for character in name if not character.isprintable() or character in "/\\,"), None)
    return "" if wrong is None else f"has the character {wrong!r}"


def _read_head(name: str, table: Any) -> HeadSettings:
    """Check what is given for one head."""
    if table is None or table == "":
        table = {}
    if not isinstance(table, dict):
        raise ValueError(f"must have a dictionary for the head {shown(name)}, not {shown(table)}.")
    known = declarations(HeadSettings)
    given = {}
    for key, value in table.items():
        word = str(key).lstrip("-").replace("-", "_")
        if word not in known:
            match = nearest(word[:60], known)
            hint = f"did you mean {match}?" if match else f"there are {', '.join(known)}."
            raise ValueError(f"has the unknown key {shown(key)} for the head {name}; {hint}")
        if value is not None:
            given[word] = Given(value, f"{name}: {word}")
    try:
        head = build_settings(HeadSettings, given)
    except UserError as error:
        raise ValueError(f"has a mistake in the head {' '.join(str(error).splitlines())}") from error
    for place, where in _KEYS.items():
        for label in getattr(head, place) or {}:
            if f"{label}_key" not in known:
                labels = [word.removesuffix("_key") for word in known if word.endswith("_key")]
                raise ValueError(
                    f"has the unknown label {shown(label)} in {place} of the head {name}, which maps labels to "
                    f"names in {where}; {advice(label[:60], labels, '')}"
                )
    return head


Heads = Annotated[dict[str, HeadSettings], BeforeValidator(_read_heads)]
"""What ``heads`` may be."""


class HeadsSettings(Settings):
    """The heads, how their structures are mixed, and by which the best model is chosen."""

    heads: Heads | None = setting(
        None,
        "heads of a model for several levels of theory, each with what is special about it: train_file, valid_file, "
        "valid_fraction, test_file, keys, E0s, scaling, mean, std, weight, config_type_weights, keep_isolated_atoms; a "
        "dictionary, a YAML or JSON file with one, or names, whose structures are then found in train_file by head_key",
        group=_HEADS,
        placeholder="{NAME:{...},...}|FILE|NAME,...",
        expects="a dictionary such as {'dft': {'train_file': 'dft.xyz'}, 'ccsd': {'train_file': 'ccsd.xyz'}}",
        default_words="one head, Default",
        reads_text=True,
    )
    head_key: str | None = setting(
        None,
        "entry of the comment line that names the head of a structure, in files for several heads; given without "
        "heads, there is a head for every name in train_file",
        group=_HEADS,
        placeholder="KEY",
        default_words="head",
        may_be_empty=True,
    )
    head_sampling: Literal["all", "balanced", "weight"] = setting(
        "all",
        "structures of each head in an epoch: all, each once; balanced, as many of each head, by repeating or leaving "
        "out; weight, in proportion to the weights of the heads, which then do not count in the loss",
        group=_HEADS,
    )
    select_by: str = setting(
        "all",
        "what chooses the best model, lowers the learning rate and counts patience: the validation losses of all "
        "heads, averaged with their shares of the structures of an epoch, or that of the named head",
        group=_HEADS,
        placeholder="all|HEAD",
    )
    skip_evaluate_heads: str = setting(
        REPLAY_HEAD,
        "heads left out of the final tables, separated by commas",
        group=_HEADS,
        placeholder="NAME,...",
        may_be_empty=True,
    )
