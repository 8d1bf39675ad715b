"""Plans calls, and decides which this server never takes; when another one may go on, admission_queue.py decides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from convserve.errors import FieldViolation, TooLargeError
from convserve.layers.layer import Planned, planned, planned_call
from convserve.layers.plan import Plan, check_padded
from convserve.tensors.codec import Shape, itemsize
from convserve_server.scheduling.admission_queue import AdmissionQueue, Permit
from convserve_server.scheduling.caller import ANYBODY, Caller
from convserve_server.scheduling.transfers import Transfers
from convserve_server.tiling.work import drawing_work, is_dense, work

# Head, layers' configurations and field tags of a message, beside its tensors.
_MESSAGE_OVERHEAD_BYTES = 2**16
_LARGE_TRANSFER_BYTES = 2**24
_FEWER_LAYERS = "apply them in several calls"


@dataclass(frozen=True)
class Limits:
    """How large calls may be; the fields are named as the settings."""

    max_message_bytes: int  # of a request
    max_call_bytes: int  # of one call's `Plan.memory_bytes`
    max_admitted_bytes: int  # of all admitted calls, without the weights of layers
    max_waiting_calls: int  # that wait to be computed
    max_layers_per_call: int
    max_call_flops: int = 2**63 - 1  # of one call, with what it takes to draw its weights
    max_answer_bytes: int = 2**31 - 1  # of a response; its memory is a part of the call's


class Admission:
    """Plans calls, refuses what is wrong or too large, and admits the rest. Any thread may call its methods."""

    def __init__(
        self, limits: Limits, concurrent: tuple[int, int], large_bytes: int, flops_per_s: float = math.inf
    ) -> None:
        """Starts with no call; the arguments are those of `AdmissionQueue`."""
        self.limits = limits
        queue = AdmissionQueue(
            limits.max_admitted_bytes, limits.max_waiting_calls, concurrent, large_bytes, flops_per_s=flops_per_s
        )
        self.load, self._enter = queue.load, queue.enter
        self.transfers = Transfers(max(large_bytes, _LARGE_TRANSFER_BYTES))

    def plan(
        self,
        layers: Sequence[Planned],
        input_shape: Sequence[int] | None,
        input_dtype: str,
        output_dtype: str | None,
        given: Collection[int] = (),
    ) -> Plan:
        """Returns what a call would do and whether this server takes it; raises InvalidArgumentError if it is wrong.

        `given` are the numbers of layers whose weights only the call brings.
        """
        plan = planned(layers, input_shape, input_dtype, output_dtype, given)
        try:
            self._check(plan, math.inf, _drawing(layers, plan, given))
        except TooLargeError as error:
            return dataclasses.replace(plan, admitted=False, refusal=str(error))
        check_padded([layer.config for layer in layers], input_shape, plan)
        return dataclasses.replace(plan, admitted=True)

    def admit(
        self,
        layers: Sequence[Planned],
        shape: Shape,
        dtype: str,
        output_dtype: str | None,
        caller: Caller = ANYBODY,
        *,
        output_room: float = math.inf,
        claim: Callable[[int], None] | None = None,
    ) -> Permit:
        """Returns a call's permit once there is memory for the call, whose input has this shape and dtype.

        An output of more bytes than `output_room` travels in the response's message, whose size is bounded. `claim`
        is called with the bytes of input and output before memory is asked for. Raises what it raises,
        InvalidArgumentError if the call is wrong, TooLargeError if this server never takes it, OverloadedError if too
        many calls are in the server, or DeadlineExceededError if the caller's deadline can't be met.
        """
        plan, chain = planned_call(layers, shape, dtype, output_dtype), [layer.config for layer in layers]
        drawing = _drawing(layers, plan)
        self._check(plan, output_room, drawing)
        check_padded(chain, shape, plan)
        if claim is not None:
            claim(math.prod(shape) * itemsize(dtype) + plan.output_bytes)
        return self._enter(caller, plan, work(chain, plan) + drawing, lambda: is_dense(chain, shape, plan))

    def admit_bytes(self, size: int, caller: Caller) -> Permit:
        """Returns the permit of a call that computes nothing and answers with `size` bytes; raises as `admit`.

        It has them twice: as it has written them, and on their way into the connection.
        """
        plan = Plan((), (), "", 0, 0, 0, 0, output_bytes=size, memory_bytes=2 * size)
        self._check(plan, 0, 0, field="output_bytes")
        return self._enter(caller, plan)

    def check_layers(self, number: int, most: int = 0) -> None:
        """Raises TooLargeError if a call has so many layers, for which nothing has been done yet.

        What only describes a call may have `most`, if this server's calls may have fewer.
        """
        limit = self.limits.max_layers_per_call
        if number > max(limit, most):
            raise _too_large("layers", number, limit, "max-layers-per-call", "layers", _FEWER_LAYERS)

    def _check(self, plan: Plan, output_room: float, drawing: int, field: str = "input") -> None:
        """Refuses what this server never takes, before anything is allocated for it; `drawing` is in FLOPs."""
        limits, own_bytes = self.limits, plan.memory_bytes - plan.weight_bytes
        response_bytes = plan.output_bytes + _MESSAGE_OVERHEAD_BYTES if plan.output_bytes > output_room else 0
        weighty = "layers" if plan.weight_bytes > limits.max_call_bytes else field  # which no sample makes smaller
        for unit, size, limit, flag, what in (
            ("layers", len(plan.layers), limits.max_layers_per_call, "max-layers-per-call", "layers"),
            ("bytes of response", response_bytes, limits.max_answer_bytes, "max-message-bytes", field),
            ("bytes of memory", plan.memory_bytes, limits.max_call_bytes, "max-call-bytes", weighty),
            ("bytes of memory beside weights", own_bytes, limits.max_admitted_bytes, "max-admitted-bytes", field),
            ("FLOPs", plan.flops + drawing, limits.max_call_flops, "max-call-flops", field),
        ):
            if size > limit:
                if what == "layers":
                    advice = _FEWER_LAYERS if len(plan.layers) > 1 else "take a smaller layer"
                else:
                    advice = "send fewer or smaller samples" if plan.layers else "ask for fewer"
                raise _too_large(unit, size, limit, flag, what, advice)


def _drawing(layers: Sequence[Planned], plan: Plan, given: Collection[int] = ()) -> int:
    """Returns the work of drawing weights, also of layers that may be cached."""
    return sum(
        drawing_work(layer.config, step.kernel_shape)
        for number, (layer, step) in enumerate(zip(layers, plan.layers, strict=True))
        if layer.kernel_shape is None and number not in given
    )


def _too_large(unit: str, size: int, limit: int, flag: str, field: str, advice: str) -> TooLargeError:
    text = (
        f"Expected at most {limit} {unit} in one call, the server's --{flag}. Received a call with {size}: "
        f"{advice}, or ask the operator to raise it."
    )
    return TooLargeError(FieldViolation(field, text))
