"""What a run is given, and what follows from it for one array: whether it is done, and how it is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convserve.batch.inputs import Inputs
from convserve.batch.journal import Journal
from convserve.batch.outputs import OutputFolder
from convserve.batch.sources import InputArray, Reading, Source, sources_in
from convserve.errors import InvalidArgumentError, InvalidWeightsError
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel
from convserve.layers.layer import Layer, planned_call
from convserve.layers.plan import Plan

if TYPE_CHECKING:
    from convserve._sync.stored_layer import StoredLayer

PART_BYTES = 4 * 2**20
"""The size, of input or output, up to which samples of one array are sent and written together."""

_OTHER_CHANNELS = "A classic kernel is for the first input's channels: compute others in a run of their own."
"""What to do about an input that a classic kernel is not for."""


@dataclass(frozen=True)
class Job:
    """What a run is given."""

    layers: list[Layer | StoredLayer]  # applied in order
    inputs: Inputs
    outputs: OutputFolder
    journal: Journal
    reading: Reading
    output_dtype: str | None = None  # None for that of the computation
    retry_failed: bool = False

    def sources(self, name: str) -> list[Source]:
        """Returns the arrays of an input; raises as `sources_in`."""
        return sources_in(self.inputs, name, self.reading.keep_suffix)

    def is_done(self, key: str) -> bool:
        """Whether an earlier run has done an item."""
        return key in self.journal.done

    def failure(self, key: str) -> str | None:
        """Returns why an item failed in an earlier run, or None if it did not, or is to be tried again."""
        return None if self.retry_failed else self.journal.failed.get(key)

    def divided(self, array: InputArray) -> tuple[Plan, int]:
        """Returns the plan of one sample, and how many are sent together.

        Raises InvalidArgumentError for an array that the layers do not take, or of which the format holds no output.
        """
        samples = array.shape[0]
        # An array that has no samples is refused for it.
        one = planned_call(self.layers, (min(1, samples), *array.shape[1:]), array.dtype, self.output_dtype)
        self.outputs.format.check(samples)
        rows = max(1, PART_BYTES // max(one.input_bytes, one.output_bytes))
        if rows > array.step:
            rows -= rows % array.step  # whole chunks of Zarr's
        return one, min(rows, samples)

    def reason_of(self, error: Exception) -> str:
        """Returns what an error says of an input."""
        if not isinstance(error, InvalidArgumentError):
            return str(error) or type(error).__name__
        is_of_channels = isinstance(error, InvalidWeightsError) and _is_classic(self.layers[0])
        advice = [_OTHER_CHANNELS] if is_of_channels else []
        return " ".join([*(violation.description for violation in error.violations), *advice]) or str(error)


def _is_classic(layer: Layer | StoredLayer) -> bool:
    if not isinstance(layer, Layer) or layer.kernel is None:
        return False
    return any(np.array_equal(layer.kernel, classic_kernel(name, layer.config.groups)) for name in CLASSIC_KERNELS)
