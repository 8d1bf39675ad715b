"""What a call would do, and whether this server takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from convserve import Layer, Plan, TooLargeError
from convserve.errors import FieldViolation
from convserve.layer import planned, planned_call
from convserve.tensor import Shape

# Head, layers' configurations and field tags of a message, beside its tensors.
_MESSAGE_OVERHEAD_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """What a call may come to; the fields are named as the settings.

    Attributes:
        max_message_bytes: Of the response.
        max_call_bytes: Of `Plan.memory_bytes`.
        max_layers_per_call: Layers of one call.
    """

    max_message_bytes: int
    max_call_bytes: int
    max_layers_per_call: int


class Admission:
    """Plans calls and refuses what is wrong or too large. Its methods may be called from any thread."""

    def __init__(self, limits: Limits) -> None:
        """Prepares to plan under limits."""
        self._limits = limits

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
        self, layers: Sequence[Layer], shape: Shape, dtype: str, output_dtype: str | None, *, in_one_message: bool
    ) -> Plan:
        """Returns the plan of a call that is taken.

        Args:
            layers: The layers.
            shape: The input's.
            dtype: The input's.
            output_dtype: As the call says.
            in_one_message: Whether the output travels in one message, whose size is bounded.

        Raises:
            InvalidArgumentError: If it is wrong; TooLargeError if this server never takes it.
        """
        found = planned_call(layers, shape, dtype, output_dtype)
        self._check(layers, found, in_one_message)
        return found

    def _check(self, layers: Sequence[Layer], found: Plan, in_one_message: bool) -> None:
        """Refuses what this server never takes, before anything is allocated for it."""
        output_bytes = found.output_bytes + _MESSAGE_OVERHEAD_BYTES if in_one_message else 0
        for what, size, setting in (
            ("layers", len(layers), "max_layers_per_call"),
            ("bytes of response", output_bytes, "max_message_bytes"),
            ("bytes of memory", found.memory_bytes, "max_call_bytes"),
        ):
            limit = getattr(self._limits, setting)
            if size > limit:
                flag = setting.replace("_", "-")
                text = (
                    f"Expected at most {limit} {what} in one call, the server's --{flag}. Received a call with {size}: "
                    "split the batch, or ask the operator to raise it."
                )
                raise TooLargeError(FieldViolation("input" if what != "layers" else "layers", text))
