"""How streams end: whoever leaves frees what it held at once, and nothing of a stream outlives it."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import Conv2D, OutOfMemoryError
from convserve.tensors.codec import dtype_number
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.observability.call_record import CallRecord
from convserve_server.scheduling.admission_queue import AdmissionQueue, Permit
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.scheduler import Result
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.scheduling.transfers import Transfers
from convserve_server.services.convolve_stream import ConvolveStream, StreamItems
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems
from tests.support.observability.observers import PASS
from tests.support.waiting import eventually

CONFIG = Conv2D(1, 1, data_format="channels_last", dtype="float32", use_bias=False)
SHAPE = (1, 30, 30, 1)
PLAN = CONFIG.plan(SHAPE)
SIZE = PLAN.memory_bytes - PLAN.weight_bytes
ITEMS = 4
IDLE = IdleTimeouts(60)


def root(array: Any) -> Any:
    while array.base is not None:
        array = array.base
    return array


class Served:
    """A scheduler, as far as a stream asks, and weak references to all tensors that it saw."""

    def __init__(self, room: AdmissionQueue, fate: str) -> None:
        self.room, self.fate = room, fate
        self.transfers = Transfers(large_bytes=0)
        self.tensors: list[weakref.ref[Any]] = []

    def admit(
        self, _layers: Any, shape: Any, _dtype: str, _output_dtype: Any, caller: Caller, claim: Callable[[int], None]
    ) -> Permit:
        claim(SIZE)
        if self.fate == "refused":
            raise OutOfMemoryError("no")
        return self.room.enter(caller, CONFIG.plan(shape))

    def convolve(self, permit: Permit, _layers: Any, x: Any, *_: Any, unbatched: bool) -> Any:  # noqa: ARG002
        with permit:
            self.tensors.append(weakref.ref(root(x)))
            if self.fate == "fails":
                raise OutOfMemoryError("too large")
            output = np.ones(x.shape, "f4")
            self.tensors.append(weakref.ref(output))
            return Result(output, (), (), PASS)


class Leaving:
    """A caller of a stream, which the test lets leave."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.calls: list[Callable[[], None]] = []
        self.caller = Caller("a", True, lambda: not self.gone.is_set(), lambda: math.inf, self._when_gone)

    def _when_gone(self, call: Callable[[], None]) -> bool:
        self.calls.append(call)
        return True

    def leave(self) -> None:
        self.gone.set()
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def opening(number: int) -> messages.ConvolveStreamRequest:
    dtype = dtype_number("float32")
    return messages.ConvolveStreamRequest(item=messages.StreamItem(item_id=number, dtype=dtype, shape=SHAPE))


def stream_of(
    served: Served, requests: Iterator[Any], leaving: Leaving, start: messages.StreamStart | None = None
) -> ConvolveStream:
    start = start or messages.StreamStart()
    in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
    items: StreamItems = InFlightItems(
        requests, leaving.caller, ThreadPool(ITEMS + 1, "stream"), IDLE, leaving.leave, in_order=in_order
    )
    backend = SimpleNamespace(admission=served, scheduler=served)
    return ConvolveStream(backend, (), start, items, CallRecord("m", "m"), 1000)  # type: ignore[arg-type]


def streamed(served: Served, order: int, leaves_after: int | None) -> weakref.ref[Any]:
    """Lets a stream run until it ends, or its caller leaves after so many answers; returns a reference to it."""
    leaving = Leaving()

    def requests() -> Iterator[Any]:
        for number in range(ITEMS):
            yield opening(number)
            if served.fate != "refused":
                yield memoryview(bytes(4 * 900))
        if leaves_after is not None:
            leaving.gone.wait(30)
            raise grpc.RpcError

    start = messages.StreamStart(order=order, piece_bytes=2**14)  # type: ignore[arg-type]
    stream = stream_of(served, requests(), leaving, start)
    answers = stream.answers()
    for number, _ in enumerate(answers, 1):
        if number == leaves_after:
            leaving.leave()
            break
    answers.close()  # type: ignore[attr-defined]
    leaving.leave()
    return weakref.ref(stream)


