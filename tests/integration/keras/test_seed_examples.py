"""The examples that the project began with: a batch of photographs of 600 x 600, 64 filters, all through the client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from tests.support.keras import truth
from tests.support.keras.truth import keras

SHAPE = (4, 600, 600, 3)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    return np.random.default_rng(600).standard_normal(SHAPE, dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"kernel_size": 1}, (4, 600, 600, 64)),
        ({"kernel_size": 2}, (4, 599, 599, 64)),
        ({"kernel_size": 1, "strides": 2, "padding": "valid"}, (4, 300, 300, 64)),
        ({"kernel_size": 1, "strides": 2, "padding": "same"}, (4, 300, 300, 64)),
        ({"kernel_size": 3, "strides": 2, "padding": "same"}, (4, 300, 300, 64)),
        ({"kernel_size": 3, "padding": "same"}, (4, 600, 600, 64)),
        ({"kernel_size": 3, "padding": "valid"}, (4, 598, 598, 64)),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_shape_and_values_are_keras(
    client: convserve.Client, photographs: np.ndarray, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Up to 369 MB each way, with a client and a server as they come."""
    random = np.random.default_rng(64)
    size = arguments["kernel_size"]
    kernel = random.standard_normal((size, size, 3, 64), dtype=np.float32)
    bias = random.standard_normal(64, dtype=np.float32)
    output = client.conv2d(photographs, 64, kernel=kernel, bias=bias, **arguments)
    assert output.shape == shape
    assert output.dtype == np.float32
    expected = truth.run({"filters": 64, **arguments}, photographs, kernel, bias).output
    assert truth.disagreement(output, expected) <= 1e-5


def test_a_seed_gives_the_weights_that_it_gives_in_keras(client: convserve.Client, photographs: np.ndarray) -> None:
    """`seed=0` is `GlorotUniform(seed=0)`, which is Keras' own default with a seed."""
    few = photographs[:, :50, :50]
    layer = keras.layers.Conv2D(64, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=0))
    expected = np.asarray(layer(few))
    assert truth.disagreement(client.conv2d(few, 64, 3, seed=0), expected) <= 1e-5
    assert truth.disagreement(client.conv2d(few, 64, 3, seed=1), expected) > 0.1
