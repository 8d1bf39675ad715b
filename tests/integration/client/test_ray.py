"""The stage of Ray Data's as a client: servers that lose layers, go away and come back. Ray need not be there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import Client, Conv2D, ConvserveError, InvalidArgumentError, Layer, LayerNotFoundError, RetryRule
from convserve.ray import Convolve
from tests.support.engines.numpy_engine import convolved
from tests.support.servers.server_process import RunningServer, numpy_server

LAYER = Layer(Conv2D(2, 3, data_format="channels_last"), np.arange(54).reshape(3, 3, 3, 2) / 54, np.ones(2))
HEAD = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 2, 1)))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)
EXPECTED = convolved(LAYER, IMAGES)
QUICK = RetryRule(longest_s=0.05)


@pytest.fixture(scope="module")
def numpys() -> Iterator[RunningServer]:
    with numpy_server() as running:
        yield running


def features(made: Convolve, images: Any = IMAGES) -> Any:
    return made({"image": images})["features"]


def test_layers_by_value_by_name_by_prefix_and_stored(numpys: RunningServer) -> None:
    with Client(numpys.target) as client:
        head = client.put(HEAD, name="net/1")
        client.put(LAYER, name="net/0")
    summed = EXPECTED.sum(-1, keepdims=True)
    for layers, expected in (
        (LAYER, EXPECTED), ("net/0", EXPECTED), ("net/", summed), (["net/0", head], summed), ([LAYER, "net/1"], summed),
    ):  # fmt: skip
        np.testing.assert_allclose(features(Convolve(layers, server=numpys.target)), expected, rtol=1e-6)
    for missing in ("net", "network/"):
        with pytest.raises((LayerNotFoundError, InvalidArgumentError), match=missing):
            features(Convolve(missing, server=numpys.target))


def test_images_of_several_sizes(numpys: RunningServer) -> None:
    images = np.empty(3, object)
    images[:] = [IMAGES[0], IMAGES[1, :5], IMAGES[2, :, :4]]
    made = features(Convolve(LAYER, server=numpys.target), images)
    for image, each in zip(images, made, strict=True):
        np.testing.assert_allclose(each, convolved(LAYER, image[np.newaxis])[0], rtol=1e-6)


def test_it_goes_to_a_process_and_its_threads(numpys: RunningServer) -> None:
    made = Convolve(LAYER, server=[numpys.target], keep=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        batch = pool.submit(made, {"image": IMAGES}).result(60)
    np.testing.assert_allclose(batch["features"], EXPECTED, rtol=1e-6)
    np.testing.assert_array_equal(batch["image"], IMAGES)
    with ThreadPoolExecutor(4) as threads:
        for output in threads.map(features, [made] * 8):
            np.testing.assert_allclose(output, EXPECTED, rtol=1e-6)


@pytest.mark.parametrize("layers", [LAYER, "net/0"], ids=["value", "name"])
def test_a_server_that_is_killed_is_waited_for_and_given_its_layers_again(layers: Any, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/socket"
    with Client(address, retry=QUICK) as client, ThreadPoolExecutor(1) as threads:
        made = Convolve(layers, server=client)  # whose rule has few attempts: it waits all the same
        with numpy_server("--listen", address) as server:
            client.put(LAYER, name="net/0")
            features(made)
            server.process.kill()
            server.process.wait()
        waiting = threads.submit(features, made)
        with pytest.raises(ConvserveError):  # after all attempts of the rule, while the batch waits
            client.info()
        assert not waiting.done()
        with numpy_server("--listen", address):
            np.testing.assert_allclose(waiting.result(60), EXPECTED, rtol=1e-6)
            # The server has no folder. Other actors find the name again.
            with Client(address) as other:
                names = [name for layer in other.layers() for name in layer.names]
            assert names == (["net/0"] if layers == "net/0" else [])


def test_what_is_the_callers_fault_is_not_waited_for(numpys: RunningServer) -> None:
    with pytest.raises(InvalidArgumentError, match="Received 2 "):
        features(Convolve(LAYER, server=numpys.target), IMAGES[..., :2])
    with pytest.raises(ConvserveError):
        features(Convolve(LAYER, server="127.0.0.1:1", timeout=0.2))
