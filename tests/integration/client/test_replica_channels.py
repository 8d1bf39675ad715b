"""The servers that a name leads to, as it leads to others: their channels, and a resolver that does not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

import convserve
from convserve import DeadlineExceededError, LayerNotFoundError, RetryRule, UnavailableError
from convserve.protocol.status import to_status
from tests.support.either_client import EITHER_CLIENT

EITHER = pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)


class EmptyServer:
    """Holds no layer; a call waits until the server is released."""

    def __init__(self) -> None:
        self.released, self.called = threading.Event(), threading.Event()
        self.released.set()
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    @property
    def address(self) -> str:
        return f"ipv4:127.0.0.1:{self.port}"

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.refuse)

    def refuse(self, _: Any, context: Any) -> None:
        self.called.set()
        self.released.wait()
        context.abort_with_status(to_status(LayerNotFoundError("none", layer="x", by_name=True)))

    def stop(self) -> None:
        self.released.set()
        self.server.stop(None).wait()


@pytest.fixture
def servers() -> Iterator[list[EmptyServer]]:
    with ExitStack() as stack:
        made = [EmptyServer() for _ in range(3)]
        for server in made:
            stack.callback(server.stop)
        yield made


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[EmptyServer]:
    """The servers that pods.test leads to."""
    leads_to: list[EmptyServer] = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "pods.test":
            return [(2, 1, 6, "", ("127.0.0.1", server.port)) for server in leads_to]
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return leads_to


def look(client: Any) -> None:
    with pytest.raises(LayerNotFoundError):
        client.layer("x")


def channels(client: Any) -> set[str]:
    return set(client._servers._replicas)


@EITHER
def test_channels_to_servers_that_are_gone_are_closed(servers: Any, resolved: Any, make_client: Any) -> None:
    with make_client("pods.test:1", retry=RetryRule(attempts=1)) as client:
        resolved[:] = servers[:2]
        look(client)
        assert channels(client) == {server.address for server in servers[:2]}
        resolved[:] = servers[1:]
        look(client)
        assert channels(client) == {server.address for server in servers[1:]}
        resolved[:] = []
        with pytest.raises((UnavailableError, DeadlineExceededError)):  # of gRPC, which does not know the name either
            client.layer("x", timeout=1)
        assert channels(client) == set()


def test_a_channel_that_a_call_uses_is_closed_after_it(servers: Any, resolved: Any) -> None:
    with convserve.Client("pods.test:1") as client:
        resolved[:] = servers[:2]
        for server in servers[:2]:
            server.released.clear()
        thread = threading.Thread(target=look, args=(client,))
        thread.start()
        first = next(server for server in sorted(servers[:2], key=lambda server: server.address))
        assert first.called.wait(60)
        resolved[:] = [servers[2], next(server for server in servers[:2] if server is not first)]
        for server in servers:
            if server is not first:
                server.released.set()
        look(client)
        assert first.address in channels(client)
        first.released.set()
        thread.join()
        assert channels(client) == {server.address for server in resolved}


@EITHER
def test_a_resolver_that_does_not_answer_takes_no_longer_than_a_call_may(
    monkeypatch: pytest.MonkeyPatch, make_client: Any
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait() and [])
    try:
        with make_client("pods.test:1") as client, pytest.raises(DeadlineExceededError, match=r"timeout=0\.2"):
            client.layers(timeout=0.2)
    finally:
        answers.set()
