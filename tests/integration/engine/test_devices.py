"""What must hold on every kind of device that computes: on the CPU always, and on an NVIDIA GPU where there is one.

`python -m tests.bench.gpu` runs those of the GPU. The truth is Keras on this process' CPU in both cases; a GPU rounds
other sums, so there it may differ by what `convserve bench` takes for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import convserve
from convserve.bench import correctness
from tests.support import gpu_available
from tests.support.keras import truth as keras_truth
from tests.support.keras.calls import FLOAT_DTYPES, Call, calls, examples
from tests.support.keras.tolerance import TOLERANCE, worst_excess
from tests.support.observability.scrapes import page, values
from tests.support.servers.server_process import RunningServer, running_server

GPU = "gpu:0"


@pytest.fixture(scope="module", params=["cpu", pytest.param(GPU, marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A device's name; skips where the machine lacks it."""
    if request.param == GPU and (lacks := gpu_available.lacking_driver() or gpu_available.lacking()):
        pytest.skip(f"this machine lacks {lacks}")
    return str(request.param)


@pytest.fixture(scope="module")
def device_server(device: str) -> Iterator[RunningServer]:
    """A server on that device."""
    with running_server("--device", device, "--shared-memory", "--metrics", "127.0.0.1:0") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def caller(device_server: RunningServer) -> Iterator[convserve.Client]:
    """A client of that server."""
    with convserve.Client(device_server.target, timeout=120) as connected:
        yield connected


def tolerances(dtype: str, device: str) -> float:
    """Returns how many of the tolerances that hold on a CPU an output may be off."""
    return 1.0 if device == "cpu" else correctness.LIMITS[dtype] / TOLERANCE[dtype]


def test_it_computes_where_it_says(device: str, caller: convserve.Client) -> None:
    (only,) = caller.info().devices
    assert (only.name.partition(":")[0], only.kind) == (device.partition(":")[0], device.partition(":")[0])
    assert caller.convolve(convserve.Conv2D(2, 3), np.zeros((1, 4, 4, 1), np.float32)).device == only.name


# On the CPU tests/integration/keras/test_outputs.py draws more of the same.
@pytest.mark.parametrize("device", [pytest.param(GPU, marks=pytest.mark.gpu)], indirect=True)
@given(call=calls())
@examples(25)
def test_outputs_are_keras(device: str, caller: convserve.Client, call: Call) -> None:
    truth = keras_truth.run(call.arguments, call.x, *call.weights)
    result = caller.convolve(convserve.Layer(call.config, *call.weights), call.x, output_dtype=call.output_dtype)
    assert worst_excess(result.output, truth, call.output_dtype) <= tolerances(call.config.compute_dtype, device)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"strides": 2, "padding": "same"},
        {"dilation_rate": 2, "activation": "gelu"},
        {"groups": 4},
        {"groups": 8, "padding": "same"},
        {"padding": ((1, 2), (0, 3)), "activation": "softmax"},
    ],
    ids="-".join,
)
def test_every_kind_of_layer_in_every_type(
    device: str, caller: convserve.Client, changes: dict[str, Any], dtype: str, data_format: str
) -> None:
    shape = (3, 15, 17, 8) if data_format == "channels_last" else (3, 8, 15, 17)
    layer = {"filters": 16, "kernel_size": 3, "dtype": dtype, "data_format": data_format, **changes}
    call = Call(layer, "convserve", shape)
    truth = keras_truth.run(layer, call.x, *call.weights)
    found = caller.convolve(convserve.Layer(call.config, *call.weights), call.x).output
    assert worst_excess(found, truth) <= tolerances(call.config.compute_dtype, device)


def test_losses_are_keras(device: str, caller: convserve.Client) -> None:
    layer = {
        "filters": 4, "kernel_size": 3, "kernel_regularizer": "l2", "bias_regularizer": "l1",
        "activity_regularizer": "l2", "dtype": "float32",
    }  # fmt: skip
    call = Call(layer, "convserve", (5, 9, 9, 3))
    truth = keras_truth.run(layer, call.x, *call.weights)
    (found,) = caller.convolve(convserve.Layer(call.config, *call.weights), call.x).losses
    for what in ("kernel", "bias", "activity"):
        assert getattr(found, what) == pytest.approx(getattr(truth.losses, what), rel=correctness.LIMITS["float32"])


def layer_of(channels: int, filters: int, seed: int = 0, **changes: Any) -> convserve.Layer:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 3, channels, filters), dtype=np.float32)
    given = {"padding": "same", "data_format": "channels_last", "dtype": "float32", "use_bias": False, **changes}
    return convserve.Layer(convserve.Conv2D(filters, 3, **given), kernel)


def near(found: Any, expected: Any, share: float = correctness.LIMITS["float32"]) -> None:
    """Checks that two outputs differ by a share of the greatest value at most."""
    assert np.abs(found - expected).max() <= share * np.abs(expected).max()


def test_a_chain_an_image_and_another_type(caller: convserve.Client) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    chain = [layer_of(3, 8, activation="relu"), layer_of(8, 4, seed=1)]
    step = caller.convolve(chain[0], photo).output
    expected = caller.convolve(chain[1], step).output
    near(caller.convolve(chain, photo).output, expected)
    half = caller.convolve([layer_of(3, 8)], photo.astype(np.float32) / 255, output_dtype="float16").output
    assert half.dtype == np.float16
    near(half.astype("f4"), caller.convolve(layer_of(3, 8), photo.astype(np.float32) / 255).output, 1e-3)


def test_callers_at_once_get_their_own(caller: convserve.Client) -> None:
    layer = caller.put(layer_of(4, 8))
    inputs = [np.random.default_rng(n).standard_normal((1 + n % 3, 20, 20, 4), dtype=np.float32) for n in range(24)]
    alone = [layer(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(layer, inputs), alone, strict=True):
            near(found, expected)


def test_a_large_tensor_goes_there_and_back_by_both_ways(device_server: RunningServer) -> None:
    x = np.random.default_rng(0).standard_normal((8, 256, 256, 3), dtype=np.float32)
    found = []
    for shared in (False, True):
        with convserve.Client(device_server.target, timeout=120, shared_memory=shared) as client:
            found.append(client.convolve(layer_of(3, 16), x).output)
    near(found[0], found[1])


def test_tensorfloat_32_rounds_no_more_than_it_says(device: str, caller: convserve.Client) -> None:
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 64), dtype=np.float32)
    expected = caller.convolve(layer_of(64, 64), x).output
    with running_server("--device", device, "--tf32") as rounding, convserve.Client(rounding.target) as client:
        assert client.info().tf32
        near(client.convolve(layer_of(64, 64), x).output, expected, correctness.TF32_LIMIT)


def test_only_a_gpu_tells_of_its_memory(device: str, device_server: RunningServer, caller: convserve.Client) -> None:
    caller.convolve(layer_of(3, 16), np.zeros((1, 64, 64, 3), np.float32))
    samples = values(page(device_server.metrics))
    named = {key[1] for key in samples if key[0] == "convserve_device_memory_bytes"}
    assert named == (set() if device == "cpu" else {device})