@pytest.mark.parametrize("order", [0, messages.RESULT_ORDER_AS_COMPLETED])
@pytest.mark.parametrize(
    ("fate", "leaves_after"), [("computed", None), ("fails", None), ("refused", None), ("computed", 2), ("fails", 1)]
)
def test_nothing_of_a_stream_outlives_it(order: int, fate: str, leaves_after: int | None) -> None:
    served = Served(AdmissionQueue(2**20, 100, (1, 1), 2**20), fate)
    gc.collect()
    gc.disable()  # what only the collector would find stays for as long as a server is idle
    try:
        stream = streamed(served, order, leaves_after)
        eventually(lambda: stream() is None and not any(each() is not None for each in served.tensors))
    finally:
        gc.enable()
    eventually(lambda: (served.room.load().admitted_bytes, served.room.load().waiting_calls) == (0, 0))
    assert not served.transfers.going


def test_a_caller_that_leaves_while_its_item_waits_for_bytes_frees_its_place_at_once() -> None:
    served = Served(AdmissionQueue(SIZE, 100, (1, 1), 2**20), "computed")
    other = served.room.enter(Caller("other"), PLAN)
    leaving = Leaving()

    def requests() -> Iterator[Any]:
        yield opening(1)
        leaving.gone.wait(30)
        raise grpc.RpcError

    stream = stream_of(served, requests(), leaving)
    served_by = ThreadPool(1, "call").submit(lambda: list(stream.answers()))
    eventually(lambda: served.room.load().waiting_calls == 2)
    leaving.leave()
    eventually(lambda: served.room.load().waiting_calls == 1)
    with pytest.raises(grpc.RpcError):
        list(served_by.result(30))
    other.release()
    eventually(lambda: served.room.load().admitted_bytes == 0)


def test_a_caller_that_leaves_as_the_last_answer_goes_out_keeps_no_thread() -> None:
    served = Served(AdmissionQueue(2**20, 100, (1, 1), 2**20), "computed")
    leaving = Leaving()

    def requests() -> Iterator[Any]:
        yield opening(1)
        yield memoryview(bytes(4 * 900))
        eventually(lambda: not stream.items._in_flight and bool(served.tensors))
        leaving.leave()  # before the reader comes to the end of what was sent

    stream = stream_of(served, requests(), leaving)
    answers = ThreadPool(1, "call").submit(lambda: list(stream.answers()))
    assert len(answers.result(30)) == 2


@pytest.mark.parametrize("slow_at", ["sending", "fetching"])
def test_a_caller_that_is_slow_at_an_item_is_sent_away_where_others_wait_for_its_bytes(slow_at: str) -> None:
    now = [0.0]
    served = Served(AdmissionQueue(SIZE, 100, (1, 1), 2**20, lambda: now[0]), "computed")
    leaving = Leaving()

    def requests() -> Iterator[Any]:
        yield opening(1)
        while slow_at == "sending" and not leaving.gone.wait(0.01):
            yield memoryview(b"")  # which adds nothing
        if slow_at == "fetching":
            yield memoryview(bytes(4 * 900))
            leaving.gone.wait(30)
        raise grpc.RpcError

    answers = stream_of(served, requests(), leaving).answers()
    begun = ThreadPool(1, "call").submit(next, answers, None)
    if slow_at == "fetching":
        assert begun.result(30) is not None
    eventually(lambda: bool(served.room.slow._waits))
    now[0] = 9.0
    waits = ThreadPool(1, "other").submit(served.room.enter, Caller("other"), PLAN)
    eventually(lambda: served.room.load().waiting_calls == (2 if slow_at == "sending" else 1))
    assert not served.room.slow.late_for([served.room._bytes], SIZE, lambda _: True)
    now[0] = 11.0
    assert leaving.gone.wait(30)
    if slow_at == "sending":
        with pytest.raises(grpc.RpcError):
            begun.result(30)
    answers.close()  # type: ignore[attr-defined]
    waits.result(30).release()
    assert served.room.load().admitted_bytes == 0
