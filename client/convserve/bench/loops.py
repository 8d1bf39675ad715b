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
    """What a stretch of calls came to."""

    seconds: float = 0.0  # until the last answer
    # Seconds, one per answer; of an open loop from the moment at which the call was due. What an open loop could not
    # begin is in it with the time that it had waited by the end.
    latencies: list[float] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)  # what `look` said of each answer
    failures: Counter[str] = field(default_factory=Counter)  # by the name of the exception
    failure: str = ""  # the text of the first
    last: dict[int, Any] = field(default_factory=dict)  # each caller's last answer, by the caller's number
    not_begun: int = 0  # how many calls an open loop could not begin

    @property
    def answers(self) -> int:
        """How many calls were answered."""
        return len(self.latencies) - self.not_begun

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


@dataclass(frozen=True)
class Subject:
    """Something that can be called."""

    call: Callable[[int], Any]  # for the caller of a number, from 0; it may raise
    look: Callable[[Any], Any] = lambda _: None  # says what is worth keeping of an answer; it is not timed


def closed_loop(subject: Subject, callers: int, seconds: float) -> Block:
    """Lets callers, each a thread, call again as soon as they are answered; Ctrl-C asks them to stop.

    Every caller makes at least one call, and none after the time is over.
    """
    block, begin = Block(), time.perf_counter()
    end = begin + seconds

    def work(caller: int, stop: threading.Event) -> None:
        failed = 0
        while failed < _MAX_FAILURES_IN_A_ROW:
            if not _call(block, subject, caller, time.perf_counter()):
                failed += 1
            elif time.perf_counter() >= end or stop.is_set():
                return
            else:
                failed = 0

    _in_threads(work, callers)
    block.seconds = time.perf_counter() - begin
    return block


def open_loop(subject: Subject, rate: float, seconds: float) -> Block:
    """Makes so many calls a second, whether or not those before are answered; Ctrl-C asks the callers to stop.

    A latency counts from the moment at which the call was due. So the time that a call waits here because others are
    slow is part of it, as it is for users who arrive on their own ("no coordinated omission"). What is not begun soon
    after the time is over, because too many wait for answers, is left.
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
            _call(block, subject, caller, due)

    _in_threads(work, min(_MAX_WAITING, number))
    now = time.perf_counter()
    block.seconds = now - begin
    block.not_begun = number - sum(begun)
    block.latencies += (now - begin - index / rate for index in range(number - block.not_begun, number))
    return block


def _call(block: Block, subject: Subject, caller: int, due: float) -> bool:
    block.last.pop(caller, None)  # so that the next one may take its memory, as in a program that is done with it
    try:
        answer = subject.call(caller)
    except Exception as error:
        block.failures[type(error).__name__] += 1
        block.failure = block.failure or str(error)
        return False
    block.latencies.append(time.perf_counter() - due)
    block.notes.append(subject.look(answer))
    block.last[caller] = answer
    return True


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
