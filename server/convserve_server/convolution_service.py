"""ConvolutionService: messages to the request path's words, and its answers back to messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from convserve import (
    InvalidRequestError,
    Layer,
    ServerInfo,
    TooLargeError,
    UnavailableError,
    Usage,
    __version__,
    conv2d_message,
    frame,
)
from convserve.errors import FieldViolation, naming_layer
from convserve.result import plan_to_message
from convserve.tensor import FLOAT_DTYPES, INPUT_DTYPES, Array, dtype_name
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import convolution_service_pb2_grpc, layer_pb2
from convserve_server.convolver import Convolver
from convserve_server.layer_keeper import LayerKeeper

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["ConvolutionService"].full_name
_ECHO_HEAD_BYTES = 16  # tag and length before the answer's bytes


@dataclass(frozen=True)
class ConvolveRequest:
    """A request of Convolve: the message without its tensor, and the tensor on the received bytes."""

    message: messages.ConvolveRequest
    input: Array | None

    @classmethod
    def parse(cls, data: bytes) -> ConvolveRequest:
        """Reads a request's bytes."""
        return cls(*frame.read(messages.ConvolveRequest, "input", data))


@dataclass(frozen=True)
class ConvolveResponse:
    """A response of Convolve: the message without its tensor, and the tensor in the engine's memory."""

    message: messages.ConvolveResponse
    output: Array

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return frame.write(self.message, self.output)


