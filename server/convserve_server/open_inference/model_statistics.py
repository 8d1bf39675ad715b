"""What was computed with each model, so that all figures add up.

Requests that were computed together each count the whole of their batch's time. The batch itself is counted nowhere, so
each request counts its share of it, in samples: as many samples as the batch had are one execution.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from convserve_server.open_inference.v2 import inference_service_pb2 as messages

_MAX_MODELS = 10_000
_MAX_CHARACTERS = 10**7  # of all their names: a chain's may be long
_MAX_SIZES = 100
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


class Inference(NamedTuple):
    """A request that was answered; times in nanoseconds."""

    samples: int
    batch_size: int  # samples that were computed together
    success: int  # from its arrival on
    queue: int
    compute_input: int  # to find the inputs' elements
    compute_infer: int
    compute_output: int  # to put the response together


@dataclass
class _Batches:
    """Batches of one size: their samples, and nanoseconds: of computation times samples, else of each request."""

    samples: int = 0
    ns: Counter[str] = field(default_factory=Counter)


@dataclass
class _Figures:
    """Of one version of a model; nanoseconds are those of each request."""

    last_ms: int = 0
    samples: int = 0
    count: int = 0
    failed: int = 0
    failed_ns: int = 0
    ns: Counter[str] = field(default_factory=Counter)
    batches: OrderedDict[int, _Batches] = field(default_factory=OrderedDict)
    executions: int = 0  # in batches of sizes that are not told apart any more


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
            figures.samples += inference.samples
            figures.count += 1
            batches = _batches(figures, inference.batch_size)
            batches.samples += inference.samples
            for part in ("success", *_PARTS):
                ns = getattr(inference, part)
                figures.ns[part] += ns
                batches.ns[part] += ns * inference.samples if part == "compute_infer" else ns

    def failed(self, name: str, version: str, duration: int) -> None:
        """Counts a request that is answered with an error, after so many nanoseconds."""
        with self._lock:
            figures = self._of(name, version)
            figures.failed += 1
            figures.failed_ns += duration

    def names(self) -> list[str]:
        """Returns the names of models that have figures, sorted."""
        with self._lock:
            return sorted({name for name, _ in self._figures})

    def message(self, name: str, version: str) -> messages.ModelStatistics:
        """Returns the figures of a version, which are 0 if nothing was computed with it."""
        with self._lock:
            return _message(name, version, self._figures.get((name, version)) or _Figures())

    def _of(self, name: str, version: str) -> _Figures:
        figures = self._figures.get((name, version))
        if figures is None:
            figures = self._figures[name, version] = _Figures()
            self._characters += len(name)
        self._figures.move_to_end((name, version))
        while len(self._figures) > 1 and (len(self._figures) > _MAX_MODELS or self._characters > _MAX_CHARACTERS):
            (oldest, _), _ = self._figures.popitem(last=False)
            self._characters -= len(oldest)
        figures.last_ms = time.time_ns() // 10**6
        return figures


def _batches(figures: _Figures, size: int) -> _Batches:
    """Returns the batches of a size; those of the size that was used longest ago may have to go."""
    batches = figures.batches.setdefault(size, _Batches())
    figures.batches.move_to_end(size)
    if len(figures.batches) > _MAX_SIZES:
        oldest, gone = figures.batches.popitem(last=False)
        figures.executions += _executions(gone, oldest)
    return batches


def _executions(batches: _Batches, size: int) -> int:
    """Returns how many batches of a size there were.

    Rounded up: others than this model's callers may have been in one, such as those of the native service.
    """
    return -(-batches.samples // size)


def _message(name: str, version: str, figures: _Figures) -> messages.ModelStatistics:
    duration = messages.StatisticDuration
    batch_stats = []
    for size, batches in sorted(figures.batches.items()):
        ns = {**batches.ns, "compute_infer": batches.ns["compute_infer"] // size}
        parts = {part: duration(count=_executions(batches, size), ns=ns[part]) for part in _PARTS[1:]}
        batch_stats.append(messages.InferBatchStatistics(batch_size=size, **parts))
    return messages.ModelStatistics(
        name=name,
        version=version,
        last_inference=figures.last_ms,
        inference_count=figures.samples,
        execution_count=figures.executions + sum(batch.compute_infer.count for batch in batch_stats),
        inference_stats=messages.InferStatistics(
            fail=duration(count=figures.failed, ns=figures.failed_ns),
            **{part: duration(count=figures.count, ns=figures.ns[part]) for part in ("success", *_PARTS)},
        ),
        batch_stats=batch_stats,
    )
