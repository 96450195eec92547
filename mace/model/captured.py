"""Functions of batches whose work on a device is captured once for each shape, and repeated from then on.

What is captured reads and writes the same memory at every repetition: batches are padded to buckets and copied to where
the batch of the capture was.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from mace.graphs.bucket import Bucket, filled
from mace.graphs.graph import Graph, place, refill
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict, without_padding
from mace.processes.cuda_graphs import Captured, Recorder
from mace.processes.devices import is_out_of_memory, release_memory
from mace.program.capture import Capture, capturing

_LOGGER = logging.getLogger(__name__)

_Given = TypeVar("_Given")
_Results = TypeVar("_Results")

MOST = 64
"""How many captured graphs are kept; those that were not used for the longest time are given up."""


def bucket_of(model: MACE, graph: Graph) -> Bucket:
    """Return the bucket that a graph is padded to; it depends on the graph alone, so that runs can be repeated."""
    return Bucket.of(graph, model.plan.n_elements, len(model.plan.head_names))


@dataclass
class Use(Generic[_Given]):
    """The memory of the batches of a key, and the work on them, once it is captured.

    Attributes:
        given: The latest batch, with whatever else it depends on, in the memory that those of this key share.
        latest: The same as it was handed over, where it is known not to be changed.
        count: How often it was used.
        captured: The work.
        capture: What it reads.
        fails: Whether it could not be captured.
    """

    given: _Given
    latest: _Given | None = None
    count: int = 0
    captured: Captured[Any] | None = None
    capture: Capture | None = None
    fails: bool = False


@dataclass
class CaptureCounts:
    """What was captured and repeated.

    Attributes:
        captured: Number of captures.
        repeated: How often work was repeated.
        others: How often the program did the work itself.
        most_bytes: Largest memory of what was captured and kept at a time.
    """

    captured: int = 0
    repeated: int = 0
    others: int = 0
    most_bytes: int = 0

    def __str__(self) -> str:
        """Return it in words for the log."""
        total = self.repeated + self.others
        return (
            f"{self.repeated} of {total} from {self.captured} CUDA graph{'s' * (self.captured != 1)}, which took up to "
            f"{self.most_bytes / 1e6:.0f} MB"
        )


class Captures:
    """Captured work, by key.

    The work of a key is done by the program at its first use, which loads kernels and makes what is made once. At the
    second one it is captured.

    Args:
        recorder: What captures it.
        device: Where the work is done.
        purpose: Name of the work in messages.
        strict: Whether a capture that fails, for another reason than memory, is an error; else nothing is captured any
            more, with a warning.
        most: How many are kept.

    Attributes:
        counts: What was captured and repeated so far.
    """

    def __init__(
        self, recorder: Recorder, device: torch.device, purpose: str, strict: bool = True, most: int = MOST
    ) -> None:
        self._strict, self._has_failed = strict, False
        self._recorder, self._device, self._purpose, self._most = recorder, device, purpose, most
        self._uses: OrderedDict[Hashable, Use[Any]] = OrderedDict()
        self._basis: Sequence[object] = ()
        self.counts = CaptureCounts()

    def use(self, key: Hashable, given: _Given, basis: Sequence[object], constant: bool = False) -> Use[_Given]:
        """Copy a batch to the memory of its key.

        Args:
            key: Whatever the work depends on besides the numbers in `given`, their shapes included.
            given: The batch, with whatever else differs from use to use.
            basis: Objects and addresses on which all that is captured rests: if they are not the same as before,
                everything is forgotten.
            constant: Whether nobody changes the tensors of `given` in place; those seen before are not copied again.
        """
        if not _same(basis, self._basis):
            self._uses.clear()
            self._basis = tuple(basis)
        found = self._uses.get(key)
        if found is None:
            found = self._uses[key] = Use(place(given, self._device))
            self._give_up()
        elif found.fails:
            found.given = place(given, self._device)
        else:
            refill(found.given, given, found.latest)
        self._uses.move_to_end(key)
        found.latest = given if constant else None
        found.count += 1
        return found

    def _give_up(self) -> None:
        """Give up what was not used for the longest time, if it is too much."""
        while len(self._uses) > self._most or (len(self._uses) > 1 and self._n_bytes() > self._recorder.most_bytes):
            self._uses.popitem(last=False)

    def _n_bytes(self) -> int:
        return sum(use.captured.n_bytes for use in self._uses.values() if use.captured is not None)

    def ready(
        self, use: Use[Any], work: Callable[[], _Results], rehearsal: Callable[[], object]
    ) -> Captured[_Results] | None:
        """Return the captured work of a key, which this captures at the second use.

        Args:
            use: What `use` has returned.
            work: The work with ``use.given``; see `mace.processes.cuda_graphs.Recorder`.
            rehearsal: See there.

        Returns:
            What repeats it, whose results the next repetition overwrites; None if the program has to do the work.
        """
        if use.captured is None and use.count > 1 and not (use.fails or self._has_failed):
            self._capture(use, work, rehearsal)
        if use.captured is None:
            self.counts.others += 1
        else:
            self.counts.repeated += 1
        return use.captured

    def _capture(self, use: Use[Any], work: Callable[[], Any], rehearsal: Callable[[], object]) -> None:
        capture = Capture()

        def captured() -> Any:
            with capturing(capture):
                return work()

        def rehearsed() -> None:
            with capturing(Capture(rehearsal=True)):
                rehearsal()

        try:
            use.captured = self._recorder.capture(captured, rehearsed)
        except RuntimeError as error:
            use.fails = True
            if not _is_of_memory(error):
                self._give_in(error)
                return
            release_memory()
            _LOGGER.warning(
                "Memory ran out where a CUDA graph was captured for %s; batches of this size are computed without one, "
                "more slowly",
                self._purpose,
            )
            return
        capture.finish()
        use.capture = capture
        self.counts.captured += 1
        self._give_up()
        self.counts.most_bytes = max(self.counts.most_bytes, self._n_bytes())

    def _give_in(self, error: RuntimeError) -> None:
        """Capture nothing any more, or raise an error."""
        if self._strict:
            raise error
        self._has_failed = True
        _LOGGER.warning(
            "A CUDA graph for %s cannot be captured (%s); no more are, which is slower", self._purpose, error
        )


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Return whether objects are the same ones, and numbers equal."""
    return len(one) == len(other) and all(
        a is b or (isinstance(a, int) and a == b) for a, b in zip(one, other, strict=True)
    )


