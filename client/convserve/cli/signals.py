"""What asks a command that runs long to stop: Ctrl-C, SIGTERM, a closed terminal. A second one ends the process.

Python makes one of two signals of a kind that come before it has called a handler: a second Ctrl-C can be lost. And it
raises KeyboardInterrupt in the main thread between any two instructions: where a lock has just been taken, which then
stays taken, or in a callback, where it is printed and dropped. So nothing is raised here. The system writes each
signal's number into a socket, a thread reads it and does nothing else that may wait, and so no lock of another thread,
and no terminal that hangs, can keep the second signal from ending the process.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convserve._stop_signals import stop_signals

_END = 0
_MAX_LAST_WORDS_S = 10.0  # a disk or a pipe that takes no more must not keep the process


@contextmanager
def graceful_stop(stop: Callable[[], None], last_words: Callable[[int], None]) -> Iterator[list[int]]:
    """Handles such signals while the block runs, and yields those that came. Only the main thread may enter it.

    At the first one `stop` is called, in a thread that the block's end waits for, 10 seconds at most; at the second one
    `last_words` with the first. The process ends when that returns, after 10 seconds, or at a third signal, with status
    128 + the first one.
    """
    numbers = stop_signals()
    received: list[int] = []
    is_asked = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def ask() -> None:
        is_asked.wait()
        if received:
            stop()

    def end() -> None:
        try:
            last_words(received[0])
        finally:
            os._exit(128 + received[0])

    def watch() -> None:
        while (number := reader.recv(1)[0]) != _END:
            if number not in numbers:
                continue
            received.append(number)
            if len(received) == 1:
                is_asked.set()
            elif len(received) == 2:
                threading.Thread(target=end, daemon=True).start()
                timer = threading.Timer(_MAX_LAST_WORDS_S, os._exit, [128 + received[0]])
                timer.daemon = True
                timer.start()
            else:
                os._exit(128 + received[0])

    asker = threading.Thread(target=ask, name="convserve-stop", daemon=True)
    asker.start()
    watcher = threading.Thread(target=watch, name="convserve-signals", daemon=True)
    watcher.start()
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers_before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        writer.setblocking(True)
        writer.send(bytes([_END]))
        watcher.join()
        is_asked.set()
        asker.join(_MAX_LAST_WORDS_S)  # what it says of a signal at the very end comes before what follows the block
        reader.close()
        writer.close()
