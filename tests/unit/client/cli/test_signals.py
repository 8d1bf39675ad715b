"""Ctrl-C and SIGTERM of a command that runs long, whatever its threads are waiting for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from convserve.cli.signals import graceful_stop

# A program whose main thread waits for a lock that nobody gives back, as one that an exception kept; and so does what
# it does at the first signal, as where that prints to a terminal that hangs.
STUCK = """
import sys, threading
from convserve.cli.signals import graceful_stop
lock = threading.Lock()
lock.acquire()

def stop():
    print("stopping", flush=True)
    lock.acquire()

def last_words(number):
    print("last words", number, flush=True)
    {last_words}

with graceful_stop(stop, last_words):
    print("begun", flush=True)
    lock.acquire()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("last_words", ["pass", "lock.acquire()", "raise OSError"])
def test_a_second_signal_ends_a_process_whose_threads_are_stuck(
    number: signal.Signals, status: int, last_words: str
) -> None:
    command = [sys.executable, "-c", STUCK.format(last_words=last_words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"last words {int(number)}\n"
        if last_words == "lock.acquire()":
            process.send_signal(signal.SIGINT)  # who has no patience for those either
        assert process.wait(60) == status


def test_the_first_signal_asks_for_a_stop_and_raises_nothing() -> None:
    stops: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def stop() -> None:
        time.sleep(0.2)  # still at work when the block is left
        stops.append(1)

    with graceful_stop(stop, pytest.fail) as received:
        signal.raise_signal(signal.SIGTERM)
    assert stops == [1]
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handlers_are_put_back_after_an_error() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)  # the first is ignored by what a shell starts in the background
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyError), graceful_stop(lambda: None, pytest.fail):
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_stop(pytest.fail, pytest.fail) as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)
