"""A real server under a real limit of its memory: a call too large for it as a whole, and the calls after.

The same by hand, with a server that listens: prlimit --pid PID --as=BYTES, then any call.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

import convserve
from convserve.layers.plan import plan
from tests.support.processes import status
from tests.support.servers.server_process import RunningServer, running_server

UP = convserve.Conv2D(256, 3, padding="same", use_bias=False, data_format="channels_last", dtype="float32")
DOWN = UP.replace(filters=1)
LAYERS = [
    convserve.Layer(UP, np.ones((3, 3, 1, 256), "f4")),
    convserve.Layer(DOWN, np.ones((3, 3, 256, 1), "f4")),
]


def image(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 3, (1, side, side, 1)).astype("f4")


@pytest.fixture(scope="module")
def unkept() -> Iterator[RunningServer]:
    """A server that keeps no memory for the next tensors."""
    eigens = {"TF_ENABLE_ONEDNN_OPTS": "0"}  # oneDNN's kernels end the process under a limit that was set later
    with running_server("--no-keep-memory", environment=eigens) as running:
        yield running


@pytest.mark.parametrize("limit", ["AS", "DATA"])
def test_a_call_above_the_limit_is_answered_in_parts_and_one_that_cannot_be_is_refused(
    unkept: RunningServer, limit: str
) -> None:
    x = image(384)
    assert plan([UP, DOWN], x.shape).memory_bytes > 2**27  # nearly all of it between the layers
    with convserve.Client(unkept.target) as client, ExitStack() as afterwards:
        expected = client.convolve(LAYERS, x).output
        small = client.convolve(LAYERS, image(32)).output
        pid = unkept.process.pid
        held = status(pid, "VmSize" if limit == "AS" else "VmData")
        number, most = getattr(resource, f"RLIMIT_{limit}"), held + 85 * 2**20
        _, hard = before = resource.prlimit(pid, number)
        resource.prlimit(pid, number, (most, hard))
        afterwards.callback(resource.prlimit, pid, number, before)
        for _ in range(2):
            np.testing.assert_array_equal(client.convolve(LAYERS, x).output, expected)
            np.testing.assert_array_equal(client.convolve(LAYERS, image(32)).output, small)
        # One row of it has 2 GiB between the layers.
        with pytest.raises(convserve.OutOfMemoryError, match="at least in parts"):
            client.convolve(LAYERS, np.ones((1, 3, 2**21 // 3, 1), "f4"))
        np.testing.assert_array_equal(client.convolve(LAYERS, image(32)).output, small)
        assert unkept.process.poll() is None
