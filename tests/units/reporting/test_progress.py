"""Does progress tell the truth, at the right times, without disturbing the work?"""

import io
import logging
import math

import pytest
import torch
from rich.console import Console

from mace.console.logs import close_logging, setup_logging
from mace.console.progress import TrainingProgress, resolve_mode, track
from mace.errors import UserError
from mace.reporting.tables import errors_in_words


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class CountedLoss:
    """A loss that counts how often it is read."""

    def __init__(self, value=0.5):
        self.value, self.reads, self.detached = value, 0, 0

    def detach(self):
        self.detached += 1
        return self

    def __float__(self):
        self.reads += 1
        return self.value


@pytest.fixture
def plain_console():
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})


def _messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_lines_appear_every_interval_with_all_facts(plain_console, caplog):
    caplog.set_level(logging.INFO, logger="mace")
    clock = Clock()
    with TrainingProgress(
        plain_console, interval=30.0, errors_in_words=errors_in_words("PerAtomRMSE"), clock=clock
    ) as progress:
        progress.start(total_epochs=4, batches_per_epoch=10, first_epoch=1)
        for batch in range(10):
            clock.now += 10.0
            progress.step(1, batch, torch.tensor(0.25), n_atoms=500)
        clock.now += 20.0
        progress.evaluated({"rmse_e_per_atom": 0.0123, "rmse_f": 0.0568})
        clock.now += 10.0
        progress.step(2, 0, torch.tensor(0.125), n_atoms=500)
    errors = "RMSE_E_per_atom=12.30 meV, RMSE_F=56.80 meV / A"
    assert _messages(caplog) == [
        "Progress: epoch 1 (2 of 4), batch 3/10, loss=0.25, 50 atoms/s, ETA 00:04:30",
        "Progress: epoch 1 (2 of 4), batch 6/10, loss=0.25, 50 atoms/s, ETA 00:04:00",
        "Progress: epoch 1 (2 of 4), batch 9/10, loss=0.25, 50 atoms/s, ETA 00:03:30",
        # 120 s for the ten batches after the first, validation included: 12 s each, 19 to go
        f"Progress: epoch 2 (3 of 4), batch 1/10, loss=0.125, {errors}, 50 atoms/s, ETA 00:03:48",
    ]
    assert plain_console.file.getvalue() == ""


def test_loss_is_read_only_when_shown(plain_console, caplog):
    caplog.set_level(logging.INFO, logger="mace")
    clock, loss = Clock(), CountedLoss()
    progress = TrainingProgress(plain_console, mode="lines", interval=30.0, clock=clock)
    progress.start(1, 1000)
    for batch in range(100):
        clock.now += 1.0
        progress.step(0, batch, loss, 10)
    assert loss.reads == 3
    assert loss.detached == 100
    progress.finish()
    progress.finish()
    assert loss.reads == 4
    assert len(caplog.records) == 4


def test_atoms_per_second_follow_a_change_of_speed(plain_console):
    clock = Clock()
    progress = TrainingProgress(plain_console, mode="lines", interval=math.inf, clock=clock)
    progress.start(1, 10_000)
    for batch in range(400):
        clock.now += 1.0 if batch < 100 else 2.0
        progress.step(0, batch, 0.1, 1000)
    assert "500 atoms/s" in progress.line()


@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_nothing_is_invented_before_there_is_a_rate(mode, terminal, caplog):
    progress = TrainingProgress(terminal, mode=mode, clock=Clock())
    progress.start(2, 5)
    assert progress.line() == "Progress: epoch 0 (1 of 2), batch 0/5, ? atoms/s, ETA ?"
    progress.finish()


def test_errors_of_heads_are_named(terminal):
    clock = Clock()
    with TrainingProgress(
        terminal, mode="lines", errors_in_words=errors_in_words("PerAtomRMSE"), clock=clock
    ) as progress:
        progress.start(1, 5)
        for number, head in enumerate("abcdef"):
            progress.evaluated({"rmse_f": 0.001 * number}, head)
        progress.evaluated({"rmse_f": 0.5}, "a")  # of the next epoch
        line = progress.line()
    assert (
        "a: RMSE_E_per_atom=n/a meV, RMSE_F=500.00 meV / A; b: RMSE_E_per_atom=n/a meV, RMSE_F=1.00 meV / A; c: "
        in line
    )
    assert "; and 2 more heads, " in line and "e: " not in line.split("Progress: ")[1].replace("more heads", "")


