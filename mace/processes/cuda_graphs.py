"""Capturing what a device does, to repeat it without the program that ordered it: CUDA graphs.

The program of a step takes longer to order its work than a device to do it. What is captured is ordered as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet

import torch

from mace.processes.garbage_collection import collection_paused

_Results = TypeVar("_Results")
_CAPTURING = threading.Lock()
"""Held during a capture, of which a process can only make one at a time."""


@dataclass(frozen=True)
class Captured(Generic[_Results]):
    """Work that can be repeated; memory and kernels are those of the capture.

    Attributes:
        results: What the function returned, whose tensors are written anew at every repetition.
        repeat: Does the work again, in the order of the current stream.
        n_bytes: Memory of the device that it takes, besides what it shares with others of the same recorder.
    """

    results: _Results
    repeat: Callable[[], None]
    n_bytes: int


class Recorder(Protocol):
    """What captures work.

    Attributes:
        most_bytes: Memory that all that is captured may take.
    """

    most_bytes: float

    def capture(self, work: Callable[[], _Results], rehearsal: Callable[[], object]) -> Captured[_Results]:
        """Capture the work of a function, which is not done by that.

        Args:
            work: The function. What it does in the memory of the host happens once, here; it must not wait for the
                device.
            rehearsal: A function that does all that, or nearly all, and leaves nothing behind; it is called before.
        """
        ...


LARGEST_SHARE = 0.25
"""Share of a device's memory that captured work of one kind may take."""


class CudaGraphs:
    """Captures work in CUDA graphs, all with the same memory: they must not run at the same time.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.most_bytes = LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def capture(self, work: Callable[[], _Results], rehearsal: Callable[[], object]) -> Captured[_Results]:
        """See `Recorder`."""
        with _CAPTURING, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                rehearsal()
            current.wait_stream(self._stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # as the capture does too, so that what it takes can be told
            free, _ = torch.cuda.mem_get_info()
            if not self._graphs:  # memory whose last graph is gone cannot be that of another one
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # other threads may lock memory for batches meanwhile. A graph that was given up may not be destroyed during
            # a capture, as the garbage collection might. The outer block restores the stream if a capture fails
            with torch.cuda.stream(current), collection_paused():
                recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
                with recording:
                    results = work()
            self._graphs.add(graph)
            n_bytes = max(0, free - torch.cuda.mem_get_info()[0])
        return Captured(results, graph.replay, n_bytes)


def has_graphs(device: torch.device) -> bool:
    """Return whether work on a device can be captured."""
    return device.type == "cuda"


def recorder_for(device: torch.device) -> Recorder:
    """Return what captures work on a device that `has_graphs`."""
    return CudaGraphs(device)
