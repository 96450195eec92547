"""Is every setting that can be given read by some code?"""

from __future__ import annotations

import ast
from pathlib import Path

from mace.conditions import SETTABLE
from mace.properties import PREDICTED, PROPERTIES
from mace.settings import TrainingSettings
from mace.settings.declaration import declarations

ROOT = Path(__file__).parents[2] / "mace"


def names_read() -> set[str]:
    """Collect the attributes that code outside the settings takes from settings, under the names these have."""
    found: set[str] = set()
    for file in ROOT.rglob("*.py"):
        if file.is_relative_to(ROOT / "settings"):
            continue
        text = file.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings":
                found.add(node.attr)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self.settings", "now", "before"):
                found.add(node.attr)
        if 'f"{p}_weight"' in text:
            found |= {f"{prefix}{p}_weight" for prefix in ("", "swa_") for p in PREDICTED}
        if 'f"{name}_key"' in text:
            found |= {f"{p}_key" for p in (*PROPERTIES, *SETTABLE)}
        if 'f"{name}_unit"' in text:
            found |= {f"{quantity}_unit" for quantity in ("energy", "length", "stress")}
    return found


def supported() -> set[str]:
    """Name the settings that are neither refused nor declared to change nothing."""
    known = declarations(TrainingSettings).items()
    return {name for name, declaration in known if not declaration.unsupported and not declaration.inert}


def test_every_supported_setting_is_read() -> None:
    unread = supported() - names_read() - {"config"}  # config names the file the others were read from
    assert not unread, f"no code reads {sorted(unread)}"


def test_an_unread_setting_would_be_found() -> None:
    assert "use_so3" not in names_read()
