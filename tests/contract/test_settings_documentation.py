"""Do help, documentation and schema say what the settings are?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mace.settings import TrainingSettings, parse_training_settings, settings_table_markdown
from mace.settings.declaration import NOT_SUPPORTED, WITHOUT_EFFECT, declarations
from mace.settings.documentation import main, settings_json_schema, settings_page
from mace.settings.help import help_text

DECLARATIONS = declarations(TrainingSettings)
GROUPS = [
    "Run",
    "Data",
    "Labels and keys",
    "Model",
    "Reference energies and scaling",
    "Heads",
    "Fine-tuning",
    "Loss and weights",
    "Optimizer and schedule",
    "Stage two and averaging",
    "Evaluation and output",
    "Checkpoints",
    "Devices and speed",
    "Logging and trackers",
    WITHOUT_EFFECT,
    NOT_SUPPORTED,
]


def printed(capsys, *arguments: str) -> str:
    """Run the parser for its help and return what it prints."""
    with pytest.raises(SystemExit) as left:
        parse_training_settings(arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_has_the_groups_in_order(capsys):
    """Groups follow the task."""
    lines = printed(capsys, "--help").splitlines()
    found = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert found == [*GROUPS, "Help"]


def test_help_mentions_every_supported_setting(capsys):
    """One entry each, with unit and aliases; those without effect and unsupported ones stand in lists at the end."""
    entries, _, rest = printed(capsys, "--help").partition(f"{WITHOUT_EFFECT}:")
    inert, _, unsupported = rest.partition(f"{NOT_SUPPORTED}:")
    starts = [line.split()[0] for line in entries.splitlines() if line.startswith("  --")]
    others = [d for d in DECLARATIONS.values() if d.unsupported or d.inert]
    assert sorted(starts) == sorted({f"--{name}" for name in DECLARATIONS} - {f"--{d.name}" for d in others})
    words = entries.split()
    for declaration in DECLARATIONS.values():
        if declaration in others:
            listed = unsupported if declaration.unsupported else inert
            assert f"--{declaration.name}" in listed.replace(",", " ").split()
        for alias in declaration.aliases if declaration not in others else ():
            assert any(word.strip("),") == f"--{alias}" for word in words)


def test_help_says_units_and_defaults(capsys):
    """As in the entry of the cutoff."""
    assert "distance up to which atoms are neighbors [Angstrom] (default: 5.0)" in " ".join(
        printed(capsys, "-h").split()
    )


@pytest.mark.parametrize("flag", ["--help-all", "--help_all"])
def test_help_all_says_why(capsys, flag):
    """Reasons for refusal are one flag away."""
    text = " ".join(printed(capsys, flag).split())
    assert all(d.unsupported in text and d.inert in text for d in DECLARATIONS.values())


def test_help_fits_the_terminal(monkeypatch):
    """Lines are wrapped, but for the flags themselves."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_text(TrainingSettings).splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("  --"))


def test_every_setting_is_explained_in_one_line():
    """Help is a phrase without a period, reasons are sentences with one."""
    for declaration in DECLARATIONS.values():
        assert declaration.help and "\n" not in declaration.help and not declaration.help.endswith(".")
        assert declaration.group in GROUPS
        reasons = [declaration.unsupported] if declaration.unsupported else []
        reasons += (declaration.unsupported_values or {}).values()
        assert not declaration.inert.endswith(".") and "\n" not in declaration.inert
        assert all(reason.endswith(".") and "\n" not in reason for reason in reasons)


def test_spellings_are_unique():
    """No flag means two settings."""
    spellings = [name for d in DECLARATIONS.values() for name in (*d.names, *d.negations)]
    assert len(spellings) == len(set(spellings))


def test_help_needs_neither_torch_nor_ase():
    """Asking for help is quick."""
    code = (
        "import sys\n"
        "from mace.settings import parse_training_settings\n"
        "try:\n    parse_training_settings(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', [name for name in ('torch', 'ase', 'numpy', 'yaml', 'scipy') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_documentation_is_up_to_date(capsys):
    """The page in docs/ is what the generator prints."""
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert main([]) == 0
    assert page.read_text(encoding="utf-8") == capsys.readouterr().out == settings_page()


def test_table_has_a_row_for_every_setting():
    """Supported or not; cells do not break the table."""
    rows = [line for line in settings_table_markdown().splitlines() if line.startswith("| `--")]
    names = [row.split("`--")[1].split("`")[0].split()[0] for row in rows]
    assert sorted(names) == sorted(TrainingSettings.model_fields)
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)


def test_json_schema(capsys):
    """Types, bounds, choices and metadata are in the schema, which is closed."""
    assert main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == settings_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name"]
    assert schema["properties"]["r_max"]["exclusiveMinimum"] == 0
    assert schema["properties"]["r_max"]["unit"] == "Angstrom"
    assert schema["properties"]["max_ell"]["aliases"] == ["l_max"]
    assert "silu" in schema["properties"]["gate"]["enum"]
    assert set(schema["properties"]) == set(TrainingSettings.model_fields)
