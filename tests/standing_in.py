"""What stands in for CUDA graphs where there is no device: the same program, run again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mace.graphs.graph import _tensors
from mace.processes.cuda_graphs import Captured


class Rerun:
    """Captures work by keeping the function; a repetition runs it and writes its results to where they were.

    As with CUDA graphs, a capture computes nothing: tensors that are changed by it get back what they were.

    Args:
        changing: Returns the tensors that work may change.
    """

    def __init__(self, changing: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self.most_bytes = float("inf")
        self.n_bytes, self.captures, self.repetitions = 0, 0, 0
        self.error: BaseException | None = None
        self._changing = changing

    def capture(self, work: Callable[[], Any], rehearsal: Callable[[], object]) -> Captured[Any]:
        before = [(tensor, tensor.detach().clone()) for tensor in self._changing()]
        rehearsal()
        for tensor, values in before:  # a rehearsal leaves nothing behind
            assert torch.equal(tensor.nan_to_num(1.5), values.nan_to_num(1.5))
        if self.error is not None:
            raise self.error
        results = work()
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)
        for tensor in _tensors(results):
            tensor.detach().fill_(float("nan"))  # nothing is computed by a capture
        self.captures += 1

        def repeat() -> None:
            self.repetitions += 1
            found = _tensors(work())
            with torch.no_grad():
                for there, value in zip(_tensors(results), found, strict=True):
                    there.copy_(value)

        return Captured(results, repeat, self.n_bytes)
