"""Energies of isolated atoms that are missing, contradictory or absurd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from malformed_inputs.cases import Build, add, sound, text_case, write

ATOM = "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom {0}\n{1} 0 0 0\n"
OXYGEN, HYDROGEN = ATOM.format("REF_energy=-432.0", "O"), ATOM.format("REF_energy=-13.6", "H")


def _json(content: str | bytes, name: str = "E0s.json") -> Build:
    return lambda folder: [f"--train_file={write(folder, sound())}", f"--E0s={write(folder, content, name)}"]


def _typed(words: str) -> Build:
    return lambda folder: [f"--train_file={write(folder, sound())}", f"--E0s={words}"]


def _in_file(text: str, *flags: str) -> Callable[[Path], list[str]]:
    return lambda folder: [f"--train_file={write(folder, text)}", *flags]


for _name, _content, _words in (
    ("texts", '{"H": "-13.6", "O": "-432.0"}', "the reference energy of H is '-13.6'"),
    ("nothing for an element", '{"H": null, "O": -432.0}', "the reference energy of H is None"),
    ("NaN", '{"H": NaN, "O": -432.0}', "the reference energy of H is nan"),
    ("an infinite energy", '{"H": -Infinity, "O": -432.0}', "the reference energy of H is -inf"),
    ("yes and no", '{"H": true, "O": -432.0}', "the reference energy of H is True"),
    ("lists", '{"H": [-13.6], "O": [-432.0]}', "the reference energy of H is [-13.6]"),
    ("tables", '{"Default": {"H": -13.6, "O": -432.0}}', "'Default' is not a chemical element"),
    ("a list", "[-13.6, -432.0]", "map elements to eV"),
    ("a number", "-13.6", "map elements to eV"),
    ("an empty table", "{}", "map elements to eV"),
    ("no oxygen", '{"H": -13.6}', "no reference energy for O"),
    ("an unknown element", '{"H": -13.6, "Ox": -432.0}', "'Ox' is not a chemical element"),
    ("element 0", '{"0": 1.0, "H": -13.6, "O": -432.0}', "'0' is not a chemical element"),
    ("element 150", '{"150": 1.0, "H": -13.6, "O": -432.0}', "'150' is not a chemical element"),
    ("hydrogen by symbol and number", '{"H": -13.6, "1": -13.6, "O": -432.0}', "two reference energies"),
    ("hydrogen twice", '{"H": -13.6, "H": -12.6, "O": -432.0}', "'H' comes twice"),
    ("an end that is missing", '{"H": -13.6, "O":', "is not JSON"),
    ("single quotes", "{'H': -13.6, 'O': -432.0}", "is not JSON"),
    ("nothing", "", "is not JSON"),
):  # fmt: skip
    add("refused", f"a JSON file of E0s with {_name}", _json(_content), _words)
add("refused", "a JSON file of E0s of another encoding", _json(b'{"H": -13.6, "O": -432.0, "\xfc": 1}'), "E0s.json")
add("refused", "E0s from a file that is missing", _typed("nowhere.json"), "nowhere.json", "cannot be opened")
add("refused", "E0s from a directory", lambda f: [f"--train_file={write(f, sound())}", f"--E0s={f}"], "--E0s")
for _value, _words in (
    ("avrage", "--E0s"),
    ("{1: -13.6", "--E0s"),
    ("{1: -13.6}", "no reference energy for O"),
    ("{1: 'a', 8: -432.0}", "--E0s"),
    ("{1: None, 8: -432.0}", "--E0s"),
    ("{1: -13.6, 1: -12.6, 8: -432.0}", "--E0s"),
    ("{0: -13.6, 8: -432.0}", "--E0s"),
    ("{200: -13.6, 8: -432.0}", "--E0s"),
    ("[-13.6, -432.0]", "--E0s"),
    ("{}", "--E0s"),
    ("foundation", "add --foundation_model"),
):
    add("refused", f"--E0s={_value}", _typed(_value), _words)

add(
    "refused",
    "no isolated atoms and no E0s",
    _in_file(sound()),
    "The reference energies (E0s) of H, O are not in the training data",
)
add("refused", "an isolated atom too few", _in_file(HYDROGEN + sound()), "of O are not in the IsolatedAtom frames")
add(
    "refused",
    "an isolated atom without an energy",
    _in_file(HYDROGEN + ATOM.format("", "O") + sound()),
    "structure 1 is an isolated O atom without an energy",
)
add(
    "refused",
    "an isolated atom with an energy under another key",
    _in_file(HYDROGEN + ATOM.format("energy=-432.0", "O") + sound()),
    "structure 1 is an isolated O atom without an energy",
)
add(
    "refused",
    "isolated atoms that contradict each other",
    _in_file(HYDROGEN + OXYGEN + HYDROGEN.replace("13.6", "12.6") + sound()),
    "structure 2 gives an isolated H atom -12.6",
)
add(
    "refused",
    "an isolated atom with an energy that is nan",
    _in_file(HYDROGEN + ATOM.format("REF_energy=nan", "O") + sound()),
    "structure 1: the label 'energy'",
)
add("refused", "isolated atoms alone", _in_file(HYDROGEN + OXYGEN), "isolated atoms only")
add(
    "refused",
    "an average of nothing",
    _in_file(sound(energy=""), "--E0s=average", "--energy_weight=0"),
    "--E0s average needs structures with an energy",
)
add(
    "noted",
    "a molecule of the type IsolatedAtom",
    _in_file(HYDROGEN + OXYGEN + sound(info="config_type=IsolatedAtom")),
    "have several atoms",
)
add(
    "noted",
    "isolated atoms and other E0s",
    _in_file(HYDROGEN + OXYGEN + sound(), "--E0s={1: -13.7, 8: -432.0}"),
    "[overruled-reference-energies]",
    "H -13.7 eV (the frame: -13.6)",
)
add(
    "noted",
    "isolated atoms and an average",
    _in_file(HYDROGEN + OXYGEN + sound(), "--E0s=average"),
    "[overruled-reference-energies]",
    "the E0s of H, O are those of the IsolatedAtom frames, which come before --E0s=average",
    "{1 (H): -13.6, 8 (O): -432}",
)
add(
    "noted",
    "an isolated atom of one element and an average",
    _in_file(HYDROGEN + sound(), "--E0s=average"),
    "those of O are fitted, with these held fixed",
)
add("read", "isolated atoms and the same E0s", text_case(HYDROGEN + OXYGEN + sound()))
add("read", "isolated atoms by the word", _in_file(HYDROGEN + OXYGEN + sound(), "--E0s=IsolatedAtom"))
add(
    "refused",
    "an isolated atom too few for the word",
    _in_file(HYDROGEN + sound(), "--E0s=isolated"),
    "of O are not in the IsolatedAtom frames",
)
add(
    "noted",
    "an average that does not determine the elements",
    _in_file(sound(), "--E0s=average"),
    "do not determine the reference energies of H, O",
)
add("noted", "E0s of zero", _typed("{1: 0.0, 8: 0.0}"), "mean atomization energy")
add("noted", "E0s in Hartree", _typed("{1: -0.4998, 8: -15.876}"), "mean atomization energy")
add("noted", "E0s of the opposite sign", _typed("{1: 13.6, 8: 432.0}"), "mean atomization energy")
add("noted", "E0s of another method", _typed("{1: -13.6, 8: -2041.8}"), "mean atomization energy")
add(
    "noted",
    "an energy of one structure that is far off",
    text_case(sound().replace("REF_energy=-469", "REF_energy=-4690", 1)),
    "E0s",
)
add("read", "E0s by symbol", _typed("{'H': -13.6, 'O': -432.0}"))
