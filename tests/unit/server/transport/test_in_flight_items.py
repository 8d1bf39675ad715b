"""The items of a stream: they overlap, their answers keep their order, and nothing outlasts their caller."""

import threading
from concurrent.futures import CancelledError

import pytest

from convserve import InvalidRequestError, OverloadedError
from convserve.errors import FieldViolation
from convserve_server.open_inference.inference_service import InferenceService
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.services.convolution_service import ConvolutionService
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import MAX_IN_FLIGHT, InFlightItems
from tests.support.waiting import eventually

WAIT_S = 60
IDLE = IdleTimeouts(WAIT_S)


@pytest.fixture
def pool():
    return ThreadPool(8, "stream")


class Leaver:
    """A caller that can leave."""

    def __init__(self):
        self.calls = []

    def caller(self):
        return Caller(add_done_callback=lambda call: self.calls.append(call) or True)

    def leave(self):
        for call in self.calls:
            call()


def requests(count):
    return [str(number) for number in range(count)]


def stream(pool, compute, given, caller=None, **options):
    """Returns the answers of a stream whose answer to a request is what `compute` makes of it."""
    items = InFlightItems(iter(given), caller or Caller(), pool, IDLE, lambda: None, **options)

    def read():
        while (request := items.next_message()) is not None:
            item = items.begin(request)
            item.submit(compute, request, item.caller())

    return items.results(read)


def is_idle(pool):
    return len(pool._idle) == pool._count


@pytest.mark.parametrize("method", [ConvolutionService.ConvolveStream, InferenceService.ModelStreamInfer])
def test_the_interceptor_leaves_the_waits_of_streams_with_items_to_these(method):
    assert method.reads_items


def test_answers_keep_the_order_of_the_requests(pool):
    last = threading.Event()

    def compute(number, _):
        if number == "0":
            assert last.wait(WAIT_S)
        if number == "3":
            last.set()
        return number

    found = [(name, response.result()) for name, response in stream(pool, compute, requests(6))]
    assert found == [(each, each) for each in "012345"]


def test_requests_are_computed_while_others_are_four_at_most(pool):
    together, count, most, lock = threading.Barrier(4, timeout=WAIT_S), 0, 0, threading.Lock()

    def compute(number, _):
        nonlocal count, most
        with lock:
            count += 1
            most = max(most, count)
        together.wait()
        with lock:
            count -= 1
        return number

    answers = stream(pool, compute, requests(12))
    assert [response.result() for _, response in answers] == [str(number) for number in range(12)]
    assert most == 4


def test_a_failure_is_the_answer_of_its_request_alone(pool):
    def compute(number, _):
        if number == "1":
            raise ValueError(number)
        return number

    responses = [response for _, response in stream(pool, compute, requests(3))]
    assert [responses[0].result(), responses[2].result()] == ["0", "2"]
    with pytest.raises(ValueError, match="1"):
        responses[1].result()


def test_what_is_no_request_ends_the_stream_after_the_answers_before_it(pool):
    def given():
        yield from requests(2)
        raise InvalidRequestError(FieldViolation("request", "no message"))

    answers = stream(pool, lambda number, _: number, given())
    assert [next(answers)[1].result(), next(answers)[1].result()] == ["0", "1"]
    with pytest.raises(InvalidRequestError):
        next(answers)
    eventually(lambda: is_idle(pool))


def test_a_caller_that_leaves_is_not_waited_for(pool):
    leaver, gone, inside = Leaver(), threading.Event(), threading.Semaphore(0)

    def compute(number, caller):
        assert caller.add_done_callback(gone.set)
        assert caller.is_active()
        inside.release()
        assert gone.wait(WAIT_S)
        assert not caller.is_active()
        return number

    answers = stream(pool, compute, requests(9), leaver.caller())
    _, first = next(answers)
    for _ in range(4):
        assert inside.acquire(timeout=WAIT_S)
    leaver.leave()
    assert first.result(WAIT_S) == "0"
    answers.close()
    eventually(lambda: is_idle(pool))


def test_an_answer_that_was_fetched_is_not_waited_for_any_more(pool):
    left = []

    def compute(number, caller):
        assert caller.add_done_callback(lambda: left.append(number))
        return number

    answers = stream(pool, compute, requests(2))
    assert next(answers)[1].result() == "0"
    next(answers)[1].result()
    assert left[:1] == ["0"]
    assert list(answers) == []
    assert left == ["0", "1"]


def test_answers_come_as_they_are_completed_where_order_does_not_matter(pool):
    first, computed = threading.Event(), []

    def compute(number, _):
        if number == "0":
            assert first.wait(WAIT_S)
        return number

    for number, response in stream(pool, compute, requests(3), in_order=False):
        computed.append((number, response.result()))
        if len(computed) == 2:
            first.set()
    assert sorted(computed[:2]) == [("1", "1"), ("2", "2")]
    assert computed[2:] == [("0", "0")]


def test_no_more_is_read_than_there_is_room_for(pool):
    begun, items = [], InFlightItems(iter(()), Caller(), pool, IDLE, lambda: None)

    def read():
        for number in range(9):
            item = items.begin(number)
            begun.append(number)
            item.submit(int, number)

    results = items.results(read)
    next(results)
    eventually(lambda: len(begun) == MAX_IN_FLIGHT)
    next(results)
    eventually(lambda: len(begun) == MAX_IN_FLIGHT + 1)
    results.close()
    eventually(lambda: is_idle(pool))
    with pytest.raises(CancelledError):
        items.begin(9)


def test_a_stream_that_gets_no_thread_is_refused():
    class Exhausted(ThreadPool):
        def submit(self, *_):
            raise OverloadedError("no thread")

    with pytest.raises(OverloadedError, match="no thread"):
        next(stream(Exhausted(1, "none"), int, requests(1)))


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_caller_is_idle_only_while_nothing_is_in_flight(pool, in_flight):
    cancelled, released, waiting = threading.Event(), threading.Event(), threading.Event()

    def messages():
        yield from requests(in_flight)
        waiting.set()
        released.wait(WAIT_S)

    # Where something is in flight, the wait's end is tried here: its beginning could be late on a busy machine.
    idle = IdleTimeouts(WAIT_S if in_flight else 0.05)
    items = InFlightItems(messages(), Caller(), pool, idle, cancelled.set)

    def read():
        while (request := items.next_message()) is not None:
            items.begin(request).submit(released.wait, WAIT_S)

    answers = pool.submit(lambda: [answer.result() for _, answer in items.results(read)])
    assert waiting.wait(WAIT_S)
    if in_flight:
        idle.limit_s = 0
        items._cancel_if_idle()
        assert not cancelled.is_set()
    else:
        assert cancelled.wait(WAIT_S)
    released.set()
    assert len(answers.result(WAIT_S)) == in_flight
