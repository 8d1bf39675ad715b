"""The two ways to put load on something: callers who wait for their answers, and a rate that waits for nobody."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MAX_FAILURES_IN_A_ROW = 3
_MAX_WAITING = 64
_LEAD_S = 0.02  # in which the threads of an open loop start before the first call is due
_GRACE_S = 0.25  # after which what an open loop has not begun by its end is left


@dataclass
class Block:
    """What a stretch of calls came to.

    Attributes:
        seconds: How long it took, until the last answer.
        latencies: Seconds, one per answer; of an open loop from the moment at which the call was due. What an open loop
            could not begin is in it with the time that it had waited by the end.
        notes: What `look` said of each answer.
        failures: Calls that failed, by the name of the exception.
        failure: The text of the first.
        last: Each caller's last answer, by the caller's number.
        not_begun: How many calls an open loop could not begin.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    failure: str = ""
    last: dict[int, Any] = field(default_factory=dict)
    not_begun: int = 0

    @property
    def answers(self) -> int:
        """How many calls were answered."""
        return len(self.latencies) - self.not_begun


@dataclass(frozen=True)
class Subject:
    """Something that can be called.

    Attributes:
        call: Makes a call for the caller of a number, from 0; it may raise.
        look: Says what is worth keeping of an answer. It is not timed.
    """

    call: Callable[[int], Any]
    look: Callable[[Any], Any] = lambda _: None


def closed_loop(subject: Subject, callers: int, seconds: float) -> Block:
    """Lets callers, each a thread, call again as soon as they are answered.

    Every caller makes at least one call, and none after the time is over.

    Raises:
        KeyboardInterrupt: After the callers were asked to stop.
    """
    block, begin = Block(), time.perf_counter()
    end = begin + seconds

    def work(caller: int, stop: threading.Event) -> None:
        failed = 0
        while failed < _MAX_FAILURES_IN_A_ROW:
            start = time.perf_counter()
            try:
                answer = subject.call(caller)
            except Exception as error:
                _count(block, error)
                failed += 1
                continue
            now = time.perf_counter()
            failed = 0
            block.latencies.append(now - start)
            block.notes.append(subject.look(answer))
            if now >= end or stop.is_set():
                block.last[caller] = answer
                return
            del answer  # so that the next one may take its memory, as in a program that is done with it

    _in_threads(work, callers)
    block.seconds = time.perf_counter() - begin
    return block


def open_loop(subject: Subject, rate: float, seconds: float) -> Block:
    """Makes calls at a steady rate, whether or not those before are answered.

    A latency counts from the moment at which the call was due. So the time that a call waits here because others are
    slow is part of it, as it is for users who arrive on their own ("no coordinated omission").

    Args:
        subject: What to call.
        rate: Calls per second.
        seconds: How long calls are due. What is not begun soon after, because too many wait for answers, is left.

    Raises:
        KeyboardInterrupt: After the callers were asked to stop.
    """
    block, number, numbers = Block(), max(1, round(rate * seconds)), itertools.count()
    begin = time.perf_counter() + _LEAD_S
    end = begin + seconds + _GRACE_S
    begun = [0] * _MAX_WAITING

    def work(caller: int, stop: threading.Event) -> None:
        while (index := next(numbers)) < number:
            due = begin + index / rate
            stop.wait(max(0.0, due - time.perf_counter()))
            if stop.is_set() or time.perf_counter() > end:
                return
            begun[caller] += 1
            try:
                answer = subject.call(caller)
            except Exception as error:
                _count(block, error)
                continue
            block.latencies.append(time.perf_counter() - due)
            block.notes.append(subject.look(answer))
            block.last[caller] = answer
            del answer

    _in_threads(work, min(_MAX_WAITING, number))
    now = time.perf_counter()
    block.seconds = now - begin
    block.not_begun = number - sum(begun)
    block.latencies += (now - begin - index / rate for index in range(number - block.not_begun, number))
    return block


def _count(block: Block, error: Exception) -> None:
    block.failures[type(error).__name__] += 1
    block.failure = block.failure or str(error)


def _in_threads(work: Callable[[int, threading.Event], None], callers: int) -> None:
    stop = threading.Event()
    # Daemons, so that Ctrl-C does not wait for a call that takes its time.
    threads = [threading.Thread(target=work, args=(caller, stop), daemon=True) for caller in range(callers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
