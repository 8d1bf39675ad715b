"""ConvolutionService: messages to the request path's words, and its answers back to messages."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from convserve._version import __version__
from convserve.errors import (
    FieldViolation,
    InvalidRequestError,
    SharedMemoryLostError,
    TooLargeError,
    UnavailableError,
)
from convserve.layers.layer import Layer
from convserve.protocol.pieces import ACCEPTED
from convserve.protocol.results import ServerInfo, Usage, plan_to_message
from convserve.tensors import framing
from convserve.tensors.codec import (
    FLOAT_DTYPES,
    INPUT_DTYPES,
    Array,
    checked_shape,
    decode,
    dtype_name,
    head_of,
    itemsize,
    name_of,
)
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import convolution_service_pb2_grpc, layer_pb2
from convserve_server.auth.identity import CHANGE, is_local
from convserve_server.backend import Backend
from convserve_server.observability.call_record import current_call, current_identity
from convserve_server.services.convolve_stream import ConvolveStream, Request, StreamItems, parse
from convserve_server.services.layer_references import find_layers
from convserve_server.services.responses import output_dtype, response_without_output
from convserve_server.services.shared_memory import SharedMemory
from convserve_server.transport.callers import current_caller
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems
from convserve_server.transport.thread_pool import ThreadPool

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["ConvolutionService"].full_name
_HEAD_BYTES = 2**16  # what is beside a tensor in a response


@dataclass(frozen=True)
class ConvolveRequest:
    """A request of Convolve: the message without its tensor, and the tensor on the received bytes."""

    message: messages.ConvolveRequest
    input: Array | None

    @classmethod
    def parse(cls, data: bytes) -> ConvolveRequest:
        """Reads a request's bytes."""
        return cls(*framing.read(messages.ConvolveRequest, "input", data))


@dataclass(frozen=True)
class ConvolveResponse:
    """A response of Convolve: the message without its tensor, and the tensor in the engine's memory.

    Without a tensor, the message says where in shared memory it is.
    """

    message: messages.ConvolveResponse
    output: Array | None

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return self.message.SerializeToString() if self.output is None else framing.write(self.message, self.output)


