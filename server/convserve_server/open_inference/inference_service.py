"""GRPCInferenceService: the Open Inference Protocol's messages to the request path's words, and back."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import grpc

from convserve._version import __version__
from convserve.errors import (
    FieldViolation,
    InvalidRequestError,
    LayerNotFoundError,
    UnimplementedError,
    short_repr,
)
from convserve_server.auth.identity import Identity, is_local
from convserve_server.backend import BackendGate
from convserve_server.layer_store.store import LayerStore
from convserve_server.observability.call_record import current_call, current_identity
from convserve_server.open_inference import model_descriptions
from convserve_server.open_inference.infer_stream import InferItems, infer_stream
from convserve_server.open_inference.inference import FindRegion, Inferences
from convserve_server.open_inference.layer_models import (
    SEPARATOR,
    LayerModels,
    stored_names,
)
from convserve_server.open_inference.model_statistics import ModelStatistics
from convserve_server.open_inference.system_memory import PeerUsers, SystemMemory
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import SERVICE, SERVICE_NAME, InferRequest, InferResponse
from convserve_server.scheduling.caller import Caller
from convserve_server.transport.callers import current_caller
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems
from convserve_server.transport.thread_pool import ThreadPool

_EXTENSIONS = ("model_repository", "model_configuration", "statistics", "parameters")


class _Ready(NamedTuple):
    """What a server that is ready answers with."""

    models: LayerModels
    inferences: Inferences
    store: LayerStore


class InferenceService:
    """Answers the protocol."""

    def __init__(
        self, gate: BackendGate, stream_pool: ThreadPool, idle: IdleTimeouts, memory: SystemMemory | None
    ) -> None:
        """Joins the parts.

        Args:
            gate: Gives the backend.
            stream_pool: Reads streams and computes their requests.
            idle: For how long a stream's caller may send nothing.
            memory: Regions that callers on this machine register; None where they may not.
        """
        self._gate, self._stream_pool, self._idle, self._memory = gate, stream_pool, idle, memory
        self._users = PeerUsers()
        self._statistics = ModelStatistics()

    @cached_property
    def _ready(self) -> _Ready:
        backend = self._gate.backend  # which raises while the server starts
        models = LayerModels(backend.store)
        return _Ready(models, Inferences(backend, models, self._statistics), backend.store)

    # What there is

    def ServerLive(
        self, request: messages.ServerLiveRequest, context: grpc.ServicerContext
    ) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: messages.ServerReadyRequest, context: grpc.ServicerContext
    ) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._gate.is_ready)

    def ServerMetadata(
        self, request: messages.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> messages.ServerMetadataResponse:
        shared = () if self._memory is None else ("system_shared_memory",)
        return messages.ServerMetadataResponse(
            name=model_descriptions.PLATFORM, version=__version__, extensions=(*_EXTENSIONS, *shared)
        )

    def ModelReady(
        self, request: messages.ModelReadyRequest, context: grpc.ServicerContext
    ) -> messages.ModelReadyResponse:
        if not self._gate.is_ready:
            return messages.ModelReadyResponse(ready=False)
        try:
            self._ready.models.find(request.name, request.version)
        except LayerNotFoundError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    def ModelMetadata(
        self, request: messages.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> messages.ModelMetadataResponse:
        models = self._ready.models
        layers = models.described(models.find(request.name, request.version))
        return model_descriptions.metadata(request.name, models.versions(request.name), layers)

    def ModelConfig(
        self, request: messages.ModelConfigRequest, context: grpc.ServicerContext
    ) -> messages.ModelConfigResponse:
        models = self._ready.models
        layers = models.described(models.find(request.name, request.version))
        return messages.ModelConfigResponse(config=model_descriptions.model_config(request.name, layers))

    def ModelStatistics(
        self, request: messages.ModelStatisticsRequest, context: grpc.ServicerContext
    ) -> messages.ModelStatisticsResponse:
        models = self._ready.models
        if request.name:
            version = models.find(request.name, request.version).version
            versions = [version] if request.version else models.versions(request.name)
            listed = [(request.name, version) for version in versions]
        else:
            listed = [(model.name, model.version) for model in models.listed() if not model.reason]
            for chain in (name for name in self._statistics.names() if SEPARATOR in name):
                listed += [(chain, version) for version in _versions(models, chain)]
        return messages.ModelStatisticsResponse(
            model_stats=[self._statistics.message(name, version) for name, version in listed]
        )

    # The repository

    def RepositoryIndex(
        self, request: messages.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> messages.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        return messages.RepositoryIndexResponse(
            models=[
                messages.RepositoryIndexResponse.ModelIndex(
                    name=model.name,
                    version=model.version,
                    state="UNAVAILABLE" if model.reason else "READY",
                    reason=model.reason,
                )
                for model in self._ready.models.listed()
                if not (model.reason and request.ready)
            ]
        )

    def RepositoryModelLoad(
        self, request: messages.RepositoryModelLoadRequest, context: grpc.ServicerContext
    ) -> messages.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, ())
        store, names = self._ready.store, stored_names(request.model_name)
        for name in names:
            store.describe(name)  # which raises for one that is not stored, before any is pinned
        for name in names:
            store.pin(name)
        return messages.RepositoryModelLoadResponse()

    def RepositoryModelUnload(
        self, request: messages.RepositoryModelUnloadRequest, context: grpc.ServicerContext
    ) -> messages.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, ("unload_dependents",))
        store, names = self._ready.store, stored_names(request.model_name)
        for name in names:
            store.versions(name)  # which raises for one that is not known, before any is unpinned
        for name in names:
            store.unpin(name)
        return messages.RepositoryModelUnloadResponse()

    # Inference

    def ModelInfer(self, request: InferRequest, context: grpc.ServicerContext) -> InferResponse:
        return self._ready.inferences.infer(
            request, current_caller(context), self._region_finder(context.peer()), current_call()
        )

    def ModelStreamInfer(
        self, request_iterator: Iterator[InferRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        inferences, caller, call = self._ready.inferences, current_caller(context), current_call()
        find_region = self._region_finder(context.peer())

        def infer(request: InferRequest, caller: Caller) -> InferResponse:
            return inferences.infer(request, caller, find_region, call)

        items: InferItems = InFlightItems(request_iterator, caller, self._stream_pool, self._idle, context.cancel)
        return infer_stream(infer, items, call)

    def _region_finder(self, peer: str) -> FindRegion:
        """Returns what finds the regions of shared memory of the call that this thread answers."""
        identity = current_identity()
        return lambda name, field: self._shared(peer).region(self._owner(peer, identity), name, field)

    def _owner(self, peer: str, identity: Identity) -> str:
        """Returns whose regions a call may use: its caller's where it showed who it is, else its user's."""
        return identity.caller if identity.proof else f"user:{self._users.of(peer)}"

    # Shared memory

    def SystemSharedMemoryStatus(
        self, request: messages.SystemSharedMemoryStatusRequest, context: grpc.ServicerContext
    ) -> messages.SystemSharedMemoryStatusResponse:
        if self._memory is None and not request.name:
            return messages.SystemSharedMemoryStatusResponse()
        peer, status = context.peer(), messages.SystemSharedMemoryStatusResponse.RegionStatus
        return messages.SystemSharedMemoryStatusResponse(
            regions={
                region.name: status(name=region.name, key=region.key, offset=region.offset, byte_size=region.size)
                for region in self._shared(peer).regions(self._owner(peer, current_identity()), request.name)
            }
        )

    def SystemSharedMemoryRegister(
        self, request: messages.SystemSharedMemoryRegisterRequest, context: grpc.ServicerContext
    ) -> messages.SystemSharedMemoryRegisterResponse:
        peer = context.peer()
        memory, user = self._shared(peer), self._users.of(peer)
        owner = self._owner(peer, current_identity())
        memory.register(owner, user, request.name, request.key, request.offset, request.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(
        self, request: messages.SystemSharedMemoryUnregisterRequest, context: grpc.ServicerContext
    ) -> messages.SystemSharedMemoryUnregisterResponse:
        peer = context.peer()
        if self._memory is not None and is_local(peer):
            self._memory.unregister(self._owner(peer, current_identity()), request.name)
        return messages.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryStatus(
        self, request: messages.CudaSharedMemoryStatusRequest, context: grpc.ServicerContext
    ) -> messages.CudaSharedMemoryStatusResponse:
        if request.name:
            text = f"Expected no name, as no memory of a GPU is shared. Received {short_repr(request.name)}."
            raise InvalidRequestError(FieldViolation("name", text))
        return messages.CudaSharedMemoryStatusResponse()

    def CudaSharedMemoryRegister(
        self, request: messages.CudaSharedMemoryRegisterRequest, context: grpc.ServicerContext
    ) -> messages.CudaSharedMemoryRegisterResponse:
        raise UnimplementedError("Expected a region of system shared memory. Received one of a GPU's memory.")

    def CudaSharedMemoryUnregister(
        self, request: messages.CudaSharedMemoryUnregisterRequest, context: grpc.ServicerContext
    ) -> messages.CudaSharedMemoryUnregisterResponse:
        return messages.CudaSharedMemoryUnregisterResponse()

    def _shared(self, peer: str) -> SystemMemory:
        """Returns the regions, for a caller on this machine."""
        if self._memory is None or not is_local(peer):
            where = "none is shared (--shared-memory)" if self._memory is None else "you are not on its machine"
            text = f"Expected tensors in the message. Received shared memory, of which this server takes none: {where}."
            raise UnimplementedError(text)
        return self._memory


def add_to_server(service: InferenceService, server: grpc.Server) -> None:
    """Registers the service under its true name; inference with a reading and writing that copies no tensor."""
    serialize = operator.methodcaller("SerializeToString")
    handlers: dict[str, Any] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            service.ModelInfer, InferRequest.parse, InferResponse.serialize
        ),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.ModelStreamInfer, InferRequest.parse, None),
    }
    for method in SERVICE.methods:
        if method.name not in handlers:
            parse = getattr(messages, method.input_type.name).FromString
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(getattr(service, method.name), parse, serialize)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _versions(models: LayerModels, name: str) -> list[str]:
    try:
        return models.versions(name)
    except LayerNotFoundError:  # deleted since
        return []


def _check_repository(name: str) -> None:
    if name:
        text = f"Expected no name, as there is one repository. Received {short_repr(name)}."
        raise InvalidRequestError(FieldViolation("repository_name", text))


def _check_parameters(parameters: Any, known: tuple[str, ...]) -> None:
    strange = sorted(set(parameters) - set(known))
    if strange:
        text = f"Expected {' or '.join(known) or 'none'}. Received {short_repr(strange[0])}."
        raise InvalidRequestError(FieldViolation("parameters", text))
