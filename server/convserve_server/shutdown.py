"""Stops the server in the order that loses no call."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress

import grpc

from convserve._stop_signals import stop_signals
from convserve_server.health import Health
from convserve_server.observability.logs import log, say
from convserve_server.observability.setup import Observability
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.services.shared_memory import SharedMemory
from convserve_server.settings import Settings
from convserve_server.transport.grpc_private import servers

_LEAVING_S = 0.2  # for callers that watch the health to go to other servers
_MAX_TAKING_S = 3.0  # for the calls that gRPC's core holds: under an overload there may be some at any time
_MAX_CLOSING_S = 10.0  # for the log and the spans that are left, whose readers may have stalled


class StopSignals:
    """SIGTERM, SIGINT, SIGHUP. While the server starts, the first one ends the process; later it is the second one.

    A thread waits for them, because the system may hand a signal to any thread, but Python runs handlers in the main
    one only, which would not notice while it loads TensorFlow or waits for a lock.
    """

    def __init__(self) -> None:
        self._asked, self._lock, self._is_serving = threading.Event(), threading.Lock(), False
        self.spare_thread = ThreadPool(1, "closing")
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in stop_signals():
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()

    def serving(self) -> None:
        """Says that calls may be taken from now on, so that the first signal no longer ends the process."""
        with self._lock:
            self._is_serving = True

    def wait(self) -> None:
        """Returns at the first signal."""
        self._asked.wait()

    def _watch(self, reader: int) -> None:
        os.read(reader, 1)
        self.spare_thread.submit(self._ask)  # where stdout takes no more, this waits
        # An ordinary exit would wait for the calls in flight.
        os._exit(128 + os.read(reader, 1)[0])

    def _ask(self) -> None:
        with self._lock:
            self._asked.set()
            if not self._is_serving:  # no call was taken, so none is lost
                say("stopped")
                os._exit(0)


def drain(
    settings: Settings,
    server: grpc.Server,
    health: Health,
    memory: SharedMemory | None,
    observability: Observability,
    stop: StopSignals,
) -> int:
    """Stops: first the health check, then new calls, then the process. Returns its exit status."""
    health.set_serving(False)
    if settings.pre_stop_s:
        say(f"stopping: serving for {settings.pre_stop_s:g} s more")
    time.sleep(max(settings.pre_stop_s, _LEAVING_S if health.is_watched else 0))
    say("stopping: finishing the calls in flight")
    wait_until_taken(lambda: observability.recorder.arrivals)
    _stop(server, settings.drain_s + _MAX_CLOSING_S)
    health.end_watches()
    is_drained = not server.wait_for_termination(settings.drain_s)
    if not is_drained:
        log.warning("--drain-s ran out: %d calls in flight were cut off", calls_in_flight())
        _stop(server, 0)
        server.wait_for_termination(_MAX_CLOSING_S)
    if memory is not None:
        memory.close()
    closing = stop.spare_thread.submit(observability.close)
    is_closed = not futures.wait([closing], _MAX_CLOSING_S).not_done
    say("stopped")
    if not (is_closed and is_drained):
        os._exit(0)  # what is still computed has lost its caller, and an ordinary exit would wait for it
    return 0


def _stop(server: grpc.Server, grace_s: float) -> None:
    """Takes no more calls, and cuts those off that are left after a grace period, if the system starts a thread."""
    with suppress(RuntimeError):
        server.stop(grace_s)


def wait_until_taken(arrivals: Callable[[], int]) -> None:
    """Waits until every call that gRPC's core has received is taken by the server's code, and so will be answered.

    The core gives calls to Python one at a time, and holds the others. `grpc.Server.stop` ends those that it holds with
    CANCELLED: of 300 calls that had just come to a bare server it cancelled 226. channelz tells how many came, and
    `arrivals` how many the first interceptor has seen.
    """
    until = time.monotonic() + _MAX_TAKING_S
    while sum(server.data.calls_started for server in servers()) > arrivals() and time.monotonic() < until:
        time.sleep(0.005)


def calls_in_flight() -> int:
    """Returns how many calls have come and not ended."""
    return sum(s.data.calls_started - s.data.calls_succeeded - s.data.calls_failed for s in servers())
