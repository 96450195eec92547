"""Where log messages go and how they are formatted."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mace.console.terminal import PlainConsole
from mace.errors import UserError, plain

_LOGGER = logging.getLogger(__name__)

LOGGER_NAME = "mace"
"""The logger above all of ours; no other logger is ever touched."""

_LINE = "%(asctime)s.%(msecs)03d %(levelname)s: %(message)s"
_DATE = "%Y-%m-%d %H:%M:%S"
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


class ConsoleHandler(logging.Handler):
    """Writes log lines through rich, so that a progress bar on the same console stays below them.

    The text is written as it is: nothing is wrapped, highlighted or interpreted as markup. On a terminal, warnings are
    yellow and errors red.
    """

    def __init__(self, console: Console) -> None:
        """Write to ``console``."""
        super().__init__()
        self.console, self._told = console, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; if the terminal is lost, the log file says so once."""
        try:
            line = Text(self.format(record), style=_STYLES.get(record.levelno, ""))
            self.console.print(line, soft_wrap=True)
        except UserError:
            raise  # this command is pointless without its output, which cannot be written
        except Exception:  # noqa: BLE001  # the contract of logging: what cannot be written is reported, never raised
            self.handleError(record)
        lost = getattr(self.console.file, "lost", None)  # see `mace.console.streams`
        if lost and not self._told:
            self._told = True
            _LOGGER.warning("Nothing more is shown, because the output cannot be written (%s); the work goes on", lost)


class PlainFormatter(logging.Formatter):
    """Formats records so that nothing in them, such as names taken from files, can control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        return plain(super().format(record))


class _RunFileHandler(logging.Handler):
    """Appends every message to a file; if one cannot be written, there is a single warning and the run goes on.

    The file is opened for each message, so that a file that was moved or removed is started anew and no unwritten text
    piles up when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._warned = path, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                reason = error.strerror or error
                _LOGGER.warning("%s: the log cannot be written (%s); the work goes on", self._path, reason)


def setup_logging(
    level: int | str, log_path: Path | str | None, console: Console | None, quiet: bool = False
) -> logging.Logger:
    """Send the messages of the ``mace`` logger to the terminal and to a file, formatted alike.

    A further call replaces what the last one set up. Other loggers, including the root logger, are not changed.

    Args:
        level: Lowest level that is shown, as a number or a name such as ``"INFO"``.
        log_path: File to append to; its folder is created. ``None`` for no file.
        console: Console to write to, the same that draws the progress bar. ``None`` for no terminal output.
        quiet: Whether only warnings and errors go to the terminal; the file gets everything.

    Returns:
        The ``mace`` logger.

    Raises:
        UserError: If the level is unknown.
    """
    number = level if isinstance(level, int) else logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise UserError(f"There is no log level '{level}'. Choose --log_level from DEBUG, INFO, WARNING, ERROR.")
    close_logging()
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(number)
    # Otherwise every line appears twice where a library has put a handler on the root logger.
    logger.propagate = False
    handlers: list[logging.Handler] = []
    if console is not None:
        handlers.append(ConsoleHandler(console))
        handlers[0].setLevel(logging.WARNING if quiet else logging.NOTSET)
    if log_path is not None:
        with suppress(OSError):  # the first message reports the problem
            Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_RunFileHandler(Path(log_path)))
    for handler in handlers:
        handler.setFormatter(PlainFormatter(_LINE, _DATE))
        logger.addHandler(handler)
    return logger


def setup_logging_of_others(rank: int) -> None:
    """Limit the messages of a process other than the first to what concerns it alone: that it ran out of memory.

    Args:
        rank: Rank of the process.
    """
    logger = setup_logging(logging.WARNING, None, PlainConsole(stderr=True))
    for handler in logger.handlers:
        handler.setFormatter(PlainFormatter(f"process {rank}: %(message)s"))
        handler.addFilter(logging.Filter(f"{LOGGER_NAME}.training.memory"))


def close_logging() -> None:
    """Undo `setup_logging`: close the file and leave the ``mace`` logger as it was before."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        if isinstance(handler, (ConsoleHandler, _RunFileHandler)):
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def log_path(directory: Path | str, name: str, seed: int) -> Path:
    """Return the path of the log of the run called ``name`` with ``seed``."""
    return Path(directory) / f"{name}_run-{seed}.log"
