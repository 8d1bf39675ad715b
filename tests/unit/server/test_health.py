"""The health service's watches, and the experimental interface of grpcio and grpcio-health-checking they rest on."""

import inspect
import threading

import pytest
from grpc import _server
from grpc_health.v1 import health, health_pb2

from convserve_server.health import Health
from tests.support.waiting import eventually

REQUEST = health_pb2.HealthCheckRequest()
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_grpc_still_gives_watch_a_callback_and_no_thread():
    assert "send_response_callback" in inspect.signature(health.HealthServicer.Watch).parameters
    assert "experimental_non_blocking" in inspect.signature(health.HealthServicer).parameters
    assert "experimental_non_blocking" in inspect.getsource(_server)
    Health([])
    assert Health.Watch is not health.HealthServicer.Watch
    assert Health.Watch.experimental_non_blocking is True


class Context:
    """A call."""

    def __init__(self):
        self.callbacks = []

    def add_callback(self, callback):
        self.callbacks.append(callback)
        return True


@pytest.mark.parametrize("service", ["", "a.B"])
def test_a_watch_sees_every_change_and_is_ended(service):
    service_health, answers = Health(["a.B"]), []
    watch = lambda response: answers.append(response and response.status)  # noqa: E731
    call = Context()
    assert not service_health.is_watched
    service_health.Watch(health_pb2.HealthCheckRequest(service=service), call, watch)
    assert service_health.is_watched
    service_health.set_serving(True)
    eventually(lambda: len(answers) == 2)
    service_health.set_serving(False)
    eventually(lambda: len(answers) == 3)
    service_health.end_watches()
    assert answers == [NOT_SERVING, SERVING, NOT_SERVING, None]
    for each in call.callbacks:
        each()
    assert not service_health.is_watched


@pytest.mark.parametrize("stalls_at", [1, 2])
def test_a_watch_that_fetches_nothing_holds_up_nobody(stalls_at):
    """The only thread of gRPC would wait with whoever ends, asks or stops: then no call at all goes on."""
    service_health, sent, released, was_released = Health([]), [], threading.Event(), []
    call, answers = Context(), []

    def stalled(response):
        sent.append(response)
        if len(sent) == stalls_at:
            was_released.append(released.wait(20))

    watching = threading.Thread(target=service_health.Watch, args=(REQUEST, Context(), stalled))
    watching.start()
    eventually(lambda: sent)
    service_health.set_serving(True)
    eventually(lambda: len(sent) == stalls_at)
    service_health.Watch(REQUEST, call, lambda response: answers.append(response.status))
    assert service_health.Check(REQUEST, None).status == SERVING
    service_health.set_serving(False)
    eventually(lambda: answers == [SERVING, NOT_SERVING])
    for each in call.callbacks:
        each()
    released.set()
    eventually(lambda: sent[-1].status == NOT_SERVING)
    watching.join(30)
    assert was_released == [True]  # nobody waited until it gave up


def test_a_watch_that_is_over_before_it_began_is_none():
    service_health = Health([])
    context = Context()
    context.add_callback = lambda _: False
    service_health.Watch(REQUEST, context, lambda _: None)
    assert not service_health.is_watched


def test_a_service_that_nobody_knows_is_watched_too():
    answers = []
    Health([]).Watch(health_pb2.HealthCheckRequest(service="no.Such"), Context(), answers.append)
    assert [each.status for each in answers] == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]
