"""Timing of steps on a device; it runs in the interpreters of all sides, so it needs torch and nothing else."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

WARM_UP = 5
"""Steps before any is timed, besides the first."""

LEAST, MOST = 5, 200
"""Number of timed steps."""

LARGEST_KERNELS = 10
"""Kernels whose times are told one by one."""

Step = Callable[[], object]


def serve(prepare: Callable[[dict[str, Any], dict[str, Any]], Step], identify: Callable[[dict[str, Any]], Any]) -> None:
    """Measure the cases of the file named on the command line; write a line of JSON about each to standard output.

    Args:
        prepare: Builds what a case needs from it and the settings of all cases; returns a function that does a step.
        identify: Returns versions and the like, for all cases.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs elsewhere

    def tell(line: Mapping[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tell({"facts": identify(settings)})
    for case in settings["cases"]:
        tell({"starting": case["name"]})
        try:
            tell({"case": case["name"], **_measured(lambda case=case: prepare(settings, case), settings)})
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the other cases can still be measured
            lines = traceback.format_exception(error)
            tell({"case": case["name"], "error": f"{type(error).__name__}: {error}"[:500], "trace": "".join(lines)})
        if settings["device"].startswith("cuda"):
            torch.cuda.empty_cache()


def _measured(prepare: Callable[[], Step], settings: dict[str, Any]) -> dict[str, Any]:
    device = torch.device(settings["device"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    step = prepare()
    wait(device)
    found = {"preparation_s": time.perf_counter() - start} | timed(step, device, settings["seconds"])
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        found |= profiled(step, device)
    if hasattr(step, "facts"):
        found |= step.facts
    return found


def wait(device: torch.device) -> None:
    """Wait for everything that was given to a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Step, device: torch.device, seconds: float) -> dict[str, Any]:
    """Time steps for so many seconds in all, one by one.

    Returns:
        Seconds of the first step, compilation included; median, tenth and ninetieth percentile of those after the
        warm-up, measured by events on a device; the median of what the host takes to submit a step; and all times.
    """
    start = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - start
    start = time.perf_counter()
    step()
    wait(device)
    once = time.perf_counter() - start
    for _ in range(min(WARM_UP, int(seconds / max(once, 1e-6)))):
        step()
    wait(device)
    count = int(min(max(seconds / max(once, 1e-6), LEAST if once < seconds else 1), MOST))
    times, submitting = (_by_events if device.type == "cuda" else _by_clock)(step, device, count)
    ranks = statistics.quantiles(times, n=10) if len(times) > 1 else times * 9
    return {
        "first_s": first,
        "median_s": statistics.median(times),
        "low_s": ranks[0],
        "high_s": ranks[-1],
        "submit_s": statistics.median(submitting),
        "seconds": times,
    }


def _by_clock(step: Step, device: torch.device, count: int) -> tuple[list[float], list[float]]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times, times


def _by_events(step: Step, device: torch.device, count: int) -> tuple[list[float], list[float]]:
    """Return times between events, and times to submit; the device is never waited for in between."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    submitting = []
    events[0].record()
    for number in range(count):
        start = time.perf_counter()
        step()
        events[number + 1].record()
        submitting.append(time.perf_counter() - start)
    wait(device)
    times = [one.elapsed_time(other) / 1e3 for one, other in zip(events, events[1:], strict=False)]
    return times, submitting


def profiled(step: Step, device: torch.device, steps: int = 3) -> dict[str, Any]:
    """Count the kernels and launches of a step, and the time of each of the largest kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
        wait(device)
    launches = copies = 0
    kernels: dict[str, list[float]] = {}
    for event in profile.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if event.name.startswith(("Memcpy", "Memset")):
                copies += 1
                continue
            kernels.setdefault(event.name, []).append(event.device_time_total)
        elif event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "hipLaunch", "hipGraphLaunch")):
            launches += 1
    largest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LARGEST_KERNELS]
    return {
        "kernels": sum(map(len, kernels.values())) / steps,
        "launches": launches / steps,
        "copies": copies / steps,
        "kernels_us": sum(map(sum, kernels.values())) / steps,
        "largest_us": {name[:100]: [len(times) / steps, sum(times) / steps] for name, times in largest},
    }


def device_facts(name: str) -> dict[str, Any]:
    """Describe a device and torch."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    device = torch.device(name)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "device_memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda or torch.version.hip,
        }
    return facts
