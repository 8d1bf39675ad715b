"""A stream of inferences: requests overlap, answers keep their order, and nothing outlasts its caller."""

import threading

import pytest

from convserve import InvalidRequestError
from convserve.errors import FieldViolation
from convserve_server.open_inference.infer_stream import infer_answers
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import InferRequest
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.in_flight_items import InFlightItems
from tests.support.waiting import eventually

WAIT_S = 60
SILENCE = IdleTimeouts(WAIT_S)


@pytest.fixture
def pool():
    return ThreadPool(8, "inference")


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
    return [InferRequest(messages.ModelInferRequest(id=str(number)), ()) for number in range(count)]


def stream(pool, infer, given, caller=None):
    """Returns the answers of a stream whose response to a request is what `infer` makes of its id."""
    items = InFlightItems(iter(given), caller or Caller(), SILENCE, lambda: None)
    return infer_answers(lambda request, who: infer(request.message.id, who), items, pool)


def threads():
    return [each for each in threading.enumerate() if each.name == "stream"]


def test_answers_keep_the_order_of_the_requests(pool):
    last = threading.Event()

    def infer(number, _):
        if number == "0":
            assert last.wait(WAIT_S)
        if number == "3":
            last.set()
        return number

    found = [(name, response.result()) for name, response in stream(pool, infer, requests(6))]
    assert found == [(each, each) for each in "012345"]


def test_requests_are_computed_while_others_are_four_at_most(pool):
    together, count, most, lock = threading.Barrier(4, timeout=WAIT_S), 0, 0, threading.Lock()

    def infer(number, _):
        nonlocal count, most
        with lock:
            count += 1
            most = max(most, count)
        together.wait()
        with lock:
            count -= 1
        return number

    answers = stream(pool, infer, requests(12))
    assert [response.result() for _, response in answers] == [str(number) for number in range(12)]
    assert most == 4


def test_a_failure_is_the_answer_of_its_request_alone(pool):
    def infer(number, _):
        if number == "1":
            raise ValueError(number)
        return number

    responses = [response for _, response in stream(pool, infer, requests(3))]
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
    eventually(lambda: not threads())


def test_a_caller_that_leaves_is_not_waited_for(pool):
    leaver, gone, inside = Leaver(), threading.Event(), threading.Semaphore(0)

    def infer(number, caller):
        assert caller.add_done_callback(gone.set)
        assert caller.is_active()
        inside.release()
        assert gone.wait(WAIT_S)
        assert not caller.is_active()
        return number

    answers = stream(pool, infer, requests(9), leaver.caller())
    _, first = next(answers)
    for _ in range(4):
        assert inside.acquire(timeout=WAIT_S)
    leaver.leave()
    assert first.result(WAIT_S) == "0"
    answers.close()
    eventually(lambda: not threads())


def test_an_answer_that_was_fetched_is_not_waited_for_any_more(pool):
    left = []

    def infer(number, caller):
        assert caller.add_done_callback(lambda: left.append(number))
        return number

    answers = stream(pool, infer, requests(2))
    assert next(answers)[1].result() == "0"
    next(answers)[1].result()
    assert left[:1] == ["0"]
    assert list(answers) == []
    assert left == ["0", "1"]
