"""GRPCInferenceService: the Open Inference Protocol's messages to the request path's words, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import ServicerContext as Context

from convserve._version import __version__
from convserve.errors import InvalidRequestError, LayerNotFoundError, UnimplementedError, short_repr
from convserve.protocol.status import to_status
from convserve_server.auth.identity import Identity, is_local
from convserve_server.backend import Backend
from convserve_server.health import Health
from convserve_server.observability.call_record import CallRecord, current_call, current_caller, current_identity
from convserve_server.open_inference import model_descriptions
from convserve_server.open_inference.inference import FindRegion, Inferences
from convserve_server.open_inference.layer_models import SEPARATOR, names_of
from convserve_server.open_inference.model_statistics import ModelStatistics
from convserve_server.open_inference.system_memory import SystemMemory, recent_user_of
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import SERVICE, SERVICE_NAME, InferRequest, InferResponse
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.transport.call_errors import to_convserve_error
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems, reads_items

_LISTED_BYTES = 500  # of one version in a list of all models

_EXTENSIONS = ("model_repository", "model_configuration", "statistics", "parameters")


class InferenceService:
    """Answers the protocol. `memory`: regions that callers on this machine register; None where they may not."""

    def __init__(
        self, backend: Backend, health: Health, stream_pool: ThreadPool, idle: IdleTimeouts, memory: SystemMemory | None
    ) -> None:
        self._backend, self._health, self._memory = backend, health, memory
        self._stream_pool, self._idle = stream_pool, idle
        self._statistics = ModelStatistics()
        self._inferences = Inferences(backend, self._statistics)
        self._models = self._inferences.models

    # What there is

    def ServerLive(self, request: messages.ServerLiveRequest, context: Context) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    def ServerReady(self, request: messages.ServerReadyRequest, context: Context) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._health.is_serving)

    def ServerMetadata(
        self, request: messages.ServerMetadataRequest, context: Context
    ) -> messages.ServerMetadataResponse:
        shared = () if self._memory is None else ("system_shared_memory",)
        return messages.ServerMetadataResponse(
            name=model_descriptions.PLATFORM, version=__version__, extensions=(*_EXTENSIONS, *shared)
        )

    def ModelReady(self, request: messages.ModelReadyRequest, context: Context) -> messages.ModelReadyResponse:
        with suppress(LayerNotFoundError):
            if self._health.is_serving:
                self._models.find(request.name, request.version)
                return messages.ModelReadyResponse(ready=True)
        return messages.ModelReadyResponse(ready=False)

    def ModelMetadata(self, request: messages.ModelMetadataRequest, context: Context) -> messages.ModelMetadataResponse:
        layers = self._models.described(request.name, request.version)
        return model_descriptions.metadata(request.name, self._models.versions(request.name), layers)

    def ModelConfig(self, request: messages.ModelConfigRequest, context: Context) -> messages.ModelConfigResponse:
        layers = self._models.described(request.name, request.version)
        return messages.ModelConfigResponse(config=model_descriptions.model_config(request.name, layers))

    def ModelStatistics(
        self, request: messages.ModelStatisticsRequest, context: Context
    ) -> messages.ModelStatisticsResponse:
        models = self._models
        if request.name:
            version = models.find(request.name, request.version).version
            versions = [version] if request.version else models.versions(request.name)
            return self._statistics_of((request.name, version) for version in versions)
        with self._listing(context, self._statistics.size()):
            listed = [(model.name, model.version) for model in models.listed() if not model.reason]
            for chain in (name for name in self._statistics.names() if SEPARATOR in name):
                with suppress(LayerNotFoundError):  # deleted since
                    listed += [(chain, version) for version in models.versions(chain)]
            return self._statistics_of(listed)

    def _statistics_of(self, versions: Iterable[tuple[str, str]]) -> messages.ModelStatisticsResponse:
        figures = [self._statistics.message(name, version) for name, version in versions]
        return messages.ModelStatisticsResponse(model_stats=figures)

    def _listing(self, context: Context, more: int = 0) -> Permit:
        """Returns the permit of a call whose answer lists all models, which the protocol has no pages for, and more."""
        size = _LISTED_BYTES * self._models.store.versions_of_all + more
        return self._backend.admission.admit_bytes(size, current_caller(context))

    # The repository

    def RepositoryIndex(
        self, request: messages.RepositoryIndexRequest, context: Context
    ) -> messages.RepositoryIndexResponse:
        _check_repository(request)
        index = messages.RepositoryIndexResponse()
        with self._listing(context):
            for model in self._models.listed():
                if not (model.reason and request.ready):
                    state = "UNAVAILABLE" if model.reason else "READY"
                    index.models.add(name=model.name, version=model.version, state=state, reason=model.reason)
        return index

    def RepositoryModelLoad(self, request: messages.RepositoryModelLoadRequest, context: Context) -> None:
        _check_repository(request, ())
        store, names = self._models.store, names_of(request.model_name)
        for name in names:
            store.describe(name)  # which raises for one that is not stored, before any is pinned
        for name in names:
            store.pin(name)

    def RepositoryModelUnload(self, request: messages.RepositoryModelUnloadRequest, context: Context) -> None:
        _check_repository(request, ("unload_dependents",))
        store, names = self._models.store, names_of(request.model_name)
        for name in names:
            store.versions(name)  # which raises for one that is not known, before any is unpinned
        for name in names:
            store.unpin(name)

    # Inference

    def ModelInfer(self, request: InferRequest, context: Context) -> InferResponse:
        find_region = self._region_finder(context.peer())
        return self._inferences.infer(request, current_caller(context), find_region, current_call())

    @reads_items
    def ModelStreamInfer(self, request_iterator: Iterator[InferRequest], context: Context) -> Iterator[bytes]:
        inferences, caller, call = self._inferences, current_caller(context), current_call()
        find_region = self._region_finder(context.peer())

        def infer(request: InferRequest, caller: Caller) -> InferResponse:
            return inferences.infer(request, caller, find_region, call)

        items: InFlightItems[InferRequest, str, InferResponse] = InFlightItems(
            request_iterator, caller, self._stream_pool, self._idle, context.cancel
        )

        def read() -> None:
            while (request := items.next_message()) is not None:
                item = items.begin(request.message.id)
                item.submit(infer, request, item.caller())
                del request, item

        # In order; the next requests are read and computed while one is answered.
        with closing(items.results(read)) as results:
            for request_id, result in results:
                yield _in_stream(request_id, result, call)
                del result  # and with it the output, before the wait for the next one

    def _region_finder(self, peer: str) -> FindRegion:
        """Returns what finds the regions of shared memory of the call that this thread answers."""
        identity = current_identity()
        return lambda name, field: self._shared(peer).region(self._owner(peer, identity), name, field)

    def _owner(self, peer: str, identity: Identity) -> str:
        """Returns whose regions a call may use: its caller's where it showed who it is, else its user's."""
        return identity.caller if identity.proof else f"user:{recent_user_of(peer)}"

    # Shared memory

    def SystemSharedMemoryStatus(
        self, request: messages.SystemSharedMemoryStatusRequest, context: Context
    ) -> messages.SystemSharedMemoryStatusResponse:
        if self._memory is None and not request.name:
            return messages.SystemSharedMemoryStatusResponse()
        answer, peer = messages.SystemSharedMemoryStatusResponse(), context.peer()
        for region in self._shared(peer).regions(self._owner(peer, current_identity()), request.name):
            status = answer.RegionStatus(name=region.name, key=region.key, offset=region.offset, byte_size=region.size)
            answer.regions[region.name].MergeFrom(status)
        return answer

    def SystemSharedMemoryRegister(self, request: messages.SystemSharedMemoryRegisterRequest, context: Context) -> None:
        peer, identity = context.peer(), current_identity()
        memory, owner, user = self._shared(peer), self._owner(peer, identity), recent_user_of(peer)
        caller, connection = (identity.caller, peer) if identity.is_one_caller else ("", "")
        connection = "" if peer.startswith("unix:") else connection
        memory.register(owner, user, request.name, request.key, request.offset, request.byte_size, caller, connection)

    def SystemSharedMemoryUnregister(
        self, request: messages.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> None:
        peer = context.peer()
        if self._memory is not None and is_local(peer):
            self._memory.unregister(self._owner(peer, current_identity()), request.name)

    def CudaSharedMemoryStatus(
        self, request: messages.CudaSharedMemoryStatusRequest, context: Context
    ) -> messages.CudaSharedMemoryStatusResponse:
        if request.name:
            expected = "no name, as no memory of a GPU is shared"
            raise InvalidRequestError.for_field("name", expected, short_repr(request.name))
        return messages.CudaSharedMemoryStatusResponse()

    def CudaSharedMemoryRegister(self, request: messages.CudaSharedMemoryRegisterRequest, context: Context) -> None:
        raise UnimplementedError("Expected a region of system shared memory. Received one of a GPU's memory.")

    def CudaSharedMemoryUnregister(self, request: messages.CudaSharedMemoryUnregisterRequest, context: Context) -> None:
        pass  # of what cannot be registered

    def _shared(self, peer: str) -> SystemMemory:
        """Returns the regions, for a caller on this machine."""
        if self._memory is None or not is_local(peer):
            where = "none is shared (--shared-memory)" if self._memory is None else "you are not on its machine"
            text = f"Expected tensors in the message. Received shared memory, of which this server takes none: {where}."
            raise UnimplementedError(text)
        return self._memory


def add_to_server(service: InferenceService, server: grpc.Server) -> None:
    """Registers the service under its true name; inference with a reading and writing that copies no tensor."""
    handlers: dict[str, Any] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            service.ModelInfer, InferRequest.parse, InferResponse.serialize
        ),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.ModelStreamInfer, InferRequest.parse, None),
    }
    for method in SERVICE.methods:
        if method.name not in handlers:
            parse = getattr(messages, method.input_type.name).FromString
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                getattr(service, method.name), parse, _serialized
            )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _serialized(answer: Message | None) -> bytes:
    """Returns an answer's bytes; of one that says nothing there is no message, and it has none."""
    return b"" if answer is None else answer.SerializeToString()


def _check_repository(request: Any, known_parameters: tuple[str, ...] | None = None) -> None:
    if request.repository_name:
        expected = "no name, as there is one repository"
        raise InvalidRequestError.for_field("repository_name", expected, short_repr(request.repository_name))
    if known_parameters is not None and (strange := sorted(set(request.parameters) - set(known_parameters))):
        expected = " or ".join(known_parameters) or "none"
        raise InvalidRequestError.for_field("parameters", expected, short_repr(strange[0]))


def _in_stream(request_id: str, result: Future[InferResponse], call: CallRecord) -> bytes:
    try:
        response = result.result()
    except Exception as error:
        del result  # which has the error, in whose traceback this frame is
        answer = to_convserve_error(error, call)
        call.refused(answer, item=True)
        text = to_status(answer).details  # which has a bound, as a call's own
        del answer
        failed = messages.ModelInferResponse(id=request_id)
        return messages.ModelStreamInferResponse(error_message=text, infer_response=failed).SerializeToString()
    response.message.parameters["triton_final_response"].bool_param = True
    return response.serialize_in_stream()
