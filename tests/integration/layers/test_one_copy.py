"""A server on a CPU holds the weights of a stored layer once, whatever computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.servers.server_process import GIVES_BACK_FREED_MEMORY, RunningServer, running_server

CONFIG = Conv2D(4096, 1, use_bias=False, data_format="channels_last", dtype="float32")
CHANNELS = 2048
KERNEL_BYTES = CHANNELS * 4096 * 4


def resident_bytes(server: RunningServer) -> int:
    """Returns what a server's process has of its own in memory: no mapped files, no shared memory."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "folder"])
def test_weights_are_in_memory_once(tmp_path: Path, durable: bool) -> None:
    options = ["--store", str(tmp_path)] if durable else []
    # What is kept for the next tensors is no layer's.
    with (
        running_server("--no-keep-memory", *options, environment=GIVES_BACK_FREED_MEMORY) as server,
        convserve.Client(server.target) as client,
    ):
        x = np.ones((1, 1, 1, CHANNELS), "f4")
        resident = []
        for number in range(3):
            kernel = np.full((1, 1, CHANNELS, 4096), 1 / CHANNELS, "f4")
            kernel[0, 0, 0, 0] = number
            layer = client.put(Layer(CONFIG, kernel), name=f"layer/{number}")
            assert layer(x).shape == (1, 1, 1, 4096)
            resident.append(resident_bytes(server))
        grown = (resident[-1] - resident[0]) / (2 * KERNEL_BYTES)
        assert 0.9 < grown < 1.6, resident  # not 2; threads that wait on a busy machine keep pieces of a message
        assert client.info().usage.stored_memory_bytes == pytest.approx(3 * KERNEL_BYTES, rel=0.01)
