"""docs/faq.md: each message in its table is one that a caller or an operator sees."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import numpy as np
import pytest

import convserve
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc
from tests.support.pages import text
from tests.support.servers.server_process import RunningServer, numpy_server

PAGE = text("docs/faq.md")
MESSAGES = re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)
TOKEN = "a-token-of-the-faqs-test"  # noqa: S105 (of this test alone)
IMAGE = np.zeros((8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    """A server that wants a token, and takes small calls alone."""
    with numpy_server("--max-call-bytes", "64MiB", environment={"CONVSERVE_TOKEN": TOKEN}) as running:
        yield running


def no_server(target: str) -> None:
    with convserve.Client("127.0.0.1:1", retry=convserve.RetryRule(attempts=1)) as away:
        away.info()


def larger_than_a_channel_takes(target: str) -> None:
    with closing(grpc.insecure_channel(target)) as channel:
        stub = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)
        request = convolution_service_pb2.EchoRequest(output_bytes=5_000_000)
        stub.Echo(request, metadata=[("authorization", f"Bearer {TOKEN}")])


def no_token(target: str) -> None:
    with convserve.Client(target) as stranger:
        stranger.info()


def taken(target: str) -> None:
    command = [sys.executable, "-m", "tests.support.engines.numpy_server", "--listen", target]
    raise RuntimeError(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr)


def called(array: np.ndarray, kernel_size: int = 3, filters: int = 4) -> Callable[[str], None]:
    def cause(target: str) -> None:
        with convserve.Client(target, token=TOKEN) as client:
            client.conv2d(array, filters, kernel_size)

    return cause


def no_such_layer(target: str) -> None:
    with convserve.Client(target, token=TOKEN) as client:
        client.layer("never-put")


CAUSES: dict[str, Callable[[str], None]] = {
    "is convserve serve running there?": no_server,
    "Expected an address that is free and may be used.": taken,
    "Expected 4 dimensions, the first being the batch.": called(IMAGE),
    "Received dtype int64; convert it first": called(IMAGE[None].astype("int64")),
    "Expected a height of at least 9": called(IMAGE[None], kernel_size=9),
    "Expected the name of a stored layer.": no_such_layer,
    "the server's --max-call-bytes": called(np.zeros((1, 1000, 1000, 1), np.uint8), filters=64),
    "Expected the header 'authorization: Bearer TOKEN'.": no_token,
    "Received message larger than max": larger_than_a_channel_takes,
}
ELSEWHERE = {"convserve serve needs the server extra"}
"""test_base_install.py sees it, where the extra is missing."""


def test_every_message_has_a_cause_that_is_tried() -> None:
    assert set(MESSAGES) == CAUSES.keys() | ELSEWHERE


@pytest.mark.parametrize("message", CAUSES)
def test_a_message_is_what_is_seen(message: str, guarded: RunningServer) -> None:
    with pytest.raises((convserve.ConvserveError, grpc.RpcError, RuntimeError)) as caught:
        CAUSES[message](guarded.target)
    assert message in str(caught.value).replace("`", "")
