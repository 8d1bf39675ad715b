"""The composition root: puts the parts together, starts, warms up, serves, drains, stops."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from convserve import __version__
from convserve._channel import LARGE_FRAMES
from convserve.v1 import layer_service_pb2_grpc
from convserve_server import convolution_service, layer_service
from convserve_server.convolution_service import ConvolutionService
from convserve_server.convolver import Batching, Convolver, Limits
from convserve_server.divided_engine import DividedEngine
from convserve_server.engine.startup import held_stderr, load_engine
from convserve_server.interceptors import CallInterceptor
from convserve_server.layer_keeper import LayerKeeper
from convserve_server.layer_service import LayerService
from convserve_server.settings import Settings, SettingsError, is_loopback
from convserve_server.shared_memory import SharedMemory
from convserve_server.store import LayerStore
from convserve_server.warm_up import WarmUp, check_devices, warm_up

log = logging.getLogger("convserve")
T = TypeVar("T")

SERVICES = (convolution_service.SERVICE_NAME, layer_service.SERVICE_NAME)


class _Health(health.HealthServicer):  # type: ignore[misc, unused-ignore]
    """grpc.health.v1, whose watches can be ended: one that is open would hold up the server's stop."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[Any] = set()

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        """Answers with every change of the health."""
        self._watches.add(send_response_callback)
        context.add_callback(lambda: self._watches.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def end_watches(self) -> None:
        """Ends the watches that are open."""
        for answer in tuple(self._watches):
            answer(None)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT. Returns the process' exit status.

    Raises:
        SettingsError: If an address cannot be listened on, there is no such device, or a layer cannot be warmed up.
    """
    _log_to_stderr(settings.log_level)
    stop = _asked_to_stop()
    warm_ups = [WarmUp.parse(each) for each in settings.warm_up]
    store = _store(settings)
    server, convolutions, layers, healths = _assembled(settings)
    addresses = [_listen(server, address) for address in settings.listen]
    server.start()
    if settings.shared_memory:
        convolutions.shared_memory = _shared_memory(settings, addresses)
    for address in addresses:
        _say(f"listening on {address}")
        if not is_loopback(address):
            log.warning("%s is open to the network: calls to it are neither encrypted nor authenticated", address)
    started = time.monotonic()
    verbose = settings.log_level == "debug"
    with nullcontext() if verbose else held_stderr():
        # It takes seconds, during which the health check already answers NOT_SERVING.
        engine = load_engine(
            settings.device,
            settings.tf32,
            intra_op_threads=settings.intra_op_threads,
            inter_op_threads=settings.inter_op_threads,
            keep_memory=settings.keep_memory,
            verbose=verbose,
        )
        check_devices(engine)
    keeper = LayerKeeper(engine, store, settings.max_call_bytes)
    convolver = Convolver(DividedEngine(engine), _named(Limits, settings), _named(Batching, settings))
    for each in warm_ups:
        warm_up(each, convolver, keeper)
    convolutions.open(convolver, keeper)
    layers.open(keeper)
    for name in ("", *SERVICES):
        healths.set(name, health_pb2.HealthCheckResponse.SERVING)
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    devices = ", ".join(f"{each.name} {each.description}".strip() for each in engine.devices)
    tf32 = "on" if engine.tf32 else "off"
    _say(f"ready after {time.monotonic() - started:.1f} s: convserve {__version__}, {versions}, {devices}, TF32 {tf32}")
    stop.wait()
    return _drain(settings, server, healths, convolutions.shared_memory)


def _named(kind: type[T], settings: Settings) -> T:
    """Returns a dataclass whose fields are settings of the same names."""
    return kind(**{name: getattr(settings, name) for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]


def _assembled(settings: Settings) -> tuple[grpc.Server, ConvolutionService, LayerService, _Health]:
    server = grpc.server(
        ThreadPoolExecutor(settings.handler_threads, thread_name_prefix="handler"),
        interceptors=[CallInterceptor(settings.handler_threads)],
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            *LARGE_FRAMES,
            # Otherwise a second server on the same port would silently get a share of the connections.
            ("grpc.so_reuseport", 0),
        ],
    )
    convolutions, layers = ConvolutionService(settings.handler_threads), LayerService()
    convolution_service.add_to_server(convolutions, server)
    layer_service_pb2_grpc.add_LayerServiceServicer_to_server(layers, server)  # type: ignore[no-untyped-call]
    healths = _Health()
    for name in ("", *SERVICES):
        healths.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    listed = [*SERVICES, health.SERVICE_NAME]
    if settings.channelz:
        channelz.add_channelz_servicer(server)
        listed.append("grpc.channelz.v1.Channelz")
    if settings.reflection:
        reflection.enable_server_reflection([*listed, reflection.SERVICE_NAME], server)
    return server, convolutions, layers, healths


def _store(settings: Settings) -> LayerStore:
    folder = Path(settings.store) if settings.store else None
    try:
        return LayerStore(settings.layer_memory_bytes, settings.store_bytes, folder)
    except OSError as error:
        expected = "Expected a folder that can be written to and that no other server uses"
        text = f"--store: {expected}. Received {settings.store}: {error.strerror}."
        raise SettingsError(text) from error


def _shared_memory(settings: Settings, addresses: Sequence[str]) -> SharedMemory:
    shared = SharedMemory(settings.shared_memory_bytes)
    for address in addresses:
        if address.startswith("unix:"):
            shared.listen_beside(address.removeprefix("unix:").removeprefix("//"))
    return shared


def _listen(server: grpc.Server, address: str) -> str:
    port = 0
    if not _is_taken_socket(address):
        with held_stderr(), suppress(RuntimeError):  # gRPC would say there what is said below
            port = server.add_insecure_port(address)
    if not port:
        raise SettingsError(f"--listen: Expected an address that is free and may be used. Received {address}.")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _is_taken_socket(address: str) -> bool:
    """Returns whether somebody listens on a Unix socket, which gRPC would take away from them."""
    if not address.startswith("unix:"):
        return False
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(address.removeprefix("unix:").removeprefix("//"))
        return True
    return False


def _drain(settings: Settings, server: grpc.Server, healths: _Health, shared_memory: SharedMemory | None) -> int:
    """Stops in the order that loses no call: first the health check, then new calls, then the process."""
    healths.enter_graceful_shutdown()
    if settings.pre_stop_s:
        _say(f"stopping: serving for {settings.pre_stop_s} s more")
        time.sleep(settings.pre_stop_s)
    _say("stopping: finishing the calls under way")
    began = time.monotonic()
    drained = server.stop(settings.drain_s)
    healths.end_watches()
    drained.wait()
    if shared_memory is not None:
        shared_memory.close()
    _say("stopped")
    if time.monotonic() - began >= settings.drain_s:
        os._exit(0)  # what is still computed has lost its caller, and an ordinary exit would wait for it
    return 0


def _asked_to_stop() -> threading.Event:
    """Returns an event that SIGTERM or SIGINT will set. A second signal ends the process at once.

    A thread waits for them, because the system may hand a signal to any thread, but Python runs handlers in the main
    one only, which would not notice while it waits for a lock.
    """
    stop = threading.Event()
    signals, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        os.read(signals, 1)
        stop.set()
        # An ordinary exit would wait for the calls under way.
        os._exit(128 + os.read(signals, 1)[0])

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(level.upper())
    log.propagate = False


def _say(text: str) -> None:
    """Prints a line of progress at once, for people and for programs that wait for it."""
    print(text, flush=True)
