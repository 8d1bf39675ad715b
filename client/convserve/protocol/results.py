"""What comes back from a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from convserve.display import html_tables
from convserve.display.units import bytes_text, duration_text
from convserve.errors import InternalError, InvalidArgumentError, printable
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import LayerPlan, Plan
from convserve.tensors import framing
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import Array, Shape, dtype_name, dtype_number, name_of
from convserve.v1 import convolution_service_pb2, layer_pb2, plan_pb2

P = ParamSpec("P")
T = TypeVar("T")
if TYPE_CHECKING:  # a `Result` without more is one of any dtype; typing's own TypeVar has defaults from Python 3.13
    from typing_extensions import TypeVar as _TypeVar

    S = _TypeVar("S", bound=np.generic, default=Any)
else:
    S = TypeVar("S")
_NO_ANSWER = "Expected an answer as the contract has it. Received another"
_MAX_BYTES_BESIDE = 2**14  # of an answer: beside its tensor, and for each of its layers


def reading_answers(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function raise InternalError for an answer that is none, or says what cannot be."""

    @functools.wraps(function)
    def reading(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return function(*arguments, **options)
        except (DecodeError, InvalidArgumentError) as error:
            raise InternalError(f"{_NO_ANSWER}: {printable(str(error)).rstrip('.')}.") from error

    return reading


def check_size(size: int, plan: Plan, output_bytes: int = 0) -> None:
    """Raises DecodeError for more bytes, before anybody parses them, than an answer to a planned call can have."""
    if size > output_bytes + _MAX_BYTES_BESIDE * (1 + len(plan.layers)):
        raise DecodeError(f"{size} bytes to a call of {len(plan.layers)} layers with {output_bytes} bytes of output")


def check_answer(message: convolution_service_pb2.ConvolveResponse, plan: Plan, shape: Shape, dtype: int) -> None:
    """Raises DecodeError for an answer to another call than the planned one: of another output, or other layers.

    It is asked wherever an answer comes, in one message, in pieces or through shared memory, before the output is used.
    """
    if shape != plan.output_shape or dtype != dtype_number(plan.output_dtype):
        expected = f"{plan.output_shape} {plan.output_dtype}"
        raise DecodeError(f"an output of shape {shape} and dtype number {dtype} where {expected} is planned")
    if len(message.layers) != len(plan.layers):
        raise DecodeError(f"what came of {len(message.layers)} layers where {len(plan.layers)} were sent")


def copied(output: Array, out: Array | None) -> Array:
    """Returns an output in the caller's array `out`, of which it may be a subclass, or in a new one."""
    if out is None:
        return output.copy()
    np.copyto(np.asarray(out), output)
    return out


@dataclass(frozen=True)
class Losses:
    """The penalties of a layer's regularizers, as `keras.layers.Conv2D.losses` has them; None for one it has not.

    Attributes:
        kernel: The kernel regularizer's.
        bias: The bias regularizer's.
        activity: The activity regularizer's: of this call's samples, divided by their number.
    """

    kernel: float | None = None
    bias: float | None = None
    activity: float | None = None

    def given(self) -> list[tuple[str, float]]:
        """Returns name and value of the losses that there are."""
        return [(name, value) for name, value in vars(self).items() if value is not None]

    def to_message(self) -> layer_pb2.Losses:
        """Returns the contract's message."""
        return layer_pb2.Losses(**vars(self))

    @classmethod
    def from_message(cls, message: layer_pb2.Losses) -> Losses:
        """Returns what a message says."""
        return cls(**{field.name: value for field, value in message.ListFields()})


@dataclass(frozen=True)
class Timing:
    """Where a call's time went on the server, in microseconds.

    Attributes:
        queue_us: What it waited for memory and for a device; not the time in which its input was received.
        compute_us: The computation, with the tensor's way to the device and back.
    """

    queue_us: int
    compute_us: int


@dataclass(frozen=True)
class Result(Generic[S]):
    """What a forward pass came to.

    Attributes:
        output: The output tensor.
        losses: One per layer, in order.
        layers: One per layer: the configuration with every seed filled in if the server drew the weights, else None.
        timing: Where the time went on the server.
        batch_size: How many samples were computed together; fewer than the call's if memory sufficed for parts only.
        device: The device that computed, for example "gpu:0".
        warm: Whether the server had computed with this geometry before.
    """

    output: npt.NDArray[S]
    losses: tuple[Losses, ...]
    layers: tuple[Conv2D | None, ...]
    timing: Timing
    batch_size: int
    device: str
    warm: bool

    @classmethod
    @reading_answers
    def parse(cls, data: bytes, plan: Plan, out: Array | None = None) -> Result:
        """Returns what a response's bytes say; the output is `out`, or a new array, which may be written to.

        Raises InternalError for bytes that are no response to the planned call.
        """
        check_size(len(data), plan, plan.output_bytes)
        frame = framing.frame(plan.output_dtype, plan.output_shape)
        message, output = frame.read(convolution_service_pb2.ConvolveResponse, "output", data)
        if output is None:
            raise DecodeError("a response without an output")
        check_answer(message, plan, output.shape, dtype_number(name_of(output)))
        if out is None:
            out = aligned_empty(output.shape, output.dtype)
        return cls.from_message(message, copied(output, out))

    @classmethod
    def from_message(cls, message: convolution_service_pb2.ConvolveResponse, output: Array) -> Result:
        """Returns what a response says whose output came by another way; for callers that are `reading_answers`."""
        return cls(
            output=output,
            losses=tuple(Losses.from_message(layer.losses) for layer in message.layers),
            layers=tuple(
                messages.from_message(layer.conv2d) if layer.HasField("conv2d") else None for layer in message.layers
            ),
            timing=Timing(message.timing.queue_us, message.timing.compute_us),
            batch_size=message.batch_size,
            device=printable(message.device),
            warm=message.warm,
        )

    def _repr_html_(self) -> str:
        """Returns a table for notebooks: what came out, what it cost, and with several layers a second one of them."""
        output, timing = self.output, self.timing
        rows: list[html_tables.Row] = [
            ("output", f"{output.shape} {output.dtype.name}, {bytes_text(output.nbytes)}"),
            ("computed in", f"{duration_text(timing.compute_us)}, after a wait of {duration_text(timing.queue_us)}"),
            ("on", f"{self.device}{'' if self.warm else ', its first call with this geometry'}"),
            ("batch size", self.batch_size),
        ]
        if len(self.layers) == 1:
            rows += [(f"{name} loss", f"{loss:.6g}") for name, loss in self.losses[0].given()]
            rows += [] if self.layers[0] is None else [("drawn by", repr(self.layers[0]))]
            return html_tables.table("Result", rows)
        steps = (
            (
                index,
                "given or stored" if layer is None else repr(layer),
                ", ".join(f"{name} {loss:.6g}" for name, loss in losses.given()) or "none",
            )
            for index, (layer, losses) in enumerate(zip(self.layers, self.losses, strict=True))
        )
        return html_tables.table("Result", rows) + html_tables.grid(("layer", "drawn by", "losses"), steps)


_AMOUNTS = ("parameters", "flops", "input_bytes", "weight_bytes", "output_bytes", "memory_bytes")  # of a Plan


def values_of(source: object, names: Iterable[str]) -> dict[str, Any]:
    """Returns attributes of these names, texts without what would steer a terminal."""
    values = {name: getattr(source, name) for name in names}
    return {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}


def plan_to_message(plan: Plan) -> plan_pb2.Plan:
    """Returns the contract's message of a plan."""
    return plan_pb2.Plan(
        layers=[plan_pb2.LayerPlan(**vars(layer)) for layer in plan.layers],
        output_shape=plan.output_shape,
        output_dtype=dtype_number(plan.output_dtype),
        **values_of(plan, _AMOUNTS),
    )


@reading_answers
def plan_from_message(message: convolution_service_pb2.PlanResponse, layers: int) -> Plan:
    """Returns the plan that a server answered, with its word on admission.

    Raises InternalError for one of another number of layers than were sent.
    """
    plan = message.plan
    if len(plan.layers) != layers:
        raise DecodeError(f"a plan of {len(plan.layers)} layers where {layers} were sent")
    return Plan(
        layers=tuple(
            LayerPlan(tuple(layer.output_shape), tuple(layer.kernel_shape), layer.parameters, layer.flops)
            for layer in plan.layers
        ),
        output_shape=tuple(plan.output_shape),
        output_dtype=dtype_name(plan.output_dtype, "output_dtype"),
        **values_of(plan, _AMOUNTS),
        admitted=message.admission.admitted,
        refusal=printable(message.admission.refusal) or None,
    )
