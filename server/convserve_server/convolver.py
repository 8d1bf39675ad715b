"""The one path of a request: validate, find the layers, admit, compute. It knows no gRPC and no TensorFlow."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from convserve import Conv2D, Device, Layer, Losses, Plan, TooLargeError
from convserve.errors import DeadlineExceededError, FieldViolation
from convserve.layer import planned
from convserve.result import Timing
from convserve.tensor import Array, Shape

# Head, layers' configurations and field tags of a message, beside its tensors.
_MESSAGE_OVERHEAD_BYTES = 2**16


@dataclass(frozen=True)
class Computed:
    """What an engine returns.

    Attributes:
        output: The output in the dtype asked for.
        losses: One per layer.
        device: The device's name.
        warm: Whether this geometry and shape had been computed before.
    """

    output: Array
    losses: tuple[Losses, ...]
    device: str
    warm: bool


class Engine(Protocol):
    """What the request path needs of a framework."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that compute."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the framework, by package name."""

    @property
    def tf32(self) -> bool:
        """Whether TensorFloat-32 is on."""

    @property
    def traces(self) -> int:
        """How many functions are compiled."""

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns the layer with weights drawn and every seed filled in."""

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        """Returns the layer with its constraints applied to its weights, and the losses of these weights."""

    def convolve(self, layers: Sequence[Layer], x: Array, output_dtype: str) -> Computed:
        """Applies layers that all have weights.

        Raises:
            OutOfMemoryError: If the device's memory did not suffice.
        """


@dataclass(frozen=True)
class Limits:
    """What a call may come to; the fields are named as the settings.

    Attributes:
        max_message_bytes: Of the response.
        max_call_bytes: Of `Plan.memory_bytes`.
        max_layers_per_call: Layers of one call.
        concurrent_calls: Calls that compute at once.
    """

    max_message_bytes: int
    max_call_bytes: int
    max_layers_per_call: int
    concurrent_calls: int


@dataclass(frozen=True)
class Convolved:
    """A call's answer.

    Attributes:
        computed: The engine's part.
        layers: One per layer: the configuration with its seeds where weights were drawn, else None.
        timing: Where the time went.
        batch_size: Samples that were computed together.
    """

    computed: Computed
    layers: tuple[Conv2D | None, ...]
    timing: Timing
    batch_size: int


class Convolver:
    """Takes calls, refuses what cannot or may not be, and computes the rest."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Prepares to serve with an engine under limits."""
        self._engine = engine
        self.limits = limits
        self._turns = threading.BoundedSemaphore(limits.concurrent_calls)

    @property
    def engine(self) -> Engine:
        """The engine, for what it says of itself."""
        return self._engine

    def plan(
        self, layers: Sequence[Layer], input_shape: Sequence[int] | None, input_dtype: str, output_dtype: str | None
    ) -> Plan:
        """Returns what a call would do and whether it would be taken.

        Raises:
            InvalidArgumentError: If the call is wrong, whatever its size.
        """
        found = planned(layers, input_shape, input_dtype, output_dtype)
        try:
            self._admit(layers, found, in_one_message=False)
        except TooLargeError as error:
            return dataclasses.replace(found, admitted=False, refusal=str(error))
        return dataclasses.replace(found, admitted=True)

    def convolve(
        self,
        layers: Sequence[Layer],
        x: Array,
        output_dtype: str | None,
        wanted: Callable[[], bool],
        *,
        in_one_message: bool = True,
    ) -> Convolved:
        """Returns the forward pass' answer.

        Args:
            layers: At least one; weights are drawn for those that have none.
            x: The input.
            output_dtype: A floating-point dtype's name; None for the last layer's compute dtype.
            wanted: Whether somebody still waits for the answer. It is asked before anything is computed.
            in_one_message: Whether the output travels in one message, whose size is bounded.

        Raises:
            ConvserveError: Any of the server's.
        """
        arrived = time.monotonic()
        found = planned(layers, x.shape, x.dtype.name, output_dtype)
        self._admit(layers, found, in_one_message)
        with self._turns:
            started = time.monotonic()
            if not wanted():
                raise DeadlineExceededError("Expected a caller to wait for the answer. Received none: not computed.")
            drawn = [
                self._engine.initialize(each.config, step.kernel_shape[2] * each.config.groups)
                if each.kernel is None
                else each
                for each, step in zip(layers, found.layers, strict=True)
            ]
            computed = self._engine.convolve(drawn, x, found.output_dtype)
            finished = time.monotonic()
        return Convolved(
            computed=computed,
            layers=tuple(
                after.config if before.kernel is None else None for before, after in zip(layers, drawn, strict=True)
            ),
            timing=Timing(round((started - arrived) * 1e6), round((finished - started) * 1e6)),
            batch_size=x.shape[0],
        )

    def admit(self, layers: Sequence[Layer], shape: Shape, dtype: str, output_dtype: str | None) -> None:
        """Checks a call whose input has not arrived, and whose output goes in pieces.

        Raises:
            InvalidArgumentError: If it is wrong; TooLargeError if this server never takes it.
        """
        self._admit(layers, planned(layers, shape, dtype, output_dtype), in_one_message=False)

    def _admit(self, layers: Sequence[Layer], found: Plan, in_one_message: bool) -> None:
        """Refuses what this server never takes, before anything is allocated for it."""
        output_bytes = found.output_bytes + _MESSAGE_OVERHEAD_BYTES if in_one_message else 0
        for what, size, setting in (
            ("layers", len(layers), "max_layers_per_call"),
            ("bytes of response", output_bytes, "max_message_bytes"),
            ("bytes of memory", found.memory_bytes, "max_call_bytes"),
        ):
            limit = getattr(self.limits, setting)
            if size > limit:
                flag = setting.replace("_", "-")
                text = (
                    f"Expected at most {limit} {what} in one call, the server's --{flag}. Received a call with {size}: "
                    "split the batch, or ask the operator to raise it."
                )
                raise TooLargeError(FieldViolation("input" if what != "layers" else "layers", text))
