"""ConvolutionService: messages to the request path's words, and its answers back to messages."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grpc
import numpy as np
from grpc import ServicerContext as Context

from convserve._version import __version__
from convserve.errors import InvalidRequestError, SharedMemoryLostError
from convserve.layers.layer import Layer
from convserve.protocol.results import plan_to_message
from convserve.protocol.server_info import ServerInfo, Usage
from convserve.tensors import codec, framing
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES, Array, checked_shape, dtype_name, itemsize
from convserve.tensors.pieces import ACCEPTED
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import convolution_service_pb2_grpc, layer_pb2
from convserve_server.auth.identity import CHANGE, is_local
from convserve_server.backend import Backend
from convserve_server.layer_store.stored_layer import Reference
from convserve_server.observability.call_record import current_call, current_caller, current_identity
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.services import convolve_stream
from convserve_server.services.layer_references import Found, find_layers
from convserve_server.services.shared_memory import SharedMemory
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems, reads_items

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["ConvolutionService"].full_name

_MAX_PLANNED = 1000  # layers of a plan, which tells what is wrong with a call of more than the server computes

ConvolveRequest = tuple[messages.ConvolveRequest, Array | None]
"""A request of Convolve without its tensor, and the tensor on the received bytes; None if it is in shared memory."""


class ConvolutionService(convolution_service_pb2_grpc.ConvolutionServiceServicer):
    """Answers ConvolutionService; its pool reads streams, of at most so many items, and computes these."""

    def __init__(
        self,
        backend: Backend,
        shared_memory: SharedMemory | None,
        stream_pool: ThreadPool,
        idle: IdleTimeouts,
        max_items: int,
    ) -> None:
        self._backend, self._shared_memory = backend, shared_memory
        self._stream_pool, self._idle, self._max_items = stream_pool, idle, max_items

    def _shared_with(self, context: Context) -> SharedMemory | None:
        """Returns the memory that a caller may share with the server: one on its machine."""
        return self._shared_memory if self._shared_memory is not None and is_local(context.peer()) else None

    def GetServerInfo(self, request: messages.GetServerInfoRequest, context: Context) -> messages.GetServerInfoResponse:
        engine, limits = self._backend.engine, self._backend.admission.limits
        stored = self._backend.store.usage()
        shared = self._shared_with(context)
        info = ServerInfo(
            version=__version__,
            tensorflow_version=engine.versions["tensorflow"],
            keras_version=engine.versions["keras"],
            devices=engine.devices,
            input_dtypes=INPUT_DTYPES,
            output_dtypes=FLOAT_DTYPES,
            tf32=engine.tf32,
            onednn=engine.onednn,
            max_message_bytes=limits.max_message_bytes,
            max_call_bytes=limits.max_call_bytes,
            max_layers_per_call=limits.max_layers_per_call,
            max_call_flops=limits.max_call_flops,
            usage=Usage(stored.layers, stored.memory_bytes, stored.evictions, engine.traces),
            shared_memory_address=shared.address if shared else "",
        )
        message = info.to_message()
        message.shared_memory_ticket = shared.ticket if shared else b""
        return messages.GetServerInfoResponse(server_info=message)

    def Plan(self, request: messages.PlanRequest, context: Context) -> messages.PlanResponse:
        admission = self._backend.admission
        input_dtype = dtype_name(request.input_dtype, "input_dtype", INPUT_DTYPES) if request.input_dtype else "float32"
        layers = self._layers(request.layers, self._backend.store.describe, _MAX_PLANNED)  # which reads no weights
        dtype, given = convolve_stream.output_dtype(request.output_dtype), frozenset(request.given)
        plan = admission.plan(layers, request.input_shape or None, input_dtype, dtype, given)
        verdict = messages.Admission(admitted=bool(plan.admitted), refusal=plan.refusal or "")
        return messages.PlanResponse(plan=plan_to_message(plan), admission=verdict)

    def Convolve(self, request: ConvolveRequest, context: Context) -> bytes:
        backend, (message, x) = self._backend, request
        layers = self._layers(message.layers, backend.store.layer)
        shared = self._shared_with(context)
        if x is None:
            x = _shared_input(message, shared)
        memory, room = None, 0
        if message.HasField("output_memory"):
            memory = _existing(shared).array(message.output_memory, None, "output_memory")
            room = len(memory)
        caller, dtype = current_caller(context), convolve_stream.output_dtype(message.output_dtype)
        permit = backend.admission.admit(layers, x.shape, codec.name_of(x), dtype, caller, output_room=room)
        result = backend.scheduler.convolve(permit, layers, x, caller, unbatched=message.unbatched)
        current_call().computed(result.computation)
        response, output = convolve_stream.response_without_output(result), result.output
        if memory is None or output.nbytes > room:
            return framing.write(response, output)
        memory[: output.nbytes] = output.reshape(-1).view(np.uint8)
        response.output.CopyFrom(codec.head_of(output))
        response.output.shared_memory.CopyFrom(message.output_memory)
        return response.SerializeToString()

    @reads_items
    def ConvolveStream(self, request_iterator: Iterator[convolve_stream.Request], context: Context) -> Iterator[bytes]:
        backend = self._backend
        first = next(request_iterator, None)
        if not isinstance(first, messages.ConvolveStreamRequest) or first.WhichOneof("message") != "start":
            raise InvalidRequestError.for_field("start", "a start as the first message", "none")
        start, caller = first.start, current_caller(context)
        layers = [_seeded(layer) for layer in self._layers(start.layers, backend.store.layer)]
        in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
        items: convolve_stream.StreamItems = InFlightItems(
            request_iterator, caller, self._stream_pool, self._idle, context.cancel, in_order=in_order
        )
        stream = convolve_stream.ConvolveStream(backend, layers, start, items, current_call(), self._max_items)
        context.send_initial_metadata((ACCEPTED,))
        yield from stream.answers()

    def _layers(
        self, references: Sequence[layer_pb2.LayerReference], find: Callable[[Reference], Found], most: int = 0
    ) -> list[Layer | Found]:
        """Returns a call's layers, and stores those that it asks to have stored if its caller may."""
        backend, may_store = self._backend, CHANGE in current_identity().permissions
        backend.admission.check_layers(len(references), most)
        return find_layers(references, backend.store, find, may_store=may_store)

    def Echo(self, request: messages.EchoRequest, context: Context) -> bytes:
        output_bytes = request.output_bytes
        if output_bytes < 0:
            raise InvalidRequestError.for_field("output_bytes", "a number of at least 0", output_bytes)
        with self._backend.admission.admit_bytes(output_bytes, current_caller(context)):
            # Zeros that nobody has written to take no memory, so this is one copy, and gRPC makes another.
            return b"".join((framing.opening(output_bytes), bytes(output_bytes)))


