"""The health of a server that says anything, and of one that starts late: in both clients, and on the command line."""

from __future__ import annotations

import grpc
import pytest

from convserve import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    UnimplementedError,
    cli,
)
from convserve.protocol import health
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.lying_server import lying_server

NOBODY = "127.0.0.1:1"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
either = pytest.mark.parametrize("connect", EITHER_CLIENT.values(), ids=EITHER_CLIENT)


@pytest.mark.parametrize(
    ("response", "status"),
    [(b"", "UNKNOWN"), (SERVING, "SERVING"), (NOT_SERVING, "NOT_SERVING"), (b"\x08\x03\x12\x00", "SERVICE_UNKNOWN")],
)
def test_a_status_is_read_from_the_wire(response, status):
    assert health.status(response) == status


@pytest.mark.parametrize("response", [b"\x08\x07", b"\x08" + b"\xff" * 9 + b"\x01", b"\x08", b"\xff"])
def test_what_is_no_status_is_refused(response):
    with pytest.raises(InternalError, match="the answer of a health service"):
        health.status(response)


@either
def test_a_server_that_is_starting_is_waited_for(connect):
    asked = []

    def answers(requests, context):
        asked.append(next(requests, None))
        if len(asked) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        yield NOT_SERVING if len(asked) == 2 else SERVING

    with lying_server() as server, connect(server.target) as client:
        server.let(health.METHOD, answers)
        client.wait_until_ready(timeout=60)
        assert asked == [b""] * 3


@either
def test_what_is_not_ready_in_time_says_why(connect):
    with lying_server() as server, connect(server.target) as client:
        server.answer(health.METHOD, NOT_SERVING)
        assert client.health() == "NOT_SERVING"
        with pytest.raises(TimeoutError, match=r"timeout=1 .*NOT_SERVING: it is starting or stopping") as caught:
            client.wait_until_ready(timeout=1)
        assert "raise the timeout. (" in str(caught.value)  # there is nothing of which less could be sent
    late = r"timeout=1 .*running there"
    with connect(NOBODY, timeout=1) as client, pytest.raises(DeadlineExceededError, match=late):
        client.wait_until_ready()


@either
def test_a_server_without_a_health_service_is_not_waited_for(connect):
    with lying_server() as server, connect(server.target) as client:
        for ask in (client.health, client.wait_until_ready):
            with pytest.raises(UnimplementedError):
                ask(timeout=60)


@either
def test_health_asks_once(connect):
    asked = []

    def refuse(requests, context):
        asked.append(next(requests, None))
        context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        yield b""

    with lying_server() as server, connect(server.target) as client:
        server.let(health.METHOD, refuse)
        with pytest.raises(UnavailableError, match="stopping"):
            client.health(timeout=60)
    assert asked == [b""]


@either
@pytest.mark.parametrize("timeout", [0, -1, "soon", True])
def test_no_time_is_refused(connect, timeout):
    with connect(NOBODY) as client:
        for ask in (client.health, client.wait_until_ready):
            with pytest.raises(InvalidArgumentError, match="timeout: Expected a number of seconds above 0"):
                ask(timeout=timeout)


@pytest.mark.parametrize(("answer", "words"), [(NOT_SERVING, "NOT_SERVING"), (b"\xff", "of a health service")])
def test_the_command_line_says_the_same(capsys, answer, words):
    with lying_server() as server:
        server.answer(health.METHOD, answer)
        assert cli.main(["health", "--target", server.target]) == 1
        assert words in capsys.readouterr().err
        server.answer(health.METHOD, SERVING)
        assert cli.main(["health", "--target", server.target]) == 0
        assert capsys.readouterr().out == "SERVING\n"
