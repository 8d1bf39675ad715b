"""What the request path needs of an engine, and what an engine returns. No framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol.results import Losses
from convserve.protocol.server_info import Device
from convserve.tensors.codec import Array


class Computed(NamedTuple):
    """What an engine returns."""

    output: Array  # in the dtype asked for
    losses: tuple[Losses, ...]  # one per layer
    device: str
    warm: bool  # whether this geometry and shape had been computed before
    batch_size: int  # samples that were computed together; if it was computed in parts, those of the largest


class Engine(Protocol):
    """What the request path needs of a framework."""

    devices: tuple[Device, ...]
    versions: dict[str, str]  # of the framework, by package name
    tf32: bool  # whether TensorFloat-32 is on
    onednn: bool  # whether oneDNN's kernels compute

    @property
    def traces(self) -> int:
        """How many functions are compiled."""

    @property
    def warm_shapes(self) -> int:
        """How many shapes of inputs were computed before, of all functions together."""

    def device_memory(self) -> dict[str, int]:
        """Returns the bytes in use by the device's name, for devices that have memory of their own."""

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns a layer with initialized weights and every seed filled in."""

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        """Returns a layer with its constraints applied to its weights, and the losses of these weights."""

    def convolve(self, layers: Sequence[Layer], inputs: Sequence[Array], output_dtype: str, device: int) -> Computed:
        """Applies layers that all have weights, in order, to inputs that are computed together.

        The inputs differ in their numbers of samples at most. The engine does not read them after it returns, and the
        output, of all their samples in order, lies in none of them. The device is an index into `devices`. Raises
        OutOfMemoryError if its memory did not suffice.
        """
