"""The trackers there are: tables as CSV, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import difflib
import io
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.files.durable import write_durably
from mace.reporting.trackers import Record, Tracker, Trackers, scalars
from mace.settings import TrainingSettings

_LOGGER = logging.getLogger(__name__)

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Setting of each tracker that needs a package, and the package."""


class CsvTables:
    """One table of all steps and one of all evaluations, complete after every line.

    At the beginning both are written anew from the history, so that they say the same as the JSON lines also after a
    run was killed and resumed. A column that comes up later is added to all rows.

    Args:
        steps: File of the steps.
        evaluations: File of the evaluations.
    """

    name = "The table as CSV"

    def __init__(self, steps: Path, evaluations: Path) -> None:
        self._tables = {"opt": _Table(steps), "eval": _Table(evaluations)}

    def begin(self, history: Sequence[Record], update: int) -> None:
        """Write both tables anew."""
        rows: dict[str, list[dict[str, Any]]] = {mode: [] for mode in self._tables}
        count = 0
        for record in history:
            count += record.get("mode") == "opt"
            if record.get("mode") in rows:
                rows[record["mode"]].append(_row(record, count))
        for mode, table in self._tables.items():
            table.begin(rows[mode])

    def take(self, record: Record, update: int) -> None:
        """Append a row."""
        if record.get("mode") in self._tables:
            self._tables[record["mode"]].append(_row(record, update))

    def finish(self, completed: bool) -> None:
        """Every row is in the files already."""


def _row(record: Record, update: int) -> dict[str, Any]:
    return {"update": update, **{key: value for key, value in record.items() if key != "mode"}}


class _Table:
    """A CSV file whose columns can grow.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._columns = path, list[str]()

    def begin(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the file."""
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        if not rows:
            self._path.unlink(missing_ok=True)
            return
        write_durably(self._path, self._text(rows, header=True).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        new = [key for key in row if key not in self._columns]
        if new and self._columns:
            with self._path.open(encoding="utf-8", newline="") as file:
                earlier = list(csv.DictReader(file))
            self.begin([*earlier, row])
            return
        self._columns += new
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text([row], header=bool(new)))

    def _text(self, rows: Sequence[dict[str, Any]], header: bool) -> str:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()


class TensorBoardFiles:
    """Event files that TensorBoard shows; a run that is resumed goes on in the same folder.

    Args:
        folder: Of the run.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, history: Sequence[Record], update: int) -> None:
        """Open a new event file; what earlier ones say beyond the present update is void."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=update + 1 if history else None)
        _LOGGER.info("TensorBoard: tensorboard --logdir %s", self._folder.parent)

    def take(self, record: Record, update: int) -> None:
        """Write all numbers of a record."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, update)

    def finish(self, completed: bool) -> None:
        """Write what waits."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, under the id of our run, so that one that is resumed goes on there too.

    Args:
        settings: The settings.
        tag: Name of the run if none is given.
        run: Its id.
    """

    name = "Weights & Biases"

    def __init__(self, settings: TrainingSettings, tag: str, run: str) -> None:
        self._settings, self._tag, self._id = settings, tag, run
        self._run: Any = None

    def begin(self, history: Sequence[Record], update: int) -> None:
        """Start the run at the service, or take it up; later updates win over what was sent before."""
        if self._run is not None:
            return
        import wandb

        settings = self._settings
        # the service makes a folder 'wandb' inside the one it is given
        folder = Path(settings.wandb_dir or settings.work_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = {name: getattr(settings, name) for name in settings.wandb_log_hypers}
        try:
            self._run = wandb.init(
                project=settings.wandb_project or None,
                entity=settings.wandb_entity or None,
                name=settings.wandb_name or self._tag,
                dir=str(folder),
                id=self._id,
                resume="allow",
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"--wandb: Weights & Biases cannot start ({reason}); log in with 'wandb login', or set "
                "WANDB_MODE=offline and send the run later with 'wandb sync'."
            ) from error
        # updates may begin anew after a run went back, which the service's own count of steps does not allow
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")
        place = self._run.dir if self._run.offline else self._run.url
        _LOGGER.info("Weights & Biases: run %s in %s", self._id, place)

    def take(self, record: Record, update: int) -> None:
        """Send all numbers of a record."""
        self._run.log({**scalars(record), "update": update})

    def finish(self, completed: bool) -> None:
        """End the run at the service."""
        if self._run is not None:
            self._run.finish(exit_code=0 if completed else 1)


def require_trackers(settings: TrainingSettings) -> None:
    """Check that the trackers can run, before any data is read.

    Raises:
        UserError: If a package is missing, or a flag names something that does not exist.
    """
    for name, package in _PACKAGES.items():
        if getattr(settings, name) and find_spec(package) is None:
            raise UserError(
                f"--{name} needs the package {package}; install it with pip install 'mace-train[{name}]', or remove "
                "the flag."
            )
    for name in settings.wandb_log_hypers if settings.wandb else ():
        if name not in TrainingSettings.model_fields:
            near = difflib.get_close_matches(name, TrainingSettings.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all settings."
            raise UserError(f"--wandb_log_hypers: {name} is not a setting; {hint}")


def make_trackers(settings: TrainingSettings, results: Path, tag: str, run: str, writes: bool = True) -> Trackers:
    """Build the trackers that the settings ask for.

    Args:
        settings: The settings.
        results: Folder of the results.
        tag: ``<name>_run-<seed>``.
        run: Id of the run; one that is resumed has the same.
        writes: Whether this process writes files; only the first one does.
    """
    if not writes:
        return Trackers([])
    trackers: list[Tracker] = []
    if settings.csv:
        trackers.append(CsvTables(results / f"{tag}_steps.csv", results / f"{tag}_evaluations.csv"))
    if settings.tensorboard:
        trackers.append(TensorBoardFiles(results / f"{tag}_tensorboard" / run))
    if settings.wandb:
        trackers.append(WeightsAndBiases(settings, tag, run))
    return Trackers(trackers)
