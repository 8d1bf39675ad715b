"""What comes back from a call, and what a server says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from convserve.errors import InternalError, InvalidTensorError
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import LayerPlan, Plan
from convserve.tensors import framing
from convserve.tensors.codec import Array, dtype_name, dtype_number
from convserve.v1 import convolution_service_pb2, layer_pb2, plan_pb2, server_info_pb2

_NO_ANSWER = "Expected an answer as the contract has it. Received another"


@contextmanager
def reading_answers() -> Iterator[None]:
    """Raises InternalError for an answer that is none."""
    try:
        yield
    except DecodeError as error:
        raise InternalError(f"{_NO_ANSWER}: {error}.") from error


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
class Result:
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

    output: Array
    losses: tuple[Losses, ...]
    layers: tuple[Conv2D | None, ...]
    timing: Timing
    batch_size: int
    device: str
    warm: bool

    @classmethod
    def parse(cls, data: bytes, frame: framing.Frame | None = None) -> Result:
        """Returns what a response's bytes say; the output is an array of its own, which may be written to.

        It is quicker with the output's frame, if that is known. Raises InternalError for bytes that are no response.
        """
        try:
            read = framing.read if frame is None else frame.read
            message, output = read(convolution_service_pb2.ConvolveResponse, "output", data)
        except (DecodeError, InvalidTensorError) as error:
            raise InternalError(f"{_NO_ANSWER}: {error}.") from error
        if output is None:
            raise InternalError(f"{_NO_ANSWER}: a response without an output.")
        return cls.from_message(message, output.copy())

    @classmethod
    def from_message(cls, message: convolution_service_pb2.ConvolveResponse, output: Array) -> Result:
        """Returns what a response says whose output came by another way."""
        return cls(
            output=output,
            losses=tuple(Losses.from_message(layer.losses) for layer in message.layers),
            layers=tuple(
                messages.from_message(layer.conv2d) if layer.HasField("conv2d") else None for layer in message.layers
            ),
            timing=Timing(message.timing.queue_us, message.timing.compute_us),
            batch_size=message.batch_size,
            device=message.device,
            warm=message.warm,
        )


@dataclass(frozen=True)
class Device:
    """A processor that computes.

    Attributes:
        name: TensorFlow's name, for example "gpu:0".
        kind: "cpu" or "gpu".
        description: What the driver calls it; empty where unknown.
    """

    name: str
    kind: str
    description: str


@dataclass(frozen=True)
class Usage:
    """What a server holds.

    Attributes:
        stored_layers: Stored layers, in memory or on disk.
        stored_memory_bytes: Bytes of the stored layers that are in memory.
        evictions: Stored layers that left the memory for want of room, since the start.
        traces: Compiled functions, which layers of one geometry share.
    """

    stored_layers: int
    stored_memory_bytes: int
    evictions: int
    traces: int


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and can do.

    Attributes:
        version: convserve's version.
        tensorflow_version: TensorFlow's version.
        keras_version: Keras' version.
        devices: The devices that compute.
        input_dtypes: The names of the dtypes accepted as input.
        output_dtypes: The names of the dtypes that a response may be asked for.
        tf32: Whether float32 convolutions on a GPU may use TensorFloat-32.
        max_message_bytes: The largest message either way, in bytes.
        max_call_bytes: The largest `Plan.memory_bytes` of a call.
        max_layers_per_call: The most layers in one call.
        usage: What the server holds at this moment.
        shared_memory_address: The socket that takes shared memory; empty where there is none for this caller.
    """

    version: str
    tensorflow_version: str
    keras_version: str
    devices: tuple[Device, ...]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    tf32: bool
    max_message_bytes: int
    max_call_bytes: int
    max_layers_per_call: int
    usage: Usage
    shared_memory_address: str = ""

    def to_message(self) -> server_info_pb2.ServerInfo:
        """Returns the contract's message."""
        return server_info_pb2.ServerInfo(
            **_values(self, _SAME),
            devices=[server_info_pb2.Device(**vars(device)) for device in self.devices],
            input_dtypes=map(dtype_number, self.input_dtypes),
            output_dtypes=map(dtype_number, self.output_dtypes),
            numeric_mode=server_info_pb2.NumericMode(tf32=self.tf32),
            limits=server_info_pb2.Limits(**_values(self, _LIMITS)),
            usage=server_info_pb2.Usage(**vars(self.usage)),
        )

    @classmethod
    def from_message(cls, message: server_info_pb2.ServerInfo) -> ServerInfo:
        """Returns what a message says."""
        return cls(
            **_values(message, _SAME),
            devices=tuple(Device(**_values(device, Device.__match_args__)) for device in message.devices),
            input_dtypes=tuple(dtype_name(number, "input_dtypes") for number in message.input_dtypes),
            output_dtypes=tuple(dtype_name(number, "output_dtypes") for number in message.output_dtypes),
            tf32=message.numeric_mode.tf32,
            **_values(message.limits, _LIMITS),
            usage=Usage(**_values(message.usage, Usage.__match_args__)),
        )


_SAME = ("version", "tensorflow_version", "keras_version", "shared_memory_address")
_LIMITS = ("max_message_bytes", "max_call_bytes", "max_layers_per_call")
_AMOUNTS = ("parameters", "flops", "input_bytes", "weight_bytes", "output_bytes", "memory_bytes")  # of a Plan


def _values(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def plan_to_message(plan: Plan) -> plan_pb2.Plan:
    """Returns the contract's message of a plan."""
    return plan_pb2.Plan(
        layers=[plan_pb2.LayerPlan(**vars(layer)) for layer in plan.layers],
        output_shape=plan.output_shape,
        output_dtype=dtype_number(plan.output_dtype),
        **_values(plan, _AMOUNTS),
    )


def plan_from_message(message: convolution_service_pb2.PlanResponse) -> Plan:
    """Returns the plan that a server answered, with its word on admission."""
    plan = message.plan
    return Plan(
        layers=tuple(
            LayerPlan(tuple(layer.output_shape), tuple(layer.kernel_shape), layer.parameters, layer.flops)
            for layer in plan.layers
        ),
        output_shape=tuple(plan.output_shape),
        output_dtype=dtype_name(plan.output_dtype, "output_dtype"),
        **_values(plan, _AMOUNTS),
        admitted=message.admission.admitted,
        refusal=message.admission.refusal or None,
    )
