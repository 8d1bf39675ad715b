"""A server whose shared-memory socket accepts and does not answer, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import math
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

import convserve
from convserve._rpc import shared_memory
from convserve.tensors import framing
from convserve.v1.convolution_service_pb2 import ConvolveResponse, GetServerInfoResponse, LayerOutcome
from convserve.v1.server_info_pb2 import ServerInfo
from tests.support.either_client import EITHER_CLIENT

X = np.arange(2**18, dtype="f4").reshape(1, 512, 512, 1)
LAYER = convserve.Layer(
    convserve.Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), 2, "f4")
)


class Server:
    """Doubles one image, and names a socket that nobody reads from unless a test does."""

    def __init__(self) -> None:
        self.address = f"convserve-test-{secrets.token_hex(8)}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind("\0" + self.address)
        self.socket.listen()
        self.socket.setblocking(False)
        self.server = grpc.server(
            ThreadPoolExecutor(4),
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.regions = 0

    def service(self, call: Any) -> Any:
        info = GetServerInfoResponse(
            server_info=ServerInfo(shared_memory_address=self.address, shared_memory_ticket=bytes(32))
        )
        answer = (
            info.SerializeToString()
            if "Info" in call.method
            else framing.write(ConvolveResponse(layers=[LayerOutcome()]), X * 2)
        )
        return grpc.unary_unary_rpc_method_handler(lambda *_: answer)

    async def take_regions(self) -> None:
        """Answers on the socket, in the event loop of the client that asks."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self.socket)
        with connection:
            while await loop.sock_recv(connection, 100):
                await loop.sock_sendall(connection, b"\1")
                self.regions += 1

    def stop(self) -> None:
        self.server.stop(None).wait()
        self.socket.close()


@pytest.fixture
def silent() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


def test_the_event_loop_goes_on_while_memory_is_shared(silent: Server) -> None:
    """The loop itself answers on the socket: it could not if the client held it up."""

    async def run() -> None:
        answering = asyncio.create_task(silent.take_regions())
        async with convserve.AsyncClient(silent.target) as client:
            x = await client.empty(X.shape)
            x[...] = X
            np.testing.assert_array_equal((await client.convolve(LAYER, x)).output, X * 2)
        await answering

    asyncio.run(run())
    assert silent.regions >= 3  # the ticket, and the regions of input and output


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_call_is_made_within_its_timeout_without_shared_memory(
    silent: Server, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "MAX_ANSWER_S", math.inf)  # so that its timeout alone bounds the wait for memory
    for timeout in (4, 60):  # the latter where a busy machine does not come so far in time
        with make_client(silent.target, timeout=timeout) as client, suppress(convserve.DeadlineExceededError):
            np.testing.assert_array_equal(client.convolve(LAYER, X).output, X * 2)
            assert client.empty((1, 512, 512, 1)).shape == (1, 512, 512, 1)
            break
    else:
        pytest.fail("the call was not made")
    assert silent.regions == 0


def test_only_calls_that_were_made_add_to_the_budget_of_retries(silent: Server) -> None:
    with convserve.Client(silent.target, shared_memory=False, retry=convserve.RetryRule(budget=3)) as client:
        assert client._budget.try_spend()
        client.empty((1, 2, 2, 1))
        assert [client._budget.try_spend() for _ in range(3)] == [True, True, False]
