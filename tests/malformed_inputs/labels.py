"""Labels that are missing, misnamed, or not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mace.structures.reading import ReadResult
from malformed_inputs.cases import (
    CUBE,
    E0S,
    add,
    frame,
    noted,
    plain_row,
    refused,
    sound,
    spoilt,
    text_case,
    trained_on,
    waters,
    write,
)

STRESS = 'REF_stress="0.01 0 0 0 0.01 0 0 0 0.01" '
CELL = CUBE + 'pbc="T T T" '


def refuse(name: str, text: str, *words: str, flags: tuple[str, ...] = ()) -> None:
    """Add a text that is refused."""
    add("refused", name, text_case(text, *flags), *words)


for _value in ("nan", "inf", "NaN", "-inf"):
    refuse(
        f"an energy that is {_value}",
        spoilt(energy=f"REF_energy={_value}"),
        "structure 2: the label 'energy'",
        "NaN or infinite",
    )
for _value in ("unknown", "None", "T", "-1.0D+02", "********", "1,5", "1+2j", '"1 2"', "[[1,2],[3,4]]"):
    refuse(f"an energy that is {_value}", spoilt(energy=f"REF_energy={_value}"), "structure 2", "'energy'")
refuse("an energy without a value", spoilt(energy="REF_energy"), "structure 2: the label 'energy'", "not a number")
for _value in ("nan", "inf"):
    refuse(
        f"a force that is {_value}",
        spoilt(row=lambda s, p, f, v=_value: f"{s} {p[0]} {p[1]} {p[2]} 0 {v} 0"),
        "structure 2: the label 'forces'",
    )  # type: ignore[misc]
refuse(
    "forces of two columns",
    spoilt(properties="species:S:1:pos:R:3:REF_forces:R:2:spare:R:1"),
    "structure 2: the label 'forces'",
    "[3, 2]",
)
refuse(
    "forces of one column",
    spoilt(properties="species:S:1:pos:R:3:REF_forces:R:1:spare:R:2"),
    "structure 2: the label 'forces'",
)
refuse("forces of words", spoilt(properties="species:S:1:pos:R:3:REF_forces:S:3"), "structure 2: the label 'forces'")
refuse(
    "forces of yes and no",
    spoilt(properties="species:S:1:pos:R:3:REF_forces:L:3", row=lambda s, p, f: f"{s} {p[0]} {p[1]} {p[2]} T F T"),
    "structure 2: the label 'forces'",
)
refuse(
    "forces in the comment line",
    spoilt(info='REF_forces="1 2 3 4 5 6 7 8 9"', properties="species:S:1:pos:R:3:spare:R:3"),
    "structure 2: the label 'forces'",
)
for _name, _values in (("three", "1 2 3"), ("five", "1 2 3 4 5"), ("ten", "1 2 3 4 5 6 7 8 9 10"), ("one", "1.0")):
    refuse(
        f"a stress of {_name} numbers", spoilt(info=f'{CELL}REF_stress="{_values}"'), "structure 2: the label 'stress'"
    )
    refuse(
        f"virials of {_name} numbers", spoilt(info=f'{CELL}REF_virials="{_values}"'), "structure 2: the label 'virials'"
    )
refuse(
    "a stress that is nan", spoilt(info=f'{CELL}REF_stress="1 2 3 nan 5 6"'), "structure 2: the label 'stress'", "NaN"
)
refuse("a stress of words", spoilt(info=f'{CELL}REF_stress="a b c d e f"'), "structure 2: the label 'stress'")
refuse("virials that are inf", spoilt(info=f'{CELL}REF_virials="1 2 3 inf 5 6"'), "structure 2: the label 'virials'")
refuse("a dipole of two numbers", spoilt(info='REF_dipole="1 2"'), "structure 2: the label 'dipole'")
refuse("a dipole that is nan", spoilt(info='REF_dipole="1 nan 2"'), "structure 2: the label 'dipole'")
refuse(
    "a polarizability of four numbers",
    spoilt(info='REF_polarizability="1 2 3 4"'),
    "structure 2: the label 'polarizability'",
)
refuse("too few charges", spoilt(info='REF_charges="1 2"'), "structure 2: the label 'charges'")
refuse("a stress without a cell", sound(info=STRESS), "has a stress but its cell has no volume")
refuse(
    "a stress in one structure without a cell",
    spoilt(info=STRESS),
    "structure 2 has a stress but its cell has no volume",
)

for _label, _flags in (
    ("energy", ()),
    ("forces", ()),
    ("stress", ("--loss=stress",)),
    ("virials", ("--loss=virials", "--stress_key=dft_stress")),
):
    refuse(
        f"a key of the {_label} that is nowhere",
        sound(info=CELL + STRESS),
        f"no structure has a label '{_label}' under the key 'dft_{_label}'",
        f"--{_label}_key",
        flags=(f"--{_label}_key=dft_{_label}", *_flags),
    )
refuse("a key that is no label", sound(), "no structure has a label 'energy'", flags=("--energy_key=config_type",))
refuse("positions for forces", sound(), "no structure has a label 'forces'", flags=("--forces_key=positions",))
refuse("forces for the energy", sound(), "the label 'energy'", "[3, 3]", flags=("--energy_key=REF_forces",))
refuse("an energy for the forces", sound(), "the label 'forces'", flags=("--forces_key=REF_energy",))
refuse("no labels", sound(energy="", properties="species:S:1:pos:R:3:spare:R:3"), "no structure has a label 'energy'")
refuse("no forces", sound(properties="species:S:1:pos:R:3:spare:R:3"), "no structure has a label 'forces'")
refuse(
    "a key in small letters",
    sound(energy="ref_energy=-1"),
    "(6 of 6) have no 'REF_energy' but 'ref_energy', which is not read without --energy_key=ref_energy",
    "--allow misspelled-key",
)
refuse("forces in the singular", sound(properties="species:S:1:pos:R:3:force:R:3"), "no 'forces' but 'force'")
add("read", "a key that is almost a label", text_case(spoilt(info="Dipole='1 2 3'"), "--allow=misspelled-key"))
for _loss, *_weight in (("stress",), ("virials",), ("huber", "--stress_weight=1"), ("universal", "--stress_weight=1")):
    refuse(f"no stress for the loss {_loss}", sound(), "no structure has a label", flags=(f"--loss={_loss}", *_weight))
refuse(
    "virials of slabs for a loss of stress",
    sound(info='Lattice="8 0 0 0 8 0 0 0 8" pbc="T T F" REF_virials="1 0 0 0 1 0 0 0 1"'),
    "no structure repeats in all directions",
    flags=("--loss=stress",),
)


def _one_is_missing(result: ReadResult) -> None:
    assert [c.energy is None for c in result.configurations] == [i == 2 for i in range(6)]
    assert all(c.forces is not None for c in result.configurations)


add("read", "a structure without an energy", text_case(spoilt(energy="")), check=_one_is_missing)
add("read", "a structure with an empty energy", text_case(spoilt(energy='REF_energy=""')), check=_one_is_missing)
add(
    "read",
    "a structure without an energy and the key energy",
    text_case(spoilt(energy="").replace("REF_energy", "energy"), "--energy_key=energy"),
    check=None,
)


@noted("two names of the energy in one file", "1 structures have 'energy' but no 'REF_energy'")
def _two_names(folder: Path) -> list[str]:
    return trained_on(folder, spoilt(energy="energy=-469.0"))


@noted("a stress that is not symmetric", "the stress of 1 structures is not symmetric")
def _asymmetric(folder: Path) -> list[str]:
    return trained_on(folder, spoilt(info=f'{CELL}REF_stress="1 2 3 4 5 6 7 8 9"'))


@noted("a stress and virials that contradict each other", "[contradicting-virials]", "not -volume * stress")
def _contradiction(folder: Path) -> list[str]:
    return trained_on(folder, sound(info=f'{CELL}{STRESS}REF_virials="1 0 0 0 1 0 0 0 1"'))


@noted("a stress in bohr of which no unit is given", "stresses are read as eV/Angstrom^3 though other units are given")
def _open_unit(folder: Path) -> list[str]:
    return trained_on(folder, sound(info=CELL + STRESS), "--energy_unit=meV")


@noted("an energy for each atom and none for the whole", "no 'REF_energy' or 'energy'")
def _atomic_energies(folder: Path) -> list[str]:
    rows = sound(
        energy="",
        properties="species:S:1:pos:R:3:REF_forces:R:3:energies:R:1",
        row=lambda s, p, f: plain_row(s, p, f) + " -150.0",
    )
    return trained_on(folder, rows, "--energy_weight=0")


@refused("labels in the training file only", "no validation structure has a label with weight")
def _bare_validation(folder: Path) -> list[str]:
    bare = sound(3, seed=1, energy="", properties="species:S:1:pos:R:3:spare:R:3")
    return trained_on(folder, sound(), f"--valid_file={write(folder, bare, 'valid.xyz')}")


for _role in ("valid", "test"):

    def _other_element(folder: Path, role: str = _role) -> list[str]:
        text = sound(3, seed=1).replace("O ", "S ")
        return trained_on(folder, sound(), f"--{role}_file={write(folder, text, 'other.xyz')}")

    add("refused", f"another element in the {_role} file", _other_element, "other.xyz: structure 0 contains S")


def _units(result: ReadResult) -> None:
    for configuration, (energy, positions, forces) in zip(result.configurations, waters(), strict=True):
        assert abs((configuration.energy or 0.0) - energy) < 1e-5
        assert configuration.forces is not None
        np.testing.assert_allclose(configuration.positions, positions, atol=1e-6)
        np.testing.assert_allclose(configuration.forces, forces, atol=1e-5)


def _in_atomic_units(folder: Path) -> list[str]:
    from ase.units import Bohr, Hartree

    text = "".join(frame((e / Hartree, p / Bohr, f / Hartree * Bohr)) for e, p, f in waters())
    return [f"--train_file={write(folder, text)}", E0S, "--energy_unit=Hartree", "--length_unit=bohr"]


add("read", "atomic units that are named", _in_atomic_units, check=_units)

_METALS = "Li Be Na Mg Al Si K Ca Sc Ti V Cr".split()


def _one_of_each(folder: Path) -> list[str]:
    text = "".join(
        frame(item, row=lambda s, p, f, metal=metal: plain_row(metal if s == "O" else s, p, f))  # type: ignore[misc]
        for metal, item in zip(_METALS, waters(len(_METALS)), strict=True)
    )
    return [f"--train_file={write(folder, text)}", "--E0s=average"]


def _rare_element(folder: Path) -> list[str]:
    """The structure that the seed would set aside."""
    text = "".join(
        frame(item, row=lambda s, p, f, rare=place == 3: plain_row("S" if s == "O" and rare else s, p, f))  # type: ignore[misc]
        for place, item in enumerate(waters(6))
    )
    return [f"--train_file={write(folder, text)}", "--E0s=average", "--seed=1"]


add("noted", "every structure the only one of an element", _one_of_each, "are both trained on and validated with")
add("read", "one structure with an element", _rare_element)
