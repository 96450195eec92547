"""Weights that are none."""

from __future__ import annotations

from mace.structures.reading import ReadResult
from malformed_inputs.cases import add, flags_case, has_waters, plain_row, sound, spoilt, text_case

WITH_WEIGHTS = "species:S:1:pos:R:3:REF_forces:R:3:forces_weight:R:1"

for _key in (
    "weight",
    "energy_weight",
    "forces_weight",
    "stress_weight",
    "virials_weight",
    "dipole_weight",
    "polarizability_weight",
    "charges_weight",
):
    add(
        "refused",
        f"a negative config_{_key}",
        text_case(spoilt(info=f"config_{_key}=-1")),
        "structure 2",
        f"'config_{_key}' is",
    )
for _value in ("nan", "inf", "high", "T", '"1 2"', "1.0D0"):
    add(
        "refused",
        f"a config_weight of {_value}",
        text_case(spoilt(info=f"config_weight={_value}")),
        "structure 2",
        "'config_weight' is",
    )
for _value in ("-1.0", "nan", "inf"):
    add(
        "refused",
        f"the weight of an atom is {_value}",
        text_case(spoilt(properties=WITH_WEIGHTS, row=lambda s, p, f, v=_value: plain_row(s, p, f) + f" {v}")),  # type: ignore[misc]
        "structure 2: the column 'forces_weight' holds what is no weight",
    )
add(
    "refused",
    "three weights for each atom",
    text_case(
        spoilt(
            properties="species:S:1:pos:R:3:REF_forces:R:3:forces_weight:R:3",
            row=lambda s, p, f: plain_row(s, p, f) + " 1 1 1",
        )
    ),
    "structure 2: the column 'forces_weight' has the shape [3, 3]",
)
add(
    "refused",
    "a word for the weight of an atom",
    text_case(
        spoilt(
            properties=WITH_WEIGHTS.replace("weight:R", "weight:S"), row=lambda s, p, f: plain_row(s, p, f) + " high"
        )
    ),
    "structure 2: the column 'forces_weight' holds what is no weight",
)
add(
    "refused",
    "the weight of atoms in the comment line",
    text_case(spoilt(info="forces_weight=2")),
    "structure 2",
    "config_forces_weight",
)
for _value in (
    "{'Default': -1}",
    "{'Default': nan}",
    "{'Default': high}",
    "[1, 2]",
    "2",
    "{Default: 1",
    "{'a': 1, 'a': 2}",
):
    add(
        "refused",
        f"--config_type_weights={_value}",
        flags_case(f"--config_type_weights={_value}"),
        "--config_type_weights",
    )
add("refused", "no structure has weight", flags_case("--config_type_weights={'Default': 0}"), "has a label with weight")
add(
    "refused",
    "no atom has weight",
    text_case(sound(properties=WITH_WEIGHTS, row=lambda s, p, f: plain_row(s, p, f) + " 0"), "--energy_weight=0"),
    "has a label with weight",
)
add(
    "noted",
    "a weight for a type that is nowhere",
    flags_case("--config_type_weights={'Default': 1, 'surfcae': 2}"),
    "'surfcae', which no structure has as config_type",
)


def _types(*expected: str) -> object:
    def check(result: ReadResult) -> None:
        assert [c.config_type for c in result.configurations] == list(expected)

    return check


add("read", "a type that is a number", text_case(sound(2, info="config_type=300")), check=_types("300", "300"))  # type: ignore[arg-type]
add("read", "a type that is a list", text_case(sound(2, info='config_type="1 2"')), check=_types("[1 2]", "[1 2]"))  # type: ignore[arg-type]
add("read", "a type that is a matrix", text_case(sound(2, info='config_type="[[1, 0], [0, 1]]"')))
add("read", "a type that is empty", text_case(sound(info='config_type=""')), check=has_waters())
