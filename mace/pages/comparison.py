"""Learning curves of one or several runs over each other, from their records alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mace.errors import UserError
from mace.files.durable import write_durably
from mace.pages.curves import MEASURED, MEASURES, NamedRun, draw_panels
from mace.pages.html import table
from mace.pages.plots import plot_panels
from mace.pages.run_page import assemble, curves_section, speed_section
from mace.pages.verdicts import duration
from mace.reporting.history import RunHistory
from mace.reporting.records import read_records

_LOGGER = logging.getLogger(__name__)

_ENDING = "_train.txt"
_OTHER_KEYS = ("loss", "lr", "grad_norm")
KEYS = (*_OTHER_KEYS, *(f"{measure}_{m.suffix}" for m in MEASURED for measure in m.measures))
"""What there are panels of, as records call it."""


@dataclass(frozen=True)
class Drawing:
    """What is wanted.

    Attributes:
        output: Path of the files to write, without ending; None for one beside the first file of records.
        picture: Ending of the picture; None for none.
        keys: Panels of the picture, of `KEYS`; None for all that fit RMSE.
        min_epoch: First epoch that is drawn.
        stage_two_start: First epoch of stage two, where the records do not say it.
        linear: Whether the vertical axes of the picture are linear.
        heads: Heads that are drawn; None for all.
    """

    output: Path | None = None
    picture: str | None = "png"
    keys: Sequence[str] | None = None
    min_epoch: int = 0
    stage_two_start: int | None = None
    linear: bool = False
    heads: Sequence[str] | None = None


def compare_runs(paths: Sequence[str], wanted: Drawing) -> list[Path]:
    """Write the page and the picture of one or several runs.

    Args:
        paths: Files of records, or folders that hold some.
        wanted: What to draw.

    Returns:
        The files that were written.

    Raises:
        UserError: If there are no records, or files cannot be read or written.
    """
    files = find_records(paths)
    # named by their files, with as much of the folders as tells them apart
    names = [str(file) for file in files]
    for depth in range(max(len(file.resolve().parts) for file in files), 0, -1):
        shorter = ["/".join(file.resolve().parts[-depth:]).removesuffix(_ENDING) for file in files]
        names = shorter if len(set(shorter)) == len(shorter) else names
    runs = [_run(file, name if len(files) > 1 else "", wanted) for file, name in zip(files, names, strict=True)]
    output = wanted.output or (files[0].with_suffix("") if len(files) == 1 else Path("comparison"))
    written = [output.with_name(f"{output.name}.html")]
    sections = {
        "runs": ("Runs", _summary(names, runs)),
        "learning": ("Learning", curves_section(runs)),
        "speed": ("Speed", speed_section([(run.name, run.history) for run in runs])),
    }
    heads = list(dict.fromkeys(head for run in runs for head in run.history.heads))
    title, subtitle = names[0] if len(runs) == 1 else f"{len(runs)} runs", "Drawn from " + ", ".join(map(str, files))
    when = f'<p class="soft">Written {datetime.now():%Y-%m-%d %H:%M:%S}.</p>'
    try:
        write_durably(written[0], assemble(title, subtitle, when, sections, heads).encode())
    except OSError as error:
        raise UserError(
            f"{written[0]}: the page cannot be written ({error.strerror}); choose another --output."
        ) from error
    if wanted.picture is not None:
        written.append(output.with_name(f"{output.name}.{wanted.picture}"))
        keys = wanted.keys or [*_OTHER_KEYS, *(key for key in KEYS if key.startswith("rmse"))]
        panels = [panel for panel in draw_panels(runs) if panel.key in keys]
        if not panels:
            raise UserError(
                f"--keys: the records have none of {', '.join(keys)}; {', '.join(MEASURES)} exist of what is measured."
            )
        try:
            plot_panels(panels, written[1], linear=wanted.linear)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{written[1]}: the picture cannot be written ({reason}).") from error
    return written


def find_records(paths: Sequence[str]) -> list[Path]:
    """Find the files of records in paths.

    Raises:
        UserError: If a path does not exist, or a folder has none.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted([*path.glob(f"*{_ENDING}"), *path.glob(f"results/*{_ENDING}")])
            if not inside:
                raise UserError(f"{path}: there is no file of records (*{_ENDING}) in this folder or its results/.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder; records of a run are in results/*{_ENDING}.")
    return list(dict.fromkeys(found))


def _run(file: Path, name: str, wanted: Drawing) -> NamedRun:
    """Read a run as far as it is wanted."""

    def is_wanted(record: dict[str, object]) -> bool:
        epoch = record.get("epoch")
        if wanted.heads is not None and record.get("mode") == "eval" and record.get("head") not in wanted.heads:
            return False
        return (isinstance(epoch, int) and epoch >= wanted.min_epoch) or (epoch is None and not wanted.min_epoch)

    try:
        history = RunHistory.of(record for record in read_records(file) if is_wanted(record))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{file}: the records cannot be read ({reason}).") from error
    if wanted.heads is not None and (unknown := [head for head in wanted.heads if head not in history.heads]):
        known = ", ".join(dict.fromkeys(str(r["head"]) for r in read_records(file) if r.get("head")))
        raise UserError(f"--heads: {file} has no evaluation of a head '{unknown[0]}'; it has {known or 'no heads'}.")
    if not history.numbers():
        limit = f" from epoch {wanted.min_epoch} on" if wanted.min_epoch else ""
        raise UserError(f"{file}: it has no record of an epoch{limit}, so there is nothing to draw.")
    losses = {epoch: loss for epoch, loss in history.validation_losses().items() if math.isfinite(loss)}
    start = history.stage_two_start
    chosen = {epoch: loss for epoch, loss in losses.items() if start is not None and epoch >= start} or losses
    best = [(min(chosen, key=chosen.__getitem__), "best")] if chosen else []
    return NamedRun(name, history, start or wanted.stage_two_start, best)


def _summary(names: Sequence[str], runs: Sequence[NamedRun]) -> str:
    """Write a row per run and head, with the errors of its best epoch."""
    metrics = [(f"rmse_{m.suffix}", m) for m in MEASURED if any(r.history.has_metric(f"rmse_{m.suffix}") for r in runs)]
    several = any(len(run.history.heads) > 1 for run in runs)
    header = ["run", *(["head"] if several else []), "epochs", "steps", "best epoch", "validation loss"]
    header += [f"RMSE {m.title} / {m.unit}" for _, m in metrics] + ["time of steps"]
    rows, heads = [], []
    for name, run in zip(names, runs, strict=True):
        history, best = run.history, run.best[0][0] if run.best else None
        seconds = math.fsum(sums.working_seconds for sums in history.epochs.values())
        for head in history.heads or ("",):
            losses = history.validation_losses(head)
            record = {} if best is None else history.valid.get(head, {}).get(best, {})
            row = [name, *([head] if several else [])]
            row += [str(len(history.numbers())), f"{sum(s.steps for s in history.epochs.values()):,}"]
            row += ["\u2013", "\u2013"] if best is None else [str(best), f"{losses.get(best, math.nan):.5g}"]
            for metric, measured in metrics:
                value = record.get(metric)
                row.append("\u2013" if value is None else f"{value * measured.factor:.4g}")
            rows.append([*row, duration(seconds)])
            heads.append(head if several else "")
    return table(header, rows, "runs", left=1 + several, heads=heads)
