"""What a run would do: inputs, shapes, bytes and calls. Nothing is sent or written."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convserve._rpc.map_items import fewest_calls
from convserve.batch.inputs import Inputs
from convserve.batch.journal import Journal
from convserve.batch.outputs import OutputFolder
from convserve.batch.runner import reason_of, rows_of_part
from convserve.batch.sources import InputArray, Reading, Source, open_array, sources_in
from convserve.layers.layer import Layer, planned_call
from convserve.tensors.codec import Shape

if TYPE_CHECKING:
    from convserve._sync.stored_layer import StoredLayer


@dataclass(frozen=True)
class ShapeChange:
    """What becomes of inputs of one shape."""

    input_shape: Shape
    input_dtype: str
    output_shape: Shape
    output_dtype: str


@dataclass
class Forecast:
    """What a run would do.

    Attributes:
        items: Arrays that would be computed.
        samples: Samples of them.
        skipped: Arrays that an earlier run has done.
        shapes: How many arrays of each shape there are.
        input_bytes: Bytes of the tensors that would be sent.
        output_bytes: Bytes of the tensors that would come back.
        file_bytes: Bytes of the outputs' files before they are compressed.
        calls: The fewest calls that this takes.
        failures: Inputs that would fail, with the reason.
    """

    items: int = 0
    samples: int = 0
    skipped: int = 0
    shapes: Counter[ShapeChange] = field(default_factory=Counter)
    input_bytes: int = 0
    output_bytes: int = 0
    file_bytes: int = 0
    calls: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def forecast(
    layers: list[Layer | StoredLayer],
    inputs: Inputs,
    outputs: OutputFolder,
    journal: Journal,
    *,
    reading: Reading,
    output_dtype: str | None,
    retry_failed: bool,
) -> Forecast:
    """Returns what a run over the inputs would do; of pictures their headers are read, of arrays what gives the shape.

    An input that is found to be damaged only when all of it is read is not among the failures.
    """
    found = Forecast(failures=list(inputs.unread.items()))
    parts: Counter[tuple[Shape, str, int]] = Counter()  # by what can go in one call, and by the bytes of one

    def add(source: Source) -> None:
        array: InputArray = open_array(source, reading, shape_only=True)
        samples = array.shape[0]
        one = planned_call(layers, (min(1, samples), *array.shape[1:]), array.dtype, output_dtype)
        outputs.check(samples)
        rows = min(rows_of_part(array, one), samples)
        whole = planned_call(layers, array.shape, array.dtype, output_dtype)
        found.items += 1
        found.samples += samples
        found.shapes[ShapeChange(array.shape, array.dtype, whole.output_shape, whole.output_dtype)] += 1
        found.input_bytes += whole.input_bytes
        found.output_bytes += whole.output_bytes
        found.file_bytes += outputs.file_bytes(whole.output_shape, whole.output_dtype)
        parts[array.shape[1:], array.dtype, rows * max(one.input_bytes, one.output_bytes)] += math.ceil(samples / rows)

    for name in inputs.names:
        key = name
        try:
            if _is_known(found, journal, name, retry_failed):
                continue
            for source in sources_in(inputs, name, reading.keep_suffix):
                key = source.key
                if key == name or not _is_known(found, journal, key, retry_failed):
                    add(source)
        except Exception as error:  # whatever it is, it is this input's
            found.failures.append((key, reason_of(error)))
    found.calls = sum(fewest_calls(count, size) for (_, _, size), count in parts.items())
    return found


def _is_known(found: Forecast, journal: Journal, key: str, retry_failed: bool) -> bool:
    if key in journal.done:
        found.skipped += 1
        return True
    if key in journal.failed and not retry_failed:
        found.failures.append((key, journal.failed[key]))
        return True
    return False
