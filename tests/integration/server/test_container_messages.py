"""How large the messages of other languages' clients may be where a container has little memory."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from convserve import Client
from tests.support.raw.calls import conv2d, convolve_request, layer, raw_caller, tensor, weights
from tests.support.servers.server_process import RunningServer, numpy_server

KERNEL = np.arange(12, dtype="f4").reshape(1, 1, 3, 4)
LARGE = np.ones((4, 600, 600, 3), "f4")  # 17.3 MB, of which 23 MB come back


@pytest.fixture(scope="module")
def contained() -> Iterator[RunningServer]:
    with numpy_server(environment={"CONTAINER_BYTES": str(8 * 2**30)}) as running:
        yield running


def test_a_batch_of_photographs_goes_in_one_message_and_comes_back_in_a_larger_one(contained: RunningServer) -> None:
    request = convolve_request(layer(conv2d(filters=4), weights=weights(KERNEL)), input=tensor(LARGE))
    with Client(contained.target) as client, raw_caller(contained.target) as caller:
        most = client.info().max_message_bytes
        output = caller.stub.Convolve(request, timeout=60).output
    assert request.ByteSize() < most < len(output.data)
    assert (np.frombuffer(output.data, "f4").reshape(4, 600, 600, 4) == KERNEL.sum((0, 1, 2))).all()


def test_a_larger_request_is_refused_by_grpc_and_goes_in_pieces(contained: RunningServer) -> None:
    x = np.ones((5, 600, 600, 3), "f4")
    request = convolve_request(layer(conv2d(filters=4), weights=weights(KERNEL)), input=tensor(x))
    with raw_caller(contained.target) as caller, pytest.raises(grpc.RpcError) as caught:
        caller.stub.Convolve(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details().startswith("SERVER: Received message larger than max (")
    with Client(contained.target) as client:
        assert client.conv2d(x, kernel=KERNEL).shape == (5, 600, 600, 4)