def test_off_shows_nothing_and_reads_nothing(terminal, caplog):
    caplog.set_level(logging.INFO, logger="mace")
    clock, loss = Clock(), CountedLoss()
    with TrainingProgress(terminal, mode="off", clock=clock) as progress:
        progress.start(1, 5)
        for batch in range(5):
            clock.now += 100.0
            progress.step(0, batch, loss, 10)
        progress.evaluated({})
        assert list(progress.track(range(3), "Evaluating")) == [0, 1, 2]
    assert loss.reads == 0
    assert terminal.file.getvalue() == ""
    assert caplog.records == []


def test_bar_stays_below_log_lines_and_leaves_the_terminal_in_order(terminal):
    clock = Clock()
    setup_logging("INFO", None, terminal)
    try:
        with TrainingProgress(terminal, errors_in_words=errors_in_words("PerAtomRMSE"), clock=clock) as progress:
            progress.start(2, 4)
            for batch in range(4):
                clock.now += 1.0
                progress.step(0, batch, torch.tensor(0.5), 1500)
            assert list(progress.track([7, 8], "Evaluating valid_Default")) == [7, 8]
            progress.evaluated({"rmse_f": 0.05})
            logging.getLogger("mace").info("Epoch 0: done")
    finally:
        close_logging()
    text = terminal.file.getvalue()
    for fact in ("epoch 0 (1 of 2)", "4/4", "1.5 k atoms/s", "ETA 00:00:04", "loss=0.5", "RMSE_F=50.00 meV / A"):
        assert fact in text
    assert "RMSE_E_per_atom=n/a meV" in text
    assert "Evaluating valid_Default" in text
    assert "INFO: Epoch 0: done\n" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_the_cursor_comes_back_after_an_error(terminal):
    with pytest.raises(KeyboardInterrupt), TrainingProgress(terminal) as progress:
        progress.start(1, 1)
        raise KeyboardInterrupt
    assert "\x1b[?25h" in terminal.file.getvalue()


def test_a_jump_to_a_later_epoch_shortens_the_remaining_time(plain_console):
    clock = Clock()
    progress = TrainingProgress(plain_console, mode="lines", interval=math.inf, clock=clock)
    progress.start(100, 2)
    for epoch, batch in ((0, 0), (0, 1), (99, 0)):
        clock.now += 1.0
        progress.step(epoch, batch, 0.1, 10)
    assert progress.line().endswith("ETA 00:00:01")


def test_steps_before_the_start_are_a_mistake(plain_console):
    with pytest.raises(RuntimeError, match="start must be called"):
        TrainingProgress(plain_console).step(0, 0, 0.1, 1)


def test_mode_follows_the_console(plain_console, terminal):
    assert resolve_mode("auto", plain_console) == "lines"
    assert resolve_mode("auto", terminal) == "bar"
    assert resolve_mode("off", terminal) == "off"
    with pytest.raises(UserError, match="must be one of auto, bar, lines, off, not .loud"):
        TrainingProgress(terminal, mode="loud")


def test_track_writes_lines_every_interval(plain_console, caplog):
    caplog.set_level(logging.INFO, logger="mace")
    clock, seen = Clock(), []
    for item in track(range(10), "Building graphs", console=plain_console, interval=30.0, clock=clock):
        clock.now += 10.0
        seen.append(item)
    assert seen == list(range(10))
    assert _messages(caplog) == [
        "Progress: Building graphs, 3/10, ETA 00:01:10",
        "Progress: Building graphs, 6/10, ETA 00:00:40",
        "Progress: Building graphs, 9/10, ETA 00:00:10",
    ]


def test_track_knows_no_end_of_a_generator(plain_console, caplog):
    caplog.set_level(logging.INFO, logger="mace")
    clock = Clock()
    for _ in track((item for item in "ab"), "Reading", console=plain_console, interval=1.0, clock=clock):
        clock.now += 100_000.0
    assert _messages(caplog)[-1] == "Progress: Reading, 2 done, ETA ?"


def test_track_draws_a_bar_on_a_terminal(terminal):
    clock = Clock()
    for _ in track(iter("abcd"), "Reading train.xyz", 4, console=terminal, clock=clock):
        clock.now += 43_200.0
    assert "Reading train.xyz" in terminal.file.getvalue()
    assert "2/4" in terminal.file.getvalue()
    assert "ETA 1 d 00:00:00" in terminal.file.getvalue()


def test_track_without_a_console_is_silent(caplog):
    caplog.set_level(logging.INFO, logger="mace")
    assert list(track("abc", "Reading", interval=0.0)) == ["a", "b", "c"]
    assert caplog.records == []


def test_no_bar_in_a_file_even_where_everything_is_to_be_colored(monkeypatch, tmp_path):
    colored = {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    with (tmp_path / "log.txt").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        console = Console(_environ=colored)
        assert console.is_terminal
        assert resolve_mode("auto", console) == "lines"
