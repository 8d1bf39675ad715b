"""The health service's watches, and the experimental interface of grpcio and grpcio-health-checking they rest on."""

import inspect

import pytest
from grpc import _server
from grpc_health.v1 import health, health_pb2

from convserve_server.health import Health

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
    service_health.set_serving()
    service_health.enter_graceful_shutdown()
    service_health.end_watches()
    assert answers == [NOT_SERVING, SERVING, NOT_SERVING, None]
    for each in call.callbacks:
        each()
    assert not service_health.is_watched
