"""Computes in parts what a device has no memory for as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convserve.errors import OutOfMemoryError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol.results import Device, Losses
from convserve.tensors.codec import Array
from convserve_server.engine_api import Computed, Engine
from convserve_server.tiling.memory_bounds import MemoryBounds
from convserve_server.tiling.partition import Division


class DividedEngine:
    """An engine around another. Its methods may be called from any thread.

    The parts are what the whole would be, but for the rounding of a framework that has several algorithms and chooses
    one by size. What did not fit is remembered, so that calls alike are divided before they are tried.
    """

    def __init__(self, engine: Engine) -> None:
        """Wraps an engine, which computes."""
        self._engine = engine
        self._bounds = MemoryBounds()

    @property
    def devices(self) -> tuple[Device, ...]:
        """As the engine says."""
        return self._engine.devices

    @property
    def versions(self) -> dict[str, str]:
        """As the engine says."""
        return self._engine.versions

    @property
    def tf32(self) -> bool:
        """As the engine says."""
        return self._engine.tf32

    @property
    def traces(self) -> int:
        """As the engine says."""
        return self._engine.traces

    @property
    def warm_shapes(self) -> int:
        """As the engine says."""
        return self._engine.warm_shapes

    def device_memory(self) -> dict[str, int]:
        """Returns what the engine returns."""
        return self._engine.device_memory()

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns what the engine returns."""
        return self._engine.initialize(config, input_channels)

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        """Returns what the engine returns."""
        return self._engine.constrain(layer)

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
