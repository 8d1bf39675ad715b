"""Hundreds of layers of one geometry on a server whose memory holds a tenth of them.

`CONVSERVE_TEST_LAYERS=1000 pytest -s tests/integration/layers/test_many_layers.py` takes more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer, OverloadedError, TooLargeError
from tests.support.servers.server_process import RunningServer, running_server

LAYERS = int(os.environ.get("CONVSERVE_TEST_LAYERS", "400"))
KERNEL_BYTES = 3 * 3 * 64 * 64 * 4
BUDGET = LAYERS // 10 * (KERNEL_BYTES + 4096)
CONFIG = Conv2D(64, 3, use_bias=False, data_format="channels_last", dtype="float32")
X = np.random.default_rng(0).integers(-3, 4, (1, 3, 3, 64)).astype("f4")


@pytest.fixture(scope="module")
def small_server() -> Iterator[RunningServer]:
    # What is kept for the next tensors is no layer's.
    with running_server("--layer-memory-bytes", str(BUDGET), "--no-keep-memory") as running:
        yield running


def layer(number: int) -> Layer:
    return Layer(CONFIG, np.random.default_rng(number).integers(-8, 9, (3, 3, 64, 64)).astype("f4"))


def expected(given: Layer) -> np.ndarray:
    """Returns the output for X, whose sums of small integers are exact in any order."""
    return np.einsum("hwc,hwcf->f", X[0], given.kernel)[None, None, None]


def resident_bytes(server: RunningServer, what: str = "VmRSS") -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


def test_many_layers_take_turns_in_the_memory_and_share_one_trace(
    small_server: RunningServer, record_property: pytest.RecordProperty
) -> None:
    layers = [layer(number) for number in range(LAYERS)]
    with convserve.Client(small_server.target) as client:
        client.convolve(layer(LAYERS), X)
        before, resident_before = client.info().usage, resident_bytes(small_server)
        stored = []
        for number, each in enumerate(layers):
            if number == LAYERS // 10:
                resident_full = resident_bytes(small_server, "VmHWM")
            stored.append(client.put(each))
            result = client.convolve(stored[-1], X)
            np.testing.assert_array_equal(result.output, expected(each))
            assert result.warm
        held = LAYERS - len(client.missing(layers))
        assert 0.95 * LAYERS // 10 <= held <= LAYERS // 10
        for each, put in zip(layers, stored, strict=True):
            result = client.convolve(put, X)  # most of them are gone, and come back with the call
            np.testing.assert_array_equal(result.output, expected(each))
            assert result.warm
        after, resident_after = client.info().usage, resident_bytes(small_server, "VmHWM")

    assert after.traces == before.traces
    assert after.stored_memory_bytes <= BUDGET
    assert after.evictions >= 2 * LAYERS - 2 * (LAYERS // 10)
    full, most = resident_full - resident_before, resident_after - resident_before
    record_property("resident_bytes", {"before": resident_before, "full": resident_full, "most": resident_after})
    print(f"\nresident: grew by {full / 1e6:.0f} MB for a full memory, at most by {most / 1e6:.0f} MB; {after}")
    # Ten times as many layers, of which each was sent twice, take about what those take that the memory holds.
    assert most < 4 * full


def test_what_is_larger_than_the_store_is_computed_with_but_not_kept(small_server: RunningServer) -> None:
    config = CONFIG.replace(filters=4096)
    large = Layer(config, np.ones((3, 3, 128, 4096), "f4"))
    assert large.kernel.nbytes > BUDGET
    with convserve.Client(small_server.target) as client:
        with pytest.raises(TooLargeError, match="--layer-memory-bytes"):
            client.put(large)
        x = np.ones((1, 3, 3, 128), "f4")
        assert client.convolve(large, x).output.flat[0] == 9 * 128
        assert client.info().usage.stored_memory_bytes <= BUDGET


def test_a_full_store_says_what_to_raise(small_server: RunningServer) -> None:
    with convserve.Client(small_server.target, retry=convserve.RetryRule(attempts=1)) as client:
        for number in range(LAYERS // 10):
            client.put(layer(number), name=f"full/{number}")
        with pytest.raises(OverloadedError, match=r"--layer-memory-bytes of \d+\. .*delete some"):
            client.put(layer(LAYERS), name="full/more")
        assert len(client.layers("full/")) == LAYERS // 10
        np.testing.assert_array_equal(client.layer("full/0")(X), expected(layer(0)))
        client.delete("full/0")
        client.put(layer(LAYERS), name="full/more")
        for each in client.layers("full/"):
            client.delete(each)