class ConvolutionService(convolution_service_pb2_grpc.ConvolutionServiceServicer):
    """Answers ConvolutionService. Until it is opened, it refuses every call as UNAVAILABLE."""

    def __init__(self, stream_pool: ThreadPool, idle: IdleTimeouts, max_items: int) -> None:
        """Starts closed.

        Args:
            stream_pool: Reads streams and computes their items.
            idle: For how long a stream's caller may send nothing.
            max_items: How many items a stream may have.
        """
        self._stream_pool, self._idle, self._max_items = stream_pool, idle, max_items
        self.shared_memory: SharedMemory | None = None
        self._opened: Backend | None = None

    def open(self, backend: Backend) -> None:
        """Serves with these parts from now on."""
        self._opened = backend

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            raise UnavailableError("Expected a server that is ready. This one is still starting; retry.")
        return self._opened

    def GetServerInfo(
        self, request: messages.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> messages.GetServerInfoResponse:
        engine, limits = self._backend.engine, self._backend.admission.limits
        stored = self._backend.store.usage()
        shared = self.shared_memory if is_local(context.peer()) else None
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
            shared_memory_address=shared.address if shared else "",
        )
        message = info.to_message()
        message.shared_memory_ticket = shared.ticket if shared else b""
        return messages.GetServerInfoResponse(server_info=message)

    def Plan(self, request: messages.PlanRequest, context: grpc.ServicerContext) -> messages.PlanResponse:
        backend = self._backend
        input_dtype = dtype_name(request.input_dtype, "input_dtype", INPUT_DTYPES) if request.input_dtype else "float32"
        plan = backend.admission.plan(
            self._layers(request.layers), request.input_shape or None, input_dtype, output_dtype(request.output_dtype)
        )
        admission = messages.Admission(admitted=bool(plan.admitted), refusal=plan.refusal or "")
        return messages.PlanResponse(plan=plan_to_message(plan), admission=admission)

    def Convolve(self, request: ConvolveRequest, context: grpc.ServicerContext) -> ConvolveResponse:
        backend, message = self._backend, request.message
        layers = self._layers(message.layers)
        shared = self.shared_memory
        if shared is not None and not is_local(context.peer()):
            shared = None
        x = request.input if request.input is not None else _shared_input(message, shared)
        place = message.output_memory if message.HasField("output_memory") else None
        if place is not None:
            _existing(shared).array(place, 0, "output_memory")
        caller, dtype = current_caller(context), output_dtype(message.output_dtype)
        permit = backend.admission.admit(layers, x.shape, name_of(x), dtype, caller, in_one_message=place is None)
        result = backend.scheduler.convolve(permit, layers, x, caller, unbatched=message.unbatched)
        current_call().computed(result.computation)
        response, output = response_without_output(result), result.output
        if place is None:
            return ConvolveResponse(response, output)
        memory = _existing(shared)
        if not memory.has_room(place, output.nbytes):
            _check_response(output.nbytes, backend.admission.limits.max_message_bytes)
            return ConvolveResponse(response, output)
        memory.array(place, output.nbytes, "output_memory")[:] = output.reshape(-1).view(np.uint8)
        response.output.CopyFrom(head_of(output))
        response.output.shared_memory.CopyFrom(place)
        return ConvolveResponse(response, None)

    def ConvolveStream(self, request_iterator: Iterator[Request], context: grpc.ServicerContext) -> Iterator[bytes]:
        backend = self._backend
        first = next(request_iterator, None)
        if not isinstance(first, messages.ConvolveStreamRequest) or first.WhichOneof("message") != "start":
            text = "Expected a start as the first message. Received none."
            raise InvalidRequestError(FieldViolation("start", text))
        start, caller = first.start, current_caller(context)
        layers = [_seeded(layer) for layer in self._layers(start.layers)]
        in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
        items: StreamItems = InFlightItems(
            request_iterator, caller, self._stream_pool, self._idle, context.cancel, in_order=in_order
        )
        stream = ConvolveStream(backend, layers, start, items, current_call(), self._max_items)
        context.send_initial_metadata((ACCEPTED,))
        yield from stream.answers()

    def _layers(self, references: Sequence[layer_pb2.LayerReference]) -> list[Layer]:
        """Returns a call's layers, and stores those that it asks to have stored if its caller may."""
        return find_layers(references, self._backend.store, may_store=CHANGE in current_identity().permissions)

    def Echo(self, output_bytes: int, context: grpc.ServicerContext) -> bytes:
        if output_bytes < 0:
            text = f"Expected a number of at least 0. Received {output_bytes}."
            raise InvalidRequestError(FieldViolation("output_bytes", text))
        with self._backend.admission.admit_bytes(output_bytes, current_caller(context)):
            # Zeros that nobody has written to take no memory, so this is one copy, as any handler makes.
            return b"".join((framing.opening(output_bytes), bytes(output_bytes)))


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
        "Echo": grpc.unary_unary_rpc_method_handler(service.Echo, _echoed_bytes, None),
        "Convolve": grpc.unary_unary_rpc_method_handler(
            service.Convolve, ConvolveRequest.parse, ConvolveResponse.serialize
        ),
        "ConvolveStream": grpc.stream_stream_rpc_method_handler(service.ConvolveStream, parse, None),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _echoed_bytes(data: bytes) -> int:
    return framing.head(messages.EchoRequest, data).output_bytes


def _existing(shared: SharedMemory | None) -> SharedMemory:
    """Returns the memory that a caller shares with the server."""
    if shared is None:
        raise SharedMemoryLostError("Expected a tensor. Received a place in memory; this server shares none.")
    return shared


def _shared_input(message: messages.ConvolveRequest, shared: SharedMemory | None) -> Array:
    if not message.HasField("input"):
        raise InvalidRequestError(FieldViolation("input", "Expected a tensor. Received none: the field is not set."))
    head = message.input
    size = math.prod(checked_shape(head.shape, "input")) * itemsize(dtype_name(head.dtype, "input"))
    return decode(head, "input", elements=_existing(shared).array(head.shared_memory, size, "input").data)


def _check_response(output_bytes: int, most: int) -> None:
    """Refuses an output that was to go into shared memory, does not fit there, and is too large for a message."""
    if output_bytes + _HEAD_BYTES > most:
        text = (
            f"Expected output_memory with room for the output, or at most {most} bytes of response, the server's "
            f"--max-message-bytes. Received a call with {output_bytes}."
        )
        raise TooLargeError(FieldViolation("output_memory", text))


def _seeded(layer: Layer) -> Layer:
    """Returns a layer whose weights, if they are to be drawn, are the same for every item of a stream."""
    return layer if layer.kernel is not None else Layer(layer.config.with_seed(secrets.randbelow(2**31)))
