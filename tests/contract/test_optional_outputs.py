"""Do terminal, log, plots and tables stay out of the way of what matters, and is what files say harmless there?"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from training_runs import QUICK, TINY_MODEL, isolated_atoms, train, water, write_water

from mace.cli import command
from mace.cli.command import run_program
from mace.console.interruption import Interruption
from mace.console.logs import close_logging, setup_logging
from mace.console.optional_outputs import OptionalOutput
from mace.console.streams import BROKEN_PIPE, StandardStream
from mace.console.terminal import PlainConsole
from mace.errors import RunInterrupted, UserError, plain
from mace.files import durable as durable_file
from mace.files.durable import is_full, write_durably
from mace.preparation.check import check_data
from mace.reporting.records import RecordWriter
from mace.runs import final_report, finishing
from mace.settings.other_commands import CheckSettings
from mace.settings.reading import parse_settings
from mace.training.checkpoints import CheckpointFolder
from mace.training.saving import StateKeeper

ROOT = Path(__file__).parents[2]
NASTY = {
    "clears the screen": "a\x1b[2Jb",
    "names the window": "\x1b]0;owned\x07",
    "fills the clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "one-character control": "\x9b31mred",
    "overwrites the line": "good\rbad",
    "goes back": "abc\x08\x08\x08xyz",
    "turns the direction": "gpj.\u202eexe",
    "hides letters": "zero\u200bwidth\u2066x",
    "ends the line": "one\u2028two",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nothing_from_files_reaches_a_terminal_or_log_as_control(text, tmp_path):
    assert plain(text).isprintable() and plain(plain(text)) == plain(text)
    shown = io.StringIO()
    console = PlainConsole(file=shown, force_terminal=True, width=500)
    setup_logging("INFO", tmp_path / "log", console)
    try:
        logging.getLogger("mace.test").info("type %s\nin a table", text)
        console.print(f"type {text}")
    finally:
        close_logging()
    for said in (shown.getvalue(), (tmp_path / "log").read_text(encoding="utf-8"), str(UserError(text))):
        without_colors = re.sub(r"\x1b\[[0-9;]*m", "", said)
        assert all(letter.isprintable() or letter == "\n" for letter in without_colors), repr(said)
    assert not re.search(r"\x1b[^\[]|\x1b\[[0-9;]*[A-ln-z]", shown.getvalue())


@pytest.mark.parametrize("name", ["[red]hot[/red]", "[/foo]", "[link=a://b]click[/link]", ":warning:"])
def test_markup_in_names_is_only_text(name, tmp_path):
    frames = isolated_atoms() + water(6, config_type=name)
    write(tmp_path / "train.xyz", frames, format="extxyz")
    shown = io.StringIO()
    settings = parse_settings(CheckSettings, [f"--train_file={tmp_path / 'train.xyz'}", f"--work_dir={tmp_path}"])
    check_data(settings, PlainConsole(file=shown, width=200))
    assert name in shown.getvalue()


def test_text_leaves_through_few_places_only():
    """Consoles are `PlainConsole`s, and what is printed otherwise is the program's own or made plain."""
    prints, consoles = set(), set()
    for path in (ROOT / "mace").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^\s+print\((?!plain\()", text, flags=re.M):
            prints.add(path.relative_to(ROOT / "mace").as_posix())
        if re.search(r"(?<![\w.`])Console\(", text.replace("class PlainConsole(Console)", "")):
            consoles.add(path.name)
    assert not consoles
    own_words = {"cli/command.py", "cli/completion.py", "cli/original/commands.py", "settings/reading.py"}
    typed_names = {"cli/export.py", "cli/import_model.py", "cli/info.py", "cli/plot_train.py"}
    assert prints <= own_words | typed_names


def started(body: str, *redirections: str, output_needed: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell whose redirections are given."""
    code = (
        f"import sys, os\nfrom mace.cli.command import run_program\ndef main(arguments):\n    {body}\n"
        f"run_program(main, {output_needed})"
    )
    line = f'"$0" -c "$1" {" ".join(redirections)}; echo "status ${{PIPESTATUS[0]}}" >&3'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    with os.fdopen(reading) as statuses:
        done = subprocess.run(
            ["bash", "-c", line.replace(">&3", f">&{writing}"), sys.executable, code],
            pass_fds=[writing], capture_output=True, text=True, env=environment, timeout=60,
        )  # fmt: skip
        os.close(writing)
        done.args = statuses.read()
    return done


ENDS = {
    "closed": (">&-", True, "status 0"),
    "all closed": ("<&- >&- 2>&-", True, "status 0"),
    "no reader": ("| true", True, "status 141"),
    "no reader of a training": ("| true", False, "status 0"),
    "full": (">/dev/full", True, "status 2"),
    "full, of a training": (">/dev/full", False, "status 0"),
    "errors without reader": ("2>/dev/full", True, "status 0"),
}


@pytest.mark.parametrize(("redirection", "needed", "status"), ENDS.values(), ids=ENDS)
def test_output_that_nobody_gets(redirection, needed, status):
    body = "[print('x' * 100000, flush=True) for _ in range(3)]; print('y', file=sys.stderr)"
    done = started(body, redirection, output_needed=needed)
    assert done.args.strip() == status and "Traceback" not in done.stderr
    if status == "status 2":
        assert "standard output cannot be written (No space left on device)" in done.stderr


def test_files_never_get_the_number_of_a_closed_stream():
    done = started("f = open('/dev/null'); assert f.fileno() > 2; print(1)", "<&- >&-")
    assert done.args.strip() == "status 0"


class Broken(io.StringIO):
    """A stream that fails, on a file of its own."""

    def __init__(self, file: Any, number: int) -> None:
        super().__init__()
        self._file, self._number = file, number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def fileno(self) -> int:
        return int(self._file.fileno())


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_lost_terminal_is_told_in_the_log_once(number, tmp_path, monkeypatch):
    with open(tmp_path / "terminal", "w") as file:
        monkeypatch.setattr(sys, "stdout", StandardStream(Broken(file, number), "standard output", False))
        setup_logging("INFO", tmp_path / "log", PlainConsole())
        try:
            for _ in range(3):
                logging.getLogger("mace.test").info("a line")
        finally:
            close_logging()
    log = (tmp_path / "log").read_text()
    assert log.count("a line") == 3 and log.count("Nothing more is shown") == 1 and os.strerror(number) in log


def test_exit_statuses_of_a_needed_output(tmp_path):
    with open(tmp_path / "terminal", "w") as file:
        with pytest.raises(SystemExit, match=str(BROKEN_PIPE)):
            StandardStream(Broken(file, errno.EPIPE), "standard output", True).write("x")
        with pytest.raises(UserError, match="standard output cannot be written"):
            StandardStream(Broken(file, errno.EDQUOT), "standard output", True).write("x")
    assert command.BROKEN_PIPE == 141 and run_program.__module__ == "mace.cli.command"


def no_room(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def no_folder(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("harm", [no_room, no_folder, a_folder])
def test_a_log_that_cannot_be_written_is_one_warning(harm: Callable[[Path], None], tmp_path):
    shown = io.StringIO()
    path = tmp_path / "logs" / "a.log"
    setup_logging("INFO", path, PlainConsole(file=shown, width=300))
    try:
        logging.getLogger("mace.test").info("first")
        harm(path)
        for _ in range(3):
            logging.getLogger("mace.test").info("later")
    finally:
        close_logging()
    assert shown.getvalue().count("the log cannot be written") == 1 and shown.getvalue().count("later") == 3
    assert "Traceback" not in shown.getvalue()


def fail(*arguments: Any, **keywords: Any) -> None:
    raise ValueError("a defect")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (final_report, "plot_parity"),
        (finishing, "plot_learning_curves"),
        (finishing, "write_final_report"),
        (final_report, "error_table"),
    ],
)
def test_a_finished_training_is_a_success(owner, name, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, fail)
    run = train(tmp_path, write_water(tmp_path / "train.xyz"), "--max_num_epochs=1", "--plot=True")
    assert run.weights() and run.said("Done") and run.said("left out, because it failed .ValueError: a defect")


def test_an_optional_output_never_holds_a_signal_back(caplog):
    output = OptionalOutput("plot.png")
    for error in (RunInterrupted("Stopped.", 143), KeyboardInterrupt()):
        with pytest.raises(type(error)), output:
            raise error
    with caplog.at_level(logging.WARNING, "mace"):
        for error in (OSError(errno.EIO, "Input/output error"), ValueError("first\nsecond"), None, MemoryError("much")):
            with output:
                if error is not None:
                    raise error
    assert [message.split("(")[1] for message in caplog.messages] == [
        "Input/output error); the run goes on", "MemoryError: much); the run goes on"
    ]  # fmt: skip


def test_plots_need_no_backend(tmp_path):
    """As in a notebook whose backend another environment has."""
    code = (
        "import sys, os, numpy as np\nfrom mace.pages.plots import plot_parity\n"
        "plot_parity({'train': {'energy': (np.arange(3.0), np.arange(3.0))}}, sys.argv[1], 'x')\n"
        "assert os.environ['MPLBACKEND'].startswith('module:')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline_of_nobody"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], env=environment, check=True, timeout=60)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_that_cannot_synchronize_are_good_enough(number, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable_file.os, "fsync", refuse)
    write_durably(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ESTALE])
def test_write_errors_say_what_they_are(number, tmp_path, monkeypatch, caplog):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable_file.os, "fsync", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        write_durably(tmp_path / "a", b"content")
    assert is_full(caught.value) == (number in (errno.ENOSPC, errno.EDQUOT))
    keeper = StateKeeper(CheckpointFolder(tmp_path, "a"), RecordWriter(None), None, {"run": "run"}, 1.0)
    with caplog.at_level(logging.INFO, "mace"):
        keeper.save({"progression": {"best_epochs": {}}, "best": {}})
        monkeypatch.undo()
        keeper.save({"progression": {"best_epochs": {}}, "best": {}})
    assert os.strerror(number) in caplog.messages[0] and caplog.messages[1].endswith("could be written again")
    assert ("Make room" in caplog.messages[0]) == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_that_end_are_heeded(number):
    if signal.getsignal(number) is signal.SIG_IGN:  # as nohup leaves it
        signal.signal(number, signal.SIG_DFL)
    with pytest.raises(RunInterrupted, match=signal.Signals(number).name) as caught, Interruption():
        os.kill(os.getpid(), number)
    assert caught.value.status == 128 + number
    with Interruption() as interruption, interruption.patient():
        os.kill(os.getpid(), number)
        assert interruption.requested


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("tail", [">&-", "| head -1 >/dev/null", "2>&1 >/dev/full"])
@pytest.mark.slow
def test_a_training_ends_well_without_its_output(tail, tmp_path):
    data = write_water(tmp_path / "train.xyz")
    flags = " ".join(f'"{flag}"' for flag in (*TINY_MODEL, *QUICK, f"--train_file={data}", f"--work_dir={tmp_path}"))
    line = f'set -o pipefail; "$0" -m mace.cli.run_train {flags} {tail}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0 and (tmp_path / "tiny.model").exists(), done.stderr