class ConvolutionService(convolution_service_pb2_grpc.ConvolutionServiceServicer):
    """Answers ConvolutionService. Until it is opened, every call is told to come back."""

    def __init__(self) -> None:
        """Starts closed."""
        self._opened: tuple[Convolver, LayerKeeper] | None = None

    def open(self, convolver: Convolver, keeper: LayerKeeper) -> None:
        """Serves with this request path from now on."""
        self._opened = convolver, keeper

    @property
    def _convolver(self) -> Convolver:
        if self._opened is None:
            raise UnavailableError("Expected a server that is ready. This one is still starting; retry.")
        return self._opened[0]

    @property
    def _keeper(self) -> LayerKeeper:
        assert self._opened is not None  # noqa: S101 (_convolver is asked first)
        return self._opened[1]

    def GetServerInfo(
        self, request: messages.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> messages.GetServerInfoResponse:
        engine, limits = self._convolver.engine, self._convolver.limits
        stored = self._keeper.usage()
        info = ServerInfo(
            version=__version__,
            tensorflow_version=engine.versions["tensorflow"],
            keras_version=engine.versions["keras"],
            devices=engine.devices,
            input_dtypes=INPUT_DTYPES,
            output_dtypes=FLOAT_DTYPES,
            tf32=engine.tf32,
            max_message_bytes=limits.max_message_bytes,
            max_call_bytes=limits.max_call_bytes,
            max_layers_per_call=limits.max_layers_per_call,
            usage=Usage(stored.layers, stored.memory_bytes, stored.evictions, engine.traces),
        )
        return messages.GetServerInfoResponse(server_info=info.to_message())

    def Plan(self, request: messages.PlanRequest, context: grpc.ServicerContext) -> messages.PlanResponse:
        convolver = self._convolver
        input_dtype = dtype_name(request.input_dtype, "input_dtype", INPUT_DTYPES) if request.input_dtype else "float32"
        found = convolver.plan(
            _layers(request.layers, self._keeper),
            request.input_shape or None,
            input_dtype,
            _output_dtype(request.output_dtype),
        )
        admission = messages.Admission(admitted=bool(found.admitted), refusal=found.refusal or "")
        return messages.PlanResponse(plan=plan_to_message(found), admission=admission)

    def Convolve(self, request: ConvolveRequest, context: grpc.ServicerContext) -> ConvolveResponse:
        convolver = self._convolver
        layers = _layers(request.message.layers, self._keeper)
        if request.input is None:
            raise InvalidRequestError(
                FieldViolation("input", "Expected a tensor. Received none: the field is not set.")
            )
        output_dtype = _output_dtype(request.message.output_dtype)
        answer = convolver.convolve(layers, request.input, output_dtype, context.is_active)
        message = messages.ConvolveResponse(
            layers=[
                messages.LayerOutcome(
                    conv2d=None if config is None else conv2d_message.to_message(config), losses=losses.to_message()
                )
                for config, losses in zip(answer.layers, answer.computed.losses, strict=True)
            ],
            timing=messages.Timing(queue_us=answer.timing.queue_us, compute_us=answer.timing.compute_us),
            batch_size=answer.batch_size,
            device=answer.computed.device,
            warm=answer.computed.warm,
        )
        return ConvolveResponse(message, answer.computed.output)

    def Echo(self, output_bytes: int, context: grpc.ServicerContext) -> bytes:
        most = self._convolver.limits.max_message_bytes - _ECHO_HEAD_BYTES
        if output_bytes < 0:
            text = f"Expected a number of at least 0. Received {output_bytes}."
            raise InvalidRequestError(FieldViolation("output_bytes", text))
        if output_bytes > most:
            text = f"Expected at most {most} bytes, the server's --max-message-bytes. Received {output_bytes}."
            raise TooLargeError(FieldViolation("output_bytes", text))
        # Zeros that nobody has written to take no memory, so this is one copy, as any handler makes.
        return b"".join((frame.opening(output_bytes), bytes(output_bytes)))


def add_to_server(service: ConvolutionService, server: grpc.Server) -> None:
    """Registers the service; Convolve with a reading and writing that copies no tensor through a message."""
    handlers: dict[str, Any] = {
        "GetServerInfo": grpc.unary_unary_rpc_method_handler(
            service.GetServerInfo,
            messages.GetServerInfoRequest.FromString,
            messages.GetServerInfoResponse.SerializeToString,
        ),
        "Plan": grpc.unary_unary_rpc_method_handler(
            service.Plan, messages.PlanRequest.FromString, messages.PlanResponse.SerializeToString
        ),
        "Echo": grpc.unary_unary_rpc_method_handler(
            service.Echo, lambda data: frame.head(messages.EchoRequest, data).output_bytes, None
        ),
        "Convolve": grpc.unary_unary_rpc_method_handler(
            service.Convolve, ConvolveRequest.parse, ConvolveResponse.serialize
        ),
        "ConvolveStream": grpc.stream_stream_rpc_method_handler(
            service.ConvolveStream,
            messages.ConvolveStreamRequest.FromString,
            messages.ConvolveStreamResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _output_dtype(number: int) -> str | None:
    return dtype_name(number, "output_dtype", FLOAT_DTYPES) if number else None


def _layers(references: Sequence[layer_pb2.LayerReference], keeper: LayerKeeper) -> list[Layer]:
    if not references:
        raise InvalidRequestError(FieldViolation("layers", "Expected at least one layer. Received none."))
    found = []
    for index, reference in enumerate(references):
        with naming_layer(index, len(references)):
            found.append(_layer(reference, keeper))
    return found


def _layer(reference: layer_pb2.LayerReference, keeper: LayerKeeper) -> Layer:
    kind = reference.WhichOneof("layer")
    if kind == "inline":
        layer = Layer.from_message(reference.inline)
        if reference.inline.store and layer.kernel is not None:
            keeper.keep(layer)
        return layer
    if kind == "digest":
        if len(reference.digest) != 32:
            text = f"Expected a digest of 32 bytes. Received {len(reference.digest)} bytes."
            raise InvalidRequestError(FieldViolation("digest", text))
        return keeper.layer(reference.digest)
    if kind == "name":
        return keeper.layer(reference.name)
    text = "Expected a digest, a name or an inline layer. Received none of them."
    raise InvalidRequestError(FieldViolation("layers", text))
