"""Computes in parts what a device has no memory for as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convserve.errors import OutOfMemoryError
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array
from convserve_server.engine_api import Computed, Engine
from convserve_server.tiling.memory_bounds import MemoryBounds
from convserve_server.tiling.partition import Division


class TiledEngine:
    """Computes with an engine, in parts where need be. Any thread may call its method.

    The parts are what the whole would be, but for the rounding of a framework that has several algorithms and chooses
    one by size. What did not fit is remembered, so that calls alike are divided before they are tried.
    """

    def __init__(self, engine: Engine) -> None:
        """Wraps an engine, which computes."""
        self._engine = engine
        self._bounds = MemoryBounds()

    def convolve(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Array],
        output_dtype: str,
        device: int,
        is_active: Callable[[], bool] = lambda: True,
    ) -> Computed:
        """Applies layers to inputs as the engine does, in parts if need be.

        Several inputs are not divided here: the batcher, which put them together, computes each by itself. Nothing of
        them has been computed by then.

        Raises:
            OutOfMemoryError: If several inputs, or a part that cannot be divided further, did not fit.
            DeadlineExceededError: If nobody waited for the output any more before its last part was computed.
        """
        division = Division(self._engine, self._bounds, layers, output_dtype, device, is_active)
        found = division.whole(inputs)
        if found is not None:
            return found
        if len(inputs) > 1:
            text = "Expected calls that fit the device's memory together. Received some that do not."
            raise OutOfMemoryError(text)
        return division.divided(inputs[0])
