"""What a call would do, whether this server ever takes it, and its permit if it does now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from convserve.errors import FieldViolation, TooLargeError
from convserve.layers.layer import Layer, planned, planned_call
from convserve.layers.plan import Plan
from convserve.tensors.codec import Shape
from convserve_server.scheduling.admission_queue import AdmissionQueue, Load, Permit
from convserve_server.scheduling.caller import ANYBODY, Caller

# Head, layers' configurations and field tags of a message, beside its tensors.
_MESSAGE_OVERHEAD_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """What a call may come to; the fields are named as the settings.

    Attributes:
        max_message_bytes: Of the response.
        max_call_bytes: Of `Plan.memory_bytes`.
        max_admitted_bytes: Of all calls under way, without the weights of layers.
        max_waiting_calls: Calls that wait to be computed.
        max_layers_per_call: Layers of one call.
    """

    max_message_bytes: int
    max_call_bytes: int
    max_admitted_bytes: int
    max_waiting_calls: int
    max_layers_per_call: int


class Admission:
    """Plans calls, refuses what is wrong or too large, and admits the rest. Any thread may call its methods."""

    def __init__(self, limits: Limits, devices: int, concurrent: int, large_bytes: int) -> None:
        """Prepares to admit calls to so many devices under limits; as `AdmissionQueue`."""
        self.limits = limits
        self._room = AdmissionQueue(
            limits.max_admitted_bytes, limits.max_waiting_calls, devices, concurrent, large_bytes
        )

    def load(self) -> Load:
        """Returns what is in the server now."""
        return self._room.load()

    def plan(
        self, layers: Sequence[Layer], input_shape: Sequence[int] | None, input_dtype: str, output_dtype: str | None
    ) -> Plan:
        """Returns what a call would do and whether it would be taken.

        Raises:
            InvalidArgumentError: If the call is wrong, whatever its size.
        """
        found = planned(layers, input_shape, input_dtype, output_dtype)
        try:
            self._check(layers, found, in_one_message=False)
        except TooLargeError as error:
            return dataclasses.replace(found, admitted=False, refusal=str(error))
        return dataclasses.replace(found, admitted=True)

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
        """Returns the permit of a call that is taken, once there is room for it.

        Args:
            layers: The layers.
            shape: The input's.
            dtype: The input's.
            output_dtype: As the call says.
            caller: Who waits for the answer.
            in_one_message: Whether the output travels in one message, whose size is bounded.

        Raises:
            InvalidArgumentError: If it is wrong; TooLargeError if this server never takes it.
            OverloadedError: If too many calls are in the server.
            DeadlineExceededError: If the caller's deadline can't be met.
        """
        found = planned_call(layers, shape, dtype, output_dtype)
        self._check(layers, found, in_one_message)
        return self._room.enter(caller, found)

    def admit_bytes(self, size: int, caller: Caller) -> Permit:
        """Returns the permit of a call that computes nothing and answers with so many bytes.

        Raises:
            TooLargeError, OverloadedError, DeadlineExceededError: As for `admit`.
        """
        found = Plan(
            (), (), "", parameters=0, flops=0, input_bytes=0, weight_bytes=0, output_bytes=size, memory_bytes=size
        )
        self._check([], found, in_one_message=True, field="output_bytes")
        return self._room.enter(caller, found)

    def _check(self, layers: Sequence[Layer], found: Plan, in_one_message: bool, field: str = "input") -> None:
        """Refuses what this server never takes, before anything is allocated for it."""
        limits, own_bytes = self.limits, found.memory_bytes - found.weight_bytes
        output_bytes = found.output_bytes + _MESSAGE_OVERHEAD_BYTES if in_one_message else 0
        for what, size, limit, flag in (
            ("layers", len(layers), limits.max_layers_per_call, "max-layers-per-call"),
            ("bytes of response", output_bytes, limits.max_message_bytes, "max-message-bytes"),
            ("bytes of memory", found.memory_bytes, limits.max_call_bytes, "max-call-bytes"),
            ("bytes of memory beside weights", own_bytes, limits.max_admitted_bytes, "max-admitted-bytes"),
        ):
            if size > limit:
                text = (
                    f"Expected at most {limit} {what} in one call, the server's --{flag}. Received a call with {size}: "
                    f"{'split the batch' if layers else 'ask for fewer'}, or ask the operator to raise it."
                )
                raise TooLargeError(FieldViolation(field if what != "layers" else "layers", text))
