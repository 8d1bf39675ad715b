"""What a run would do: inputs, shapes, bytes and calls. Nothing is sent or written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from convserve._rpc.map_items import fewest_calls
from convserve.batch.job import Job
from convserve.batch.sources import Source, open_array
from convserve.layers.layer import planned_call
from convserve.tensors.codec import Shape

Made = TypeVar("Made")


class ShapeChange(NamedTuple):
    """What becomes of inputs of one shape."""

    input_shape: Shape
    input_dtype: str
    output_shape: Shape
    output_dtype: str


@dataclass
class Forecast:
    """What a run would do."""

    items: int = 0  # arrays that would be computed
    samples: int = 0  # of them
    skipped: int = 0  # arrays that an earlier run has done
    shapes: Counter[ShapeChange] = field(default_factory=Counter)  # how many arrays of each there are
    input_bytes: int = 0  # of the tensors that would be sent
    output_bytes: int = 0
    file_bytes: int = 0  # of the outputs' files before they are compressed
    calls: int = 0  # the fewest that this takes
    failures: list[tuple[str, str]] = field(default_factory=list)  # inputs that would fail, with the reason


def forecast(job: Job) -> Forecast:
    """Returns what a run would do; of pictures their headers are read, of arrays what gives the shape.

    An input that is found to be damaged only when all of it is read is not among the failures.
    """
    found = Forecast(failures=list(job.inputs.unread.items()))
    parts: Counter[tuple[Shape, str, int]] = Counter()  # by what can go in one call, and by the bytes of one

    def attempt(key: str, look: Callable[[Any], Made], at: Any) -> Made | None:
        """Looks at an item, unless an earlier run has done it or failed; whatever is raised is this item's failure."""
        if job.is_done(key):
            found.skipped += 1
            return None
        reason = job.failure(key)
        if reason is None:
            try:
                return look(at)
            except Exception as error:
                reason = job.reason_of(error)
        found.failures.append((key, reason))
        return None

    def add(source: Source) -> None:
        array = open_array(source, job.reading, shape_only=True)
        one, rows = job.divided(array)
        whole = planned_call(job.layers, array.shape, array.dtype, job.output_dtype)
        found.items += 1
        found.samples += array.shape[0]
        found.shapes[ShapeChange(array.shape, array.dtype, whole.output_shape, whole.output_dtype)] += 1
        found.input_bytes += whole.input_bytes
        found.output_bytes += whole.output_bytes
        found.file_bytes += job.outputs.file_bytes(whole.output_shape, whole.output_dtype)
        bytes_of_part = rows * max(one.input_bytes, one.output_bytes)
        parts[array.shape[1:], array.dtype, bytes_of_part] += math.ceil(array.shape[0] / rows)

    for name in job.inputs.names:
        for source in attempt(name, job.sources, name) or ():
            attempt(source.key, add, source)
    found.calls = sum(fewest_calls(count, size) for (_, _, size), count in parts.items())
    return found