def _is_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; the end of a capture that failed may have raised an error of its own."""
    found: BaseException | None = error
    while found is not None:
        if is_out_of_memory(found):
            return True
        found = found.__context__
    return False


def basis_of(model: MACE) -> list[object]:
    """Return the objects and addresses on which captured work of a model rests."""
    parameters = model.programs.parameters(model)
    constants = (model.reference_energies, model.scales, model.shifts)
    addresses = [value.data_ptr() for values in (parameters.values(), constants) for value in values]
    trained = [value.requires_grad for value in parameters.values()]
    return [model.backend, model.radial_tables, model.programs, parameters, *addresses, *trained]


def key_of(graph: Graph) -> Hashable:
    """Return what the shapes of a padded graph, and of all that is computed from it, depend on."""
    return graph.sizes, tuple(graph.conditions)


class CapturedPredictions:
    """Predictions of a model, captured by bucket.

    Args:
        model: The model, which has a program.
        recorder: What captures its work.
        purpose: Name of the work in messages.
        strict: See `Captures`.

    Attributes:
        model: The model.
        counts: What was captured and repeated so far.
    """

    def __init__(self, model: MACE, recorder: Recorder, purpose: str, strict: bool = True) -> None:
        self.model = model
        self._captures = Captures(recorder, model.embedding.device, purpose, strict)
        self._latest: tuple[Graph, Graph] | None = None
        self.counts = self._captures.counts

    def predict(self, graph: Graph, **wanted: bool) -> Prediction:
        """Evaluate the model on a padded graph.

        Args:
            graph: The graph, on the CPU or on the device.
            **wanted: See `mace.model.prediction.predict`.

        Returns:
            The prediction, padding included, whose tensors the next call overwrites.
        """
        key = key_of(graph), tuple(sorted(wanted.items()))
        use = self._captures.use(key, graph, basis_of(self.model), constant=True)

        def work() -> Prediction:
            return predict(self.model, use.given, **wanted)

        captured = self._captures.ready(use, work, work)
        if captured is None:
            return work()
        captured.repeat()
        return captured.results

    def predict_unpadded(self, graph: Graph, **wanted: bool) -> Prediction:
        """Evaluate the model on a graph that is not padded, on the CPU.

        Args:
            graph: The graph; if it is that of the latest call with other positions, only these are copied.
            **wanted: See `mace.model.prediction.predict`; no features.

        Returns:
            The prediction, which stays as it is.
        """
        latest = self._latest
        if latest is not None and _is_moved(latest[0], graph):
            padded = latest[1].moved(filled(graph.positions, latest[1].n_atoms))
        else:
            padded = graph.padded(bucket_of(self.model, graph))
        self._latest = graph, padded
        found = without_padding(self.predict(padded, **wanted), padded)
        own: dict[str, Any] = {
            name: value.clone() for name, value in vars(found).items() if isinstance(value, torch.Tensor)
        }
        return replace(found, **own)


def _is_moved(before: Graph, now: Graph) -> bool:
    """Return whether two graphs share all tensors but the positions."""
    return all(getattr(before, name) is getattr(now, name) for name in vars(before) if name != "positions")
