"""Half a gigabyte in and out, by each way that large tensors travel: it works, and neither end holds it twice."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.processes import forget_peak, status
from tests.support.servers.server_process import RunningServer
from tests.support.tensor_paths import observed

MIB = 2**20
SHAPE = (16, 1024, 1024, 8)  # 32 MiB a sample
TENSOR_BYTES = 512 * MIB
DOUBLE = Layer(Conv2D(8, 1, use_bias=False, data_format="channels_last"), 2 * np.eye(8, dtype="f4").reshape(1, 1, 8, 8))
PATTERN = (np.arange(SHAPE[1] * SHAPE[2] * SHAPE[3]) % 251).astype("f4").reshape(SHAPE[1:])


def available() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) * 1024


def filled(x: np.ndarray) -> np.ndarray:
    for number, sample in enumerate(x):
        np.add(PATTERN, number, out=sample)
    return x


def check(y: np.ndarray) -> None:
    assert y.shape == SHAPE
    for number, sample in enumerate(y):
        assert (sample == 2 * (PATTERN + number)).all(), number


# One test, so that no two processes do it at once.
@pytest.mark.skipif(available() < 6 * 2**30, reason="needs 6 GB of free memory")
def test_half_a_gigabyte_in_and_out(sharing_server: RunningServer) -> None:
    server, own = sharing_server.process.pid, os.getpid()

    with observed() as taken, convserve.Client(sharing_server.target, timeout=300, shared_memory=False) as client:
        x = filled(np.empty(SHAPE, "f4"))
        client.convolve(DOUBLE, x[:1])
        gc.collect()
        for pid in (server, own):
            forget_peak(pid)
        before = {pid: status(pid, "VmRSS") for pid in (server, own)}
        y = client.convolve(DOUBLE, x).output
        # The server holds some items of 32 MiB, in and out; the client the output and some pieces.
        assert status(server, "VmHWM") - before[server] < 400 * MIB
        assert status(own, "VmHWM") - before[own] < TENSOR_BYTES + 200 * MIB
        check(y)
        assert taken.items[-1] == len(x)
    del x, y
    gc.collect()

    with observed() as taken, convserve.Client(sharing_server.target, timeout=300) as client:
        x = filled(client.empty(SHAPE))
        for pid in (server, own):
            forget_peak(pid)
        before = {pid: status(pid, "VmRSS") for pid in (server, own)}
        y = client.convolve(DOUBLE, x).output
        assert status(own, "VmHWM") - before[own] < 100 * MIB  # the output's pages are its own when they are read
        assert status(server, "VmHWM") - before[server] < 3 * TENSOR_BYTES + 200 * MIB  # what is shared, and one output
        check(y)
        assert (taken.copied_inputs, taken.kept_outputs) == ([False], [True])
