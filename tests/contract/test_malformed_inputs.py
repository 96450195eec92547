"""Does every broken or treacherous input end in one sentence, in a note, or in the right numbers?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from malformed_inputs import CASES, Case
from training_runs import QUICK, TINY_MODEL

from mace.cli.run_train import main
from mace.inspection.findings import KINDS
from mace.settings import parse_training_settings
from mace.structures.reading import read_sources
from mace.structures.sources import sources_of

PROGRAM = Path(__file__).parents[2] / "mace" / "cli" / "run_train.py"

IN_A_PROCESS = (
    "an energy that is nan",
    "YAML with a key that comes twice",
)
"""Cases that are tried with the real program too, one for each place where it stops; each takes seconds."""


def flags_of(case: Case, folder: Path) -> list[str]:
    """Build a case and return all flags of a run that would begin to train if it were not a rehearsal."""
    data = folder / "data"
    data.mkdir()
    work = f"--work_dir={folder / 'work'}"
    return [*TINY_MODEL, *QUICK, work, "--kernels=torch", "--dry_run", "--valid_fraction=0.2", *case.build(data)]


def of(*outcomes: str) -> list[pytest.param]:  # type: ignore[valid-type]
    return [pytest.param(case, id=case.name) for case in CASES if case.outcome in outcomes]


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 150


def ends_well(error: str, case: Case) -> None:
    """Make sure that an output on standard error is one sentence that says what it should."""
    sentence = error.strip()
    assert "Traceback" not in sentence
    assert sentence and len(sentence.splitlines()) == 1, sentence
    assert sentence.endswith((".", "?")), sentence
    for words in case.words:
        assert words in sentence, sentence


def run(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the program as the console script does, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["mace_run_train", *flags])
    try:
        main()
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code
    return 0


@pytest.mark.parametrize("given", of("refused"))
def test_refused_with_one_sentence(
    given: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags_of(given, tmp_path), monkeypatch) == 2
    ends_well(capsys.readouterr().err, given)


@pytest.mark.parametrize("given", of("noted"))
def test_accepted_with_a_note(
    given: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags_of(given, tmp_path), monkeypatch) == 0
    output = re.sub(r"\s+", " ", capsys.readouterr().out)
    for words in given.words:
        assert words in output, output


@pytest.mark.parametrize("given", of("suspect"))
def test_found_by_statistics(
    given: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = given.words
    status = run(flags_of(given, tmp_path), monkeypatch)
    output = capsys.readouterr()
    if KINDS[name].level == "error":
        assert status == 2
        ends_well(output.err, given)
        return
    assert status == 0, output.err
    (sentence,) = (line for line in output.out.splitlines() if f"WARNING: [{name}]" in line)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("given", of("read"))
def test_read_right(
    given: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(given, tmp_path)
    assert run(flags, monkeypatch) == 0, capsys.readouterr().err
    if given.check is not None:
        settings = parse_training_settings(flags)
        given.check(read_sources(sources_of(settings, settings.train_file)))


@pytest.mark.parametrize("given", [case for case in CASES if case.name in IN_A_PROCESS], ids=lambda case: case.name)
def test_the_program_itself_refuses(given: Case, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), *flags_of(given, tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    ends_well(result.stderr, given)
