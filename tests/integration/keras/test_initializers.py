"""What the service's initializers draw is what Keras' draw, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

import convserve
from convserve import initializers
from tests.support.keras import truth
from tests.support.keras.calls import FLOAT_DTYPES, Call, examples, seeded
from tests.support.keras.tolerance import worst_excess


def drawn_kernel(client: convserve.Client, initializer: Any, dtype: str) -> np.ndarray:
    """Returns the kernel that the server draws, read off by a convolution with each of its places alone."""
    arguments = {"filters": 5, "kernel_size": (2, 3), "use_bias": False, "kernel_initializer": initializer}
    places = np.eye(24, dtype=np.float32).reshape(24, 2, 3, 4)
    return client.conv2d(places, **arguments, dtype=dtype).reshape(2, 3, 4, 5)


def drawn_bias(client: convserve.Client, initializer: Any, dtype: str) -> np.ndarray:
    arguments = {"filters": 5, "kernel_size": 1, "kernel_initializer": "zeros", "bias_initializer": initializer}
    return client.conv2d(np.zeros((1, 1, 1, 1), np.float32), **arguments, dtype=dtype).reshape(5)


def weights_of_keras(initializer: Any, dtype: str, what: str) -> np.ndarray:
    arguments = {"filters": 5, "kernel_size": (2, 3), f"{what}_initializer": initializer, "dtype": dtype}
    return getattr(truth.run(arguments, np.zeros((1, 2, 3, 4), np.float32)), what)


SEEDED = {
    kind.keras_name: kind(**({"seed": 7} if "seed" in kind.__dataclass_fields__ else {}))
    for kind in dict.fromkeys(initializers.Initializer.members.values())
    if not kind.refusal
}
"""Every initializer that suits a Conv2D, with a seed where it draws at random."""


@pytest.mark.parametrize(
    ("name", "dtype"),
    # Keras has no orthogonal bfloat16; that it is refused is tested below.
    [(name, dtype) for name in SEEDED for dtype in FLOAT_DTYPES if (name, dtype) != ("orthogonal", "bfloat16")],
)
def test_every_initializer_draws_the_weights_that_keras_draws(client: convserve.Client, name: str, dtype: str) -> None:
    """Bit for bit."""
    found = drawn_kernel(client, SEEDED[name], dtype)
    assert found.dtype.name == dtype
    np.testing.assert_array_equal(found, weights_of_keras(SEEDED[name], dtype, "kernel"))
    if name != "orthogonal":
        found = drawn_bias(client, SEEDED[name], dtype)
        np.testing.assert_array_equal(found, weights_of_keras(SEEDED[name], dtype, "bias"))


@given(initializer=seeded(4, orthogonal=True))
@examples(30)
def test_initializers_with_any_parameters_draw_keras_kernel(client: convserve.Client, initializer: Any) -> None:
    np.testing.assert_array_equal(
        drawn_kernel(client, initializer, "float32"), weights_of_keras(initializer, "float32", "kernel")
    )


@given(initializer=seeded(1, orthogonal=False))
@examples(30)
def test_initializers_with_any_parameters_draw_keras_bias(client: convserve.Client, initializer: Any) -> None:
    np.testing.assert_array_equal(
        drawn_bias(client, initializer, "float32"), weights_of_keras(initializer, "float32", "bias")
    )


def test_a_seed_that_the_server_chose_rebuilds_the_weights(client: convserve.Client) -> None:
    """The configuration that comes back gives the same output again, and gives it in Keras."""
    config = convserve.Conv2D(4, 3, bias_initializer="random_normal")
    x = Call({}, "convserve", (1, 5, 5, 2)).x
    first, second = client.convolve(config, x), client.convolve(config, x)
    assert not np.array_equal(first.output, second.output)
    told = first.layers[0]
    assert told is not None
    np.testing.assert_array_equal(client.convolve(told, x).output, first.output)
    assert worst_excess(first.output, truth.run(vars(told), x)) <= 1
