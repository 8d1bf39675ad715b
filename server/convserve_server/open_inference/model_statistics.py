"""What was computed with each model, so that all figures add up.

Requests that were computed together each count the whole of their batch's time. The batch itself is counted nowhere, so
each request counts its share of it, in samples: as many samples as the batch had are one execution.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from typing import NamedTuple

from convserve_server.open_inference.v2 import inference_service_pb2 as messages

_MAX_MODELS = 10_000
_MAX_CHARACTERS = 10**7  # of all their names: a chain's may be long
_MAX_SIZES = 100
_BATCHES_BYTES = 100  # of the batches of one size in an answer, at most


class Inference(NamedTuple):
    """A request that was answered; times in nanoseconds."""

    samples: int
    batch_size: int  # samples that were computed together
    success: int  # from its arrival on
    queue: int
    compute_input: int  # to find the inputs' elements
    compute_infer: int
    compute_output: int  # to put the response together


_PARTS = Inference._fields[2:]
_BATCHES_PARTS = _PARTS[2:]


class _Figures:
    """Of one version of a model: the answer, but for its batches of each size."""

    def __init__(self, name: str, version: str) -> None:
        durations = {part: messages.StatisticDuration() for part in ("fail", *_PARTS)}
        self.answer = messages.ModelStatistics(
            name=name, version=version, inference_stats=messages.InferStatistics(**durations)
        )
        # By size: their samples, and nanoseconds: of computation times samples, else of each request.
        self.batches: OrderedDict[int, Counter[str]] = OrderedDict()

    def batches_of(self, size: int) -> Counter[str]:
        """Returns the batches of a size; those of the size that was used longest ago may have to go."""
        batches = self.batches.get(size)
        if batches is None:
            batches = self.batches[size] = Counter()
        self.batches.move_to_end(size)
        if len(self.batches) > _MAX_SIZES:
            oldest, gone = self.batches.popitem(last=False)
            self.answer.execution_count += _executions(gone, oldest)
        return batches

    def whole(self) -> messages.ModelStatistics:
        """Returns the answer with the batches."""
        answer = messages.ModelStatistics()
        answer.CopyFrom(self.answer)
        for size, batches in sorted(self.batches.items()):
            count = _executions(batches, size)
            ns = {**batches, "compute_infer": batches["compute_infer"] // size}
            parts = {part: messages.StatisticDuration(count=count, ns=ns[part]) for part in _BATCHES_PARTS}
            answer.batch_stats.add(batch_size=size, **parts)
            answer.execution_count += count
        return answer


class ModelStatistics:
    """The figures of models by name and version; those used last are kept. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures: OrderedDict[tuple[str, str], _Figures] = OrderedDict()
        self._characters = 0

    def succeeded(self, name: str, version: str, inference: Inference) -> None:
        """Counts a request that is answered."""
        with self._lock:
            figures = self._of(name, version)
            figures.answer.inference_count += inference.samples
            batches = figures.batches_of(inference.batch_size)
            batches["samples"] += inference.samples
            batches["compute_infer"] += inference.compute_infer * inference.samples
            batches["compute_input"] += inference.compute_input
            batches["compute_output"] += inference.compute_output
            durations = figures.answer.inference_stats
            for part, ns in zip(_PARTS, inference[2:], strict=True):
                _add(getattr(durations, part), ns)

    def failed(self, name: str, version: str, duration: int) -> None:
        """Counts a request that is answered with an error, after so many nanoseconds."""
        with self._lock:
            _add(self._of(name, version).answer.inference_stats.fail, duration)

    def names(self) -> list[str]:
        """Returns the names of models that have figures, sorted."""
        with self._lock:
            return sorted({name for name, _ in self._figures})

    def size(self) -> int:
        """Returns about how many bytes all figures take in an answer, beside those of models without any."""
        with self._lock:
            return sum(each.answer.ByteSize() + _BATCHES_BYTES * len(each.batches) for each in self._figures.values())

    def message(self, name: str, version: str) -> messages.ModelStatistics:
        """Returns the figures of a version, which are 0 if nothing was computed with it."""
        with self._lock:
            return (self._figures.get((name, version)) or _Figures(name, version)).whole()

    def _of(self, name: str, version: str) -> _Figures:
        figures = self._figures.get((name, version))
        if figures is None:
            figures = self._figures[name, version] = _Figures(name, version)
            self._characters += len(name)
        self._figures.move_to_end((name, version))
        while len(self._figures) > 1 and (len(self._figures) > _MAX_MODELS or self._characters > _MAX_CHARACTERS):
            (oldest, _), _ = self._figures.popitem(last=False)
            self._characters -= len(oldest)
        figures.answer.last_inference = time.time_ns() // 10**6
        return figures


def _add(duration: messages.StatisticDuration, ns: int) -> None:
    duration.count += 1
    duration.ns += ns


def _executions(batches: Counter[str], size: int) -> int:
    """Returns how many batches of a size there were.

    Rounded up: others than this model's callers may have been in one, such as those of the native service.
    """
    return -(-batches["samples"] // size)