def add_to_server(service: ConvolutionService, server: grpc.Server) -> None:
    """Registers the service; where tensors travel it reads and writes bytes, without a copy through a message."""
    unary, serialize = grpc.unary_unary_rpc_method_handler, operator.methodcaller("SerializeToString")
    handlers: dict[str, Any] = {
        "GetServerInfo": unary(service.GetServerInfo, messages.GetServerInfoRequest.FromString, serialize),
        "Plan": unary(service.Plan, messages.PlanRequest.FromString, serialize),
        "Echo": unary(service.Echo, partial(framing.head, messages.EchoRequest)),
        "Convolve": unary(service.Convolve, partial(framing.read, messages.ConvolveRequest, "input")),
        "ConvolveStream": grpc.stream_stream_rpc_method_handler(service.ConvolveStream, convolve_stream.parse),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _existing(shared: SharedMemory | None) -> SharedMemory:
    """Returns the memory that a caller shares with the server."""
    if shared is None:
        raise SharedMemoryLostError("Expected a tensor. Received a place in memory; this server shares none.")
    return shared


def _shared_input(message: messages.ConvolveRequest, shared: SharedMemory | None) -> Array:
    if not message.HasField("input"):
        raise InvalidRequestError.for_field("input", "a tensor", "none: the field is not set")
    head = message.input
    size = math.prod(checked_shape(head.shape, "input")) * itemsize(dtype_name(head.dtype, "input"))
    return codec.decode(head, "input", elements=_existing(shared).array(head.shared_memory, size, "input").data)


def _seeded(layer: Layer) -> Layer:
    """Returns a layer whose weights, if they are to be drawn, are the same for every item of a stream."""
    return layer if layer.kernel is not None else Layer(layer.config.with_seed(secrets.randbelow(2**31)))
