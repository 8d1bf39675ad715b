"""The one path of a request: validate, admit, batch, compute. It knows no gRPC and no TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.protocol.results import Timing
from convserve.tensors.codec import Array, Shape, name_of
from convserve_server.engine_api import Computed, Engine
from convserve_server.scheduling.admission import Admission, Limits
from convserve_server.scheduling.admission_queue import Load, Permit
from convserve_server.scheduling.batcher import Batcher
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.initialized_layers import InitializedLayerCache

# Services do not know the parts.
__all__ = ["Batching", "Caller", "Computed", "Convolved", "Engine", "Limits", "Load", "Permit", "Scheduler"]


@dataclass(frozen=True)
class Batching:
    """How calls share the devices; the fields are named as the settings.

    Attributes:
        concurrent_calls: Computations that a device has at once: of calls up to `max_batch_bytes`, and of larger ones.
        max_batch_samples: Samples of several calls that are computed together.
        max_batch_bytes: Likewise, of their inputs, outputs and what is between.
    """

    concurrent_calls: int
    max_batch_samples: int
    max_batch_bytes: int


class Convolved(NamedTuple):
    """A call's answer.

    Attributes:
        computed: The engine's part.
        layers: One per layer: the configuration with its seeds where weights were drawn, else None.
        timing: Where the time went.
    """

    computed: Computed
    layers: tuple[Conv2D | None, ...]
    timing: Timing


@dataclass(eq=False, slots=True)
class _Call:
    """A call that was admitted."""

    ticket: Permit
    layers: tuple[Layer, ...]
    x: Array
    caller: Caller


class _Task(TypedDict):
    """What the batcher is given for a call."""

    task: _Call
    group: Hashable | None
    samples: int
    size: int
    caller: Caller


ANYBODY = Caller()


class Scheduler:
    """Takes calls, refuses what cannot or may not be, and computes the rest."""

    def __init__(self, engine: Engine, limits: Limits, batching: Batching) -> None:
        """Prepares to serve with an engine under limits."""
        self._engine = engine
        self.limits = limits
        devices, large_bytes = len(engine.devices), min(batching.max_batch_bytes, limits.max_call_bytes)
        self._admission = Admission(limits, devices, batching.concurrent_calls, large_bytes)
        self._drawn = InitializedLayerCache(engine.initialize)
        self._batcher = Batcher(
            self._compute,
            devices=devices,
            concurrent=batching.concurrent_calls,
            max_samples=batching.max_batch_samples,
            max_bytes=large_bytes,
        )

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
        return self._admission.plan(layers, input_shape, input_dtype, output_dtype)

    def load(self) -> Load:
        """Returns what is in the server now."""
        return self._admission.load()

    def admit(
        self,
        layers: Sequence[Layer],
        shape: Shape,
        dtype: str,
        output_dtype: str | None,
        caller: Caller = ANYBODY,
        *,
        in_one_message: bool = False,
    ) -> Permit:
        """As `Admission.admit`, for a call whose input may still be on its way; whoever takes the ticket closes it."""
        return self._admission.admit(layers, shape, dtype, output_dtype, caller, in_one_message=in_one_message)

    def admit_bytes(self, size: int, caller: Caller) -> Permit:
        """As `Admission.admit_bytes`."""
        return self._admission.admit_bytes(size, caller)

    def convolve(
        self,
        layers: Sequence[Layer],
        x: Array,
        output_dtype: str | None,
        caller: Caller = ANYBODY,
        *,
        ticket: Permit | None = None,
        unbatched: bool = False,
        in_one_message: bool = True,
    ) -> Convolved:
        """Returns the forward pass' answer.

        Args:
            layers: At least one; weights are drawn for those that have none.
            x: The input.
            output_dtype: A floating-point dtype's name; None for the last layer's compute dtype.
            caller: Who waits for the answer.
            ticket: What `admit` returned for this call, if it was asked.
            unbatched: Whether it must not be computed together with other calls.
            in_one_message: Whether the output travels in one message, whose size is bounded.

        Raises:
            ConvserveError: Any of the server's.
        """
        if ticket is None:
            ticket = self.admit(layers, x.shape, name_of(x), output_dtype, caller, in_one_message=in_one_message)
        with ticket:
            return _answer(layers, self._batcher.run(**self._task(ticket, layers, x, caller, unbatched)))

    def _task(self, ticket: Permit, layers: Sequence[Layer], x: Array, caller: Caller, unbatched: bool) -> _Task:
        """Returns what the batcher is given for a call all of which is there."""
        ticket.received()
        plan = ticket.plan
        known = tuple(
            each if each.kernel is not None else self._drawn.known(each.config, _channels(each, plan, index)) or each
            for index, each in enumerate(layers)
        )
        return {
            "task": _Call(ticket, known, x, caller),
            "group": None if unbatched else _group(known, x, plan),
            "samples": x.shape[0],
            "size": ticket.size,
            "caller": caller,
        }

    def _compute(self, device: int, calls: Sequence[_Call]) -> list[_Outcome]:
        """Returns for each call its part of what was computed, the layers with weights, and times."""
        started, whole = time.monotonic(), sum(len(call.x) for call in calls)
        for call in calls:
            call.ticket.started()
        computed = None
        try:
            layers, computed = self._computed(device, calls)
        finally:
            finished = time.monotonic()
            for call in calls:
                share, warm = (len(call.x) / whole, computed.warm) if computed else (0.0, False)
                call.ticket.computed(finished - started, share, warm)
        compute_us = round((finished - started) * 1e6)
        found, begin = [], 0
        for call in calls:
            end = begin + len(call.x)
            part = computed if len(calls) == 1 else computed._replace(output=computed.output[begin:end])
            found.append((part, layers, Timing(round((started - call.ticket.arrived) * 1e6), compute_us)))
            begin = end
        return found

    def _computed(self, device: int, calls: Sequence[_Call]) -> tuple[tuple[Layer, ...], Computed]:
        first = calls[0]
        layers = tuple(
            each
            if each.kernel is not None
            else self._drawn.draw(each.config, _channels(each, first.ticket.plan, index))
            for index, each in enumerate(first.layers)
        )
        inputs, output_dtype = [call.x for call in calls], first.ticket.plan.output_dtype

        def is_active() -> bool:
            return any(call.caller.is_active() for call in calls)

        return layers, self._engine.convolve(layers, inputs, output_dtype, device, is_active)


_Outcome = tuple[Computed, tuple[Layer, ...], Timing]
"""What was computed for a call, its layers with weights, and times."""


def _answer(layers: Sequence[Layer], outcome: _Outcome) -> Convolved:
    computed, drawn, timing = outcome
    return Convolved(
        computed=computed,
        layers=tuple(
            after.config if before.kernel is None else None for before, after in zip(layers, drawn, strict=True)
        ),
        timing=timing,
    )


def _channels(layer: Layer, plan: Plan, index: int) -> int:
    return plan.layers[index].kernel_shape[2] * layer.config.groups


def _group(layers: tuple[Layer, ...], x: Array, plan: Plan) -> Hashable | None:
    """Returns what calls that may be computed together have in common, or None.

    Layers are equal only to themselves, so it is stored and kept ones that calls can have in common. The activity
    regularizer's loss is of one caller's samples alone.
    """
    if any(each.kernel is None or each.config.activity_regularizer is not None for each in layers):
        return None
    return layers, x.dtype, plan.output_dtype, x.shape[1:]
