"""What the commands print and write: the machine, the times, and their ratio."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Comparison
from rich.console import Console
from rich.table import Table
from workers import Settings


def machine_facts() -> dict[str, Any]:
    """Describe the machine and the moment."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": available,
        "system": platform.platform(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_before"] = round(os.getloadavg()[0], 2)
    return facts


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def summary(comparison: Comparison) -> dict[str, Any]:
    """Condense the times: median, least and largest of each side, and how many times longer each takes than ours.

    ``ratio`` and ``ratio_of_repeats``, its least and largest value in a repeat, compare the peer with ours; the like of
    Symmetrix have its name in front. Either may be missing.
    """
    result: dict[str, Any] = {"title": comparison.title}
    for side, facts in comparison.facts.items():
        seconds = comparison.seconds[side]
        median = float(np.median(seconds))
        times = {"median_s": median, "min_s": float(np.min(seconds)), "max_s": float(np.max(seconds))}
        result[side] = facts | times | {"atoms_per_s": facts["atoms"] / median, "seconds": seconds}
        if side in comparison.phases:
            result[side]["phases_s"] = _medians(comparison.phases[side])
    for side, prefix in (("peer", ""), ("symmetrix", "symmetrix_")):
        if side in comparison.facts:
            by_repeat = np.median(comparison.seconds[side], axis=1) / np.median(comparison.seconds["ours"], axis=1)
            result[f"{prefix}ratio"] = result[side]["median_s"] / result["ours"]["median_s"]
            result[f"{prefix}ratio_of_repeats"] = [float(by_repeat.min()), float(by_repeat.max())]
    for side, prefix in (("ours", ""), ("symmetrix", "symmetrix_")):
        if side in comparison.disagreement:
            result[f"{prefix}disagreement_of_forces"] = comparison.disagreement[side]
    return result


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of the seconds of every phase."""
    return {phase: float(np.median([step[phase] for step in steps])) for phase in steps[0]}


def _shares(phases: dict[str, float]) -> dict[str, str]:
    """Return the share of each phase in percent."""
    return {phase: f"{100.0 * seconds / sum(phases.values()):.1f}" for phase, seconds in phases.items()}


def _sides(result: dict[str, Any]) -> list[str]:
    return [side for side in ("peer", "ours", "symmetrix") if side in result]


def tell(
    console: Console, file: Path | None, facts: dict[str, Any], settings: Settings, results: list[dict[str, Any]]
) -> None:
    """Print what was measured, and write it if a file is given."""
    print_machine(console, facts, settings, results)
    if settings.get("sizes"):
        print_sizes(console, results)
    else:
        for result in results:
            _print_times(console, result)
    if file is not None:
        write_json(file, facts, settings, results)


def print_machine(console: Console, facts: dict[str, Any], settings: Settings, results: list[dict[str, Any]]) -> None:
    """Print on which machine, with what and with which model the times were taken."""
    model, lines = settings["model"], list[str]()
    print_machine_lines(console, facts)
    for side in _sides(results[0]):
        told = results[0][side]
        torch = f", torch {told['torch']}" if "torch" in told else ""
        parameters = f", {told['parameters']} parameters" if "parameters" in told else ""
        lines.append(f"{side}: {told['package']}{torch}, threads {told['threads']}{parameters}")
    lines.append(
        f"{model['hidden']}, l_max {model['l_max']}, correlation {model['correlation']}, layers {model['layers']}, "
        f"r_max {model['r_max']:g} A, {settings['dtype']}"
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_machine_lines(console: Console, facts: dict[str, Any]) -> None:
    """Print on which machine and when the times were taken."""
    load = f", load {facts['load_before']} before the start" if "load_before" in facts else ""
    for line in (f"{facts['date']}  {facts['cpu']}, {facts['cores']} cores{load}", facts["system"]):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_table(console: Console, facts: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Print, in markdown, a row for each comparison with the peer: medians, their ratio, shares of our phases."""
    print_machine_lines(console, facts)
    peer, ours = results[0]["peer"], results[0]["ours"]
    phases = (f"{phase} %" for phase in ours["phases_s"])
    headings = ["", "atoms", "edges", "threads", "peer, ms", "ours, ms", "ratio", "by repeat", *phases]
    lines = [f"peer: {peer['package']}, ours: {ours['package'].partition(' (')[0]}, torch {ours['torch']}", ""]
    lines += ["| " + " | ".join(headings) + " |", "| --- " * len(headings) + "|"]
    for result in results:
        ours, (low, high) = result["ours"], result["ratio_of_repeats"]
        counts = f"{ours['atoms']:.0f}", f"{ours['edges']:.0f}", str(ours["threads"])
        medians = (f"{1e3 * result[side]['median_s']:.1f}" for side in ("peer", "ours"))
        ratio = f"{result['ratio']:.2f}", f"{low:.2f} to {high:.2f}"
        cells = [result["title"], *counts, *medians, *ratio, *_shares(ours["phases_s"]).values()]
        lines.append("| " + " | ".join(cells) + " |")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _print_times(console: Console, result: dict[str, Any]) -> None:
    """Print the times of all sides and their ratios as a table."""
    ours = result["ours"]
    count = sum(len(turn) for turn in ours["seconds"])
    table = Table(
        title=f"{result['title']}: {ours['atoms']:.0f} atoms, {ours['edges']:.0f} edges", title_justify="left"
    )
    for heading in ("", "median ms", "min ms", "max ms", "atoms/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in _sides(result):
        side = result[name]
        times = (f"{1e3 * side[key]:.1f}" for key in ("median_s", "min_s", "max_s"))
        table.add_row(side["package"], *times, f"{side['atoms_per_s']:.0f}")
    console.print(table)
    lines = [f"{_ratio(result)}, {count} steps each"]
    if "symmetrix" in result:
        lines.append(_ratio(result, "symmetrix", "symmetrix_"))
    if "phases_s" in ours:
        lines.append("of ours " + ", ".join(f"{phase} {share} %" for phase, share in _shares(ours["phases_s"]).items()))
    lines.append("measured: " + "; ".join(f"{name} {result[name]['what']}" for name in _sides(result)))
    lines.append(f"largest difference of forces {result['disagreement_of_forces']:.0e} of their root mean square")
    if "symmetrix" in result:
        lines[-1] += f", symmetrix to peer {result['symmetrix_disagreement_of_forces']:.0e}"
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_sizes(console: Console, results: list[dict[str, Any]]) -> None:
    """Print the times of structures of several sizes as one table, one line each."""
    table = Table(title=results[0]["title"], title_justify="left")
    others = {
        side: prefix for side, prefix in (("peer", ""), ("symmetrix", "symmetrix_")) if any(side in r for r in results)
    }
    for heading in (
        "atoms",
        "edges",
        "ours ms",
        "us/atom",
        *(f"{side} {what}" for side in others for what in ("ms", "ratio")),
    ):
        table.add_column(heading, justify="right")
    for result in results:
        ours = result["ours"]
        cells = [f"{ours['atoms']:.0f}", f"{ours['edges']:.0f}"]
        cells += [f"{1e3 * ours['median_s']:.2f}", f"{1e6 / ours['atoms_per_s']:.1f}"]
        for side, prefix in others.items():
            taken = side in result
            cells += [f"{1e3 * result[side]['median_s']:.1f}", f"{result[f'{prefix}ratio']:.2f}"] if taken else ["", ""]
        table.add_row(*cells)
    console.print(table)
    for side in ("ours", *others):
        what = next(result[side]["what"] for result in results if side in result)
        console.print(f"measured: {side} {what}", soft_wrap=True, markup=False, highlight=False)
    differences = [result[name] for result in results for name in result if name.endswith("disagreement_of_forces")]
    if differences:
        console.print(f"largest difference of forces {max(differences):.0e} of their root mean square", highlight=False)


def _ratio(result: dict[str, Any], side: str = "peer", prefix: str = "") -> str:
    low, high = result[f"{prefix}ratio_of_repeats"]
    return f"ratio of medians {side} to ours {result[f'{prefix}ratio']:.2f} ({low:.2f} to {high:.2f} by repeat)"


def write_json(file: Path, facts: dict[str, Any], settings: Settings, results: list[dict[str, Any]]) -> None:
    """Write everything that was measured, every single time included."""
    content = {"machine": facts, "settings": settings, "results": results}
    file.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
