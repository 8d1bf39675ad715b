"""The composition root: puts the parts together, starts, warms up, serves, drains, stops."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

import grpc
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve._version import __version__
from convserve.errors import ConvserveError
from convserve.protocol.addresses import unix_path
from convserve.protocol.layer_messages import MAX_DIGESTS
from convserve.v1 import convolution_service_pb2, error_pb2, layer_service_pb2, layer_service_pb2_grpc
from convserve_server import reflection
from convserve_server.auth.authenticator import Authenticator
from convserve_server.auth.certificates import Certificate
from convserve_server.auth.tokens import Tokens
from convserve_server.backend import Backend
from convserve_server.engine.startup import load_engine
from convserve_server.engine_api import Engine
from convserve_server.health import SERVICE_NAME, Health
from convserve_server.layer_store.durable.opening import opened
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
from convserve_server.local import parts
from convserve_server.memory.budget import call_threads, described, fitted, upload_bytes
from convserve_server.memory.descriptors import Descriptors, descriptors_for
from convserve_server.memory.machine import is_limited
from convserve_server.observability.logs import held_stderr, log, say, start_logging
from convserve_server.observability.setup import Observability
from convserve_server.open_inference import inference_service, wire
from convserve_server.open_inference.inference_service import InferenceService
from convserve_server.open_inference.system_memory import MAX_REGIONS, SystemMemory
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.services import convolution_service, layer_service
from convserve_server.services.convolution_service import ConvolutionService
from convserve_server.services.layer_service import LayerService
from convserve_server.services.shared_memory import MAX_CONNECTIONS, SharedMemory
from convserve_server.settings import LARGEST_MESSAGE_BYTES, Settings, SettingsError, unknown_variables
from convserve_server.shutdown import StopSignals, drain
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.connections import Connections, with_spare
from convserve_server.transport.grpc_private import add_channelz
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.listening import Listener, exposure
from convserve_server.transport.message_bounds import FIELDS_OF_A_LAYER, MessageBound
from convserve_server.transport.options import server_options
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots
from convserve_server.warm_up import WarmUp, warm_up

_SWEEP_S = 3600.0

_MIN_THREADS = 8  # of calls, and of streams, that are started at once, lest the system should not start them later
_SMALL_STACK_BYTES = 2**20  # of a thread, where what is mapped and never touched counts too; usual are 8 MiB

_FILES = [module.DESCRIPTOR for module in (convolution_service_pb2, layer_service_pb2, health_pb2, channelz_pb2)]
# Of every service that a server may have, whatever the settings.
_DESCRIPTORS = [
    *(service for file in _FILES for service in file.services_by_name.values()),
    wire.SERVICE,
    *reflection.SERVICES,
]


def run(settings: Settings, load_engine: Callable[..., Engine] = load_engine) -> int:
    """Serves until SIGTERM or SIGINT. Returns the process' exit status.

    `load_engine` is called as `engine.startup.load_engine`. Raises SettingsError if an address cannot be listened on,
    there is no such device, a layer cannot be warmed up, or the files of tokens and certificates are wrong.
    """
    log_handler = start_logging(settings.log_level, settings.log_format)
    max_answer_bytes = settings.max_message_bytes or LARGEST_MESSAGE_BYTES
    settings = fitted(settings)
    if is_limited():
        threading.stack_size(_SMALL_STACK_BYTES)
    stop = StopSignals()
    warm_ups = [WarmUp.parse(text) for text in settings.warm_up]
    tokens = Tokens(settings.tokens_file, settings.token.get_secret_value())
    certificate = Certificate.of(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    store = _store(settings)
    health = Health(_service_names(settings))
    observability = Observability(settings, _DESCRIPTORS, log_handler, lambda: health.is_serving)
    descriptors = _descriptors(settings)
    shared_memory = None
    if settings.shared_memory:
        shared_memory = SharedMemory(settings.shared_memory_bytes, descriptors.memory_connections)
    connections = Connections(settings.max_connections, descriptors.connections)
    listeners = [Listener(address) for address in settings.listen]
    for warning in unknown_variables(os.environ):
        log.warning("%s", warning)
    if observability.metrics_url:
        say(f"metrics on {observability.metrics_url}")
    started = time.monotonic()
    engine = _started(settings, load_engine)
    settings = parts.fitted_to(engine, settings)
    _log_settings(settings)
    backend = _backend(settings, engine, store, max_answer_bytes)
    for forward_pass in warm_ups:
        warm_up(forward_pass, backend)
    observability.open(backend)
    server = _assembled(
        settings, backend, health, shared_memory, observability, tokens, certificate, descriptors, connections
    )
    # What is there now stays: each collection would look through TensorFlow's and gRPC's modules again.
    gc.collect()
    gc.freeze()
    if store.is_shared:
        threading.Thread(target=_sweep, args=[store], name="sweep", daemon=True).start()
    stop.serving()
    for listener in listeners:
        listener.listen(server, certificate)
    connections.watch([listener.address for listener in listeners])
    health.set_serving(True)
    server.start()
    for listener in listeners:
        _announce(listener.address, shared_memory, exposure(listener.address, certificate, tokens))
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    devices = ", ".join(f"{device.name} {device.description}".strip() for device in engine.devices)
    modes = f"TF32 {_word(engine.tf32)}, oneDNN {_word(engine.onednn)}"
    say(f"ready after {time.monotonic() - started:.1f} s: convserve {__version__}, {versions}, {devices}, {modes}")
    stop.wait()
    return drain(settings, server, health, shared_memory, observability, stop)


def _word(is_on: bool) -> str:
    return "on" if is_on else "off"


def _started(settings: Settings, load_engine: Callable[..., Engine]) -> Engine:
    verbose = settings.log_level == "debug"
    with nullcontext() if verbose else held_stderr(may_end_here=True):
        return parts.started_engine(settings, load_engine)


def _backend(settings: Settings, engine: Engine, store: LayerStore, max_answer_bytes: int) -> Backend:
    admission = parts.admission_of(settings, engine, max_answer_bytes)
    limits = settings.max_call_bytes, settings.max_admitted_bytes
    registry = LayerRegistry(engine, store, *limits, min(*limits, upload_bytes(settings)))
    return Backend(engine, admission, parts.scheduler_of(settings, engine), store, registry)


def _announce(address: str, shared_memory: SharedMemory | None, exposed: str) -> None:
    if shared_memory is not None and (path := unix_path(address)):
        shared_memory.listen_beside(path)
    say(f"listening on {address}")
    if exposed:
        log.warning("%s is open to the network: %s", address, exposed)


def _log_settings(settings: Settings) -> None:
    shown = settings.shown()
    as_fields = settings.log_format == "json"
    words = ", ".join(f"{name}={value}" for name, value in shown.items())
    memory, fits = described(settings)
    log.info("settings" if as_fields else f"settings: {words}", extra={"settings": shown})
    if memory and fits:
        log.debug("memory: %s", memory)
    elif memory:
        log.warning("memory: %s; lower --handler-threads and --max-waiting-calls", memory)


def _assembled(
    settings: Settings,
    backend: Backend,
    health: Health,
    shared_memory: SharedMemory | None,
    observability: Observability,
    tokens: Tokens,
    certificate: Certificate | None,
    descriptors: Descriptors,
    connections: Connections,
) -> grpc.Server:
    idle = IdleTimeouts(settings.idle_s)
    # One for each call, of which streams, calls without a message and calls that wait or are computed leave
    # --handler-threads to the others and the health; and one that reads each stream, and one for each item that is
    # admitted.
    threads = call_threads(settings)
    call_pool = ThreadPool(sum(threads), "call", min_threads=_MIN_THREADS, refuses_in_thread=True)
    stream_pool = ThreadPool(sum(threads) - threads.receiving, "stream", min_threads=_MIN_THREADS)
    authenticator = Authenticator(tokens, by_certificate=certificate is not None and certificate.is_mutual)
    max_fields = MAX_DIGESTS + FIELDS_OF_A_LAYER * settings.max_layers_per_call
    bounds = {
        f"/{service.full_name}/{method.name}": MessageBound(max_fields, method.input_type)
        for service in _DESCRIPTORS
        for method in service.methods
    }
    interceptor = CallInterceptor(
        observability.recorder,
        authenticator,
        StreamSlots(threads.streams),
        ReceivingSlots(threads.receiving),
        idle,
        bounds,
        connections,
    )
    server = grpc.server(
        call_pool,  # type: ignore[arg-type] # gRPC does no more than submit to it
        interceptors=[interceptor],
        options=server_options(settings, descriptors.connections),
    )
    convolutions = ConvolutionService(backend, shared_memory, stream_pool, idle, settings.max_items_per_stream)
    convolution_service.add_to_server(convolutions, server)
    layer_service_pb2_grpc.add_LayerServiceServicer_to_server(LayerService(backend.registry), server)  # type: ignore[no-untyped-call]
    if settings.open_inference:
        memory = None
        if settings.shared_memory:
            memory = SystemMemory(settings.shared_memory_bytes, descriptors.memory_files)
        inference_service.add_to_server(InferenceService(backend, health, stream_pool, idle, memory), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    listed = [*_service_names(settings), SERVICE_NAME]
    if settings.channelz:
        add_channelz(server)
        listed.append("grpc.channelz.v1.Channelz")
    if settings.reflection:
        details = error_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR  # of errors, beside their status
        reflection.add_to_server(listed, wire.pool_of([*_FILES, *details]), server)
    return server


def _service_names(settings: Settings) -> list[str]:
    names = [convolution_service.SERVICE_NAME, layer_service.SERVICE_NAME]
    return [*names, wire.SERVICE_NAME] if settings.open_inference else names


def _descriptors(settings: Settings) -> Descriptors:
    """Returns how many descriptors callers may take."""
    memory_connections = MAX_CONNECTIONS if settings.shared_memory else 0
    memory_files = MAX_REGIONS if settings.shared_memory and settings.open_inference else 0
    return descriptors_for(Descriptors(with_spare(settings.max_connections), memory_connections, memory_files))


def _store(settings: Settings) -> LayerStore:
    try:
        return LayerStore(settings.layer_memory_bytes, opened(settings))
    except ConvserveError as error:  # a bucket that went away meanwhile
        raise SettingsError(f"--store: {error}") from error


def _sweep(store: LayerStore) -> None:
    """Removes what is kept of layers that were deleted, once an hour."""
    while True:
        try:
            store.sweep()
        except ConvserveError as error:
            log.debug("what was deleted is removed later: %s", error)
        time.sleep(_SWEEP_S)
