"""Strides and dilation together: a server computes what PyTorch's formula says, with every group, dtype and format."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from convserve import Client, Conv2D, InvalidConfigurationError, Layer

# stride, dilation, padding
STEPS: list[tuple[Any, Any, Any]] = [
    ((2, 2), (2, 2), (2, 2)),  # every second row and column alone is read
    ((4, 4), (2, 2), (1, 0)),
    ((2, 2), (4, 4), (0, 5)),
    ((2, 2), (3, 3), (3, 3)),
    ((1, 2), (2, 1), (0, 0)),
    ((3, 1), (2, 2), (4, 1)),
]
GROUPS = [(1, 5), (2, 6), (4, 4), (4, 8)]  # with filters


def by_the_formula(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """Returns what torch.nn.Conv2d's documentation writes out, of (N, C, H, W) and (out, C / groups, kH, kW)."""
    filters, channels, *kernel = weight.shape
    sides = [
        (size + 2 * amount - by * (taps - 1) - 1) // step + 1
        for size, amount, by, taps, step in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    output = np.zeros((len(x), filters, *sides))
    for of, row, column in np.ndindex(*output.shape[1:]):
        group = of // (filters // groups)
        seen = x[:, group * channels : (group + 1) * channels]
        for down, right in itertools.product(*map(range, kernel)):
            y = row * stride[0] - padding[0] + down * dilation[0]
            z = column * stride[1] - padding[1] + right * dilation[1]
            if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                output[:, of, row, column] += seen[:, :, y, z] @ weight[of, :, down, right]
    return output if bias is None else output + bias[:, None, None]


def drawn(groups: int, filters: int) -> tuple[Any, Any, Any]:
    """Returns an image, a weight and a bias of small integers, in PyTorch's order of axes."""
    rng = np.random.default_rng(filters)
    shapes = (2, 4, 10, 11), (filters, 4 // groups, 3, 2), (filters,)
    image, weight, bias = (rng.integers(-3, 4, shape).astype("f4") for shape in shapes)
    return image, weight, bias


@pytest.mark.parametrize(("groups", "filters"), GROUPS)
@pytest.mark.parametrize(("stride", "dilation", "padding"), STEPS)
def test_a_server_computes_pytorchs_formula(
    client: Client, stride: Any, dilation: Any, padding: Any, groups: int, filters: int
) -> None:
    x, weight, bias = drawn(groups, filters)
    expected = by_the_formula(x, weight, bias, stride, padding, dilation, groups)
    policy = ("float32", "float64", "float16", "mixed_bfloat16")[(filters + stride[0]) % 4]
    for data_format in ("channels_first", "channels_last"):
        dtype = policy if data_format == "channels_last" else "float32"
        config = Conv2D(filters, (3, 2), stride, padding, data_format, dilation, groups, dtype=dtype)
        layer, is_last = Layer(config, weight.transpose(2, 3, 1, 0), bias), data_format == "channels_last"
        image = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if is_last else x
        planned, computed = client.plan(layer, image.shape), client.convolve(layer, image, output_dtype="float32")
        found = computed.output.transpose(0, 3, 1, 2) if is_last else computed.output
        np.testing.assert_array_equal(found, expected)
        assert planned.admitted
        assert planned.output_shape == computed.output.shape
        assert planned.flops == expected.size * (2 * weight[0].size + 1)


@pytest.mark.parametrize(("stride", "dilation", "padding"), STEPS)
def test_the_formula_is_pytorchs(stride: Any, dilation: Any, padding: Any) -> None:
    torch = pytest.importorskip("torch")
    for groups, filters in GROUPS:
        arrays = drawn(groups, filters)
        found = torch.nn.functional.conv2d(*map(torch.from_numpy, arrays), stride, padding, dilation, groups)
        np.testing.assert_array_equal(by_the_formula(*arrays, stride, padding, dilation, groups), found.numpy())


def test_a_stored_layer_comes_back_with_both(client: Client) -> None:
    x, weight, bias = drawn(1, 3)
    config = Conv2D(3, (3, 2), strides=2, dilation_rate=2, padding=0, data_format="channels_first", dtype="float32")
    stored = client.put(Layer(config, weight.transpose(2, 3, 1, 0), bias), name="stride-and-dilation")
    found = client.layer("stride-and-dilation")
    assert found.config == config
    assert found.digest == stored.digest
    expected = by_the_formula(x, weight, bias, (2, 2), (0, 0), (2, 2), 1)
    np.testing.assert_array_equal(found(x), expected)


def test_keras_has_no_such_layer() -> None:
    layer = Layer(Conv2D(3, 3, strides=2, dilation_rate=2, padding=1))
    with pytest.raises(InvalidConfigurationError, match=r"strides: Expected .* as Keras has no layer in which both"):
        layer.to_keras()
