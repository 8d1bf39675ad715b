"""Stops the server in the order that loses no call."""

from __future__ import annotations

import os
import signal
import threading
import time

import grpc

from convserve_server.health import Health
from convserve_server.observability.logs import say
from convserve_server.observability.setup import Observability
from convserve_server.services.shared_memory import SharedMemory
from convserve_server.settings import Settings

# After SIGTERM calls are taken until none has come for the first of these seconds, or for the second.
_SETTLED_S, _MAX_SETTLING_S = 0.25, 3.0
_MAX_CLOSING_S = 10.0  # for the log and the spans that are left, whose readers may have stalled


def drain(
    settings: Settings,
    server: grpc.Server,
    healths: Health,
    shared_memory: SharedMemory | None,
    observability: Observability,
) -> int:
    """Stops in the order that loses no call: first the health check, then new calls, then the process."""
    healths.enter_graceful_shutdown()
    if settings.pre_stop_s:
        say(f"stopping: serving for {settings.pre_stop_s} s more")
        time.sleep(settings.pre_stop_s)
    say("stopping: finishing the calls under way")
    began = time.monotonic()
    # gRPC cancels the calls that have come and were given to nobody yet, of which a busy server has many.
    while time.monotonic() < min(observability.recorder.last_arrival + _SETTLED_S, began + _MAX_SETTLING_S):
        time.sleep(_SETTLED_S / 10)
    drained = server.stop(settings.drain_s)
    healths.end_watches()
    drained.wait()
    if shared_memory is not None:
        shared_memory.close()
    closing = threading.Thread(target=observability.close, name="closing", daemon=True)
    closing.start()
    closing.join(_MAX_CLOSING_S)
    say("stopped")
    if closing.is_alive() or time.monotonic() - began >= settings.drain_s:
        os._exit(0)  # what is still computed has lost its caller, and an ordinary exit would wait for it
    return 0


def asked_to_stop() -> threading.Event:
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
