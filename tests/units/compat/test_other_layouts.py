"""Are files understood by what they contain, if numbers stand where buffers came later or a fork has moved classes?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch

from mace.compat.importing import import_original
from mace.errors import UserError
from mace.model.mace import MACE

ENERGIES = files.PLAN.reference_energies
P = "radial_embedding.cutoff_fn.p"


def _write(folder: Path, numbers: dict[str, Any], change: tuple[str, str] = ("", "")) -> Path:
    """Write a model in which some buffers are attributes of their modules, with other names of classes."""
    state = {name: value for name, value in files.state_of(files.model()).items() if name not in numbers}
    tree = files.tree_of(files.model(), state)
    for name, value in numbers.items():
        *parts, last = name.split(".")
        place = tree
        for part in parts:
            if part not in place._modules:
                place._modules[part] = files.module("mace.modules.blocks.Part")
            place = place._modules[part]
        setattr(place, last, value)
    data, storages = files.pickled(tree)
    path = folder / "old.model"
    path.write_bytes(files.archive(data.replace(*(word.encode() for word in change)), storages))
    return path


def _equal(found: MACE, expected: MACE) -> bool:
    weights = dict(expected.named_parameters())
    return found.plan == expected.plan and all(torch.equal(w, weights[n]) for n, w in found.named_parameters())


@pytest.mark.parametrize(
    "numbers",
    [
        {"r_max": 4.0, "atomic_numbers": [1, 6, 8]},
        {"r_max": 4, "atomic_numbers": (1, 6, 8), P: 5},
        {"r_max": np.float64(4.0), "atomic_numbers": np.array([1, 6, 8]), "num_interactions": 2},
        {"atomic_energies_fn.atomic_energies": np.array(ENERGIES), P: np.int64(5)},
        {"atomic_energies_fn.atomic_energies": np.array([ENERGIES]).T.copy().T, "r_max": torch.tensor(4.0).double()},
        {"atomic_energies_fn.atomic_energies": list(ENERGIES), "scale_shift.scale": 0.8, "scale_shift.shift": [0.3]},
        {"radial_embedding.bessel_fn.bessel_weights": np.arange(1, 5) * np.pi / 4},
    ],
    ids=["list", "tuple", "numpy", "numpy of floats", "order of columns", "all constants", "weights of the basis"],
)
def test_numbers_where_buffers_came_later(numbers: dict[str, Any], tmp_path: Path) -> None:
    assert _equal(import_original(_write(tmp_path, numbers)).model, files.model())


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"atomic_numbers": [1, "6", 8]}, "it has no 'atomic_numbers'"),
        ({"atomic_numbers": [1, 2**70, 8]}, "it has no 'atomic_numbers'"),
        ({"atomic_numbers": []}, "it has no 'atomic_numbers'"),
        ({"atomic_numbers": [1, 6]}, "reference energies for 2 elements"),
        ({"r_max": True}, "it has no 'r_max'"),
        ({"r_max": float("nan")}, "r_max. is not valid .*not nan"),
        ({"r_max": 1e6}, "r_max. is not valid .*not 1e.06"),
        ({"scale_shift.scale": "0.8"}, "it has no 'scale_shift.scale'"),
        ({"atomic_energies_fn.atomic_energies": np.array(ENERGIES, dtype=complex)}, "it has no 'atomic_energies_fn"),
    ],
)
def test_what_is_no_number_is_refused(numbers: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        import_original(_write(tmp_path, numbers))


MOVED = [
    ("cmace.modules", "cmace_fork.modules"),
    ("cmace.modules", "cmacetools.potentials"),
    ("cmace.modules", "ccode.mace.modules"),
    ("cmace.modules", "c__main__"),
    ("ce3nn.", "cvendored.e3nn."),
    ("ctorch.nn.modules.container", "cfork.containers"),
    ("\nScaleShiftMACE\n", "\nModels.ScaleShiftMACE\n"),
]


@pytest.mark.parametrize("change", MOVED, ids=[new[1:].strip() for _, new in MOVED])
def test_classes_may_lie_anywhere(change: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _equal(import_original(_write(tmp_path, {}, change)).model, files.model())
    assert not caplog.records


@pytest.mark.parametrize("name", ["OurMACE", "MACE2", "StableScaleShiftMACE"])
def test_an_unknown_class_with_known_parts_is_read_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = ("cmace.modules.models\nScaleShiftMACE\n", f"cfork.models\n{name}\n")
    with caplog.at_level(logging.WARNING, logger="mace"):
        imported = import_original(_write(tmp_path, {}, change))
    assert _equal(imported.model, files.model())
    assert f"class fork.models.{name} is not one of mace-torch" in caplog.text and "a ScaleShiftMACE" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("\nScaleShiftMACE\n", "\nBOTNet\n"), "its kind is BOTNet"),
        (("\nScaleShiftMACE\n", "\nNewerMACE\n"), "its kind is NewerMACE: this class of models is not known"),
        (("cmace.modules.models\nScaleShiftMACE\n", "cfork.models\nPolarMACE\n"), "long-range electrostatics"),
        (("\nRealAgnosticResidualInteractionBlock\n", "\nOurInteraction\n"), "its layer 0 is a OurInteraction"),
        (("cmace.modules.models\nScaleShiftMACE\n", "cos\nsystem\n"), "hostile .it asks to call os.system"),
        (("cmace.modules.models\nScaleShiftMACE\n", "ccode\nScaleShiftMACE\n"), "hostile .it asks to call code.S"),
        (("cmace.modules.models", "cctypes.modules"), "hostile .it asks to call ctypes.modules"),
        (("ctorch._utils", "cfork._utils"), "it has no 'atomic_energies_fn"),
    ],
)
def test_what_forks_cannot_be(change: tuple[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        import_original(_write(tmp_path, {}, change))


def test_an_unknown_class_with_another_part_is_refused(tmp_path: Path) -> None:
    tree = files.tree_of(files.model(), kind="OurMACE")
    tree._modules["electrostatics"] = files.module("fork.Ewald")
    data, storages = files.pickled(tree)
    path = tmp_path / "a.model"
    path.write_bytes(files.archive(data.replace(b"cmace.modules", b"cfork"), storages))
    with pytest.raises(UserError, match="its kind is OurMACE: this class of models is not known"):
        import_original(path)
