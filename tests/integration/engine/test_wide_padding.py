"""Windows and padding far larger than the image: what the definition says, and no memory for padding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import convserve
from tests.support.engines.numpy_engine import padding
from tests.support.processes import status
from tests.support.servers.server_process import RunningServer

FAR, CHANNELS = 6000, 3  # rows times columns of 4 bytes and 3 channels: 432 MB
CASES: dict[str, dict[str, Any]] = {
    "dilation, same": {"kernel_size": 3, "dilation_rate": FAR, "padding": "same"},
    "dilation along one axis": {"kernel_size": (3, 2), "dilation_rate": (FAR, 1), "padding": "same"},
    "dilation of a single row": {"kernel_size": (1, 2), "dilation_rate": (FAR, 3), "padding": "valid"},
    "dilation as large as the image": {"kernel_size": 3, "dilation_rate": 7, "padding": "same"},
    "padding": {"kernel_size": 3, "strides": FAR, "padding": ((FAR, FAR), (FAR, FAR))},
    "dilation and padding": {"kernel_size": (2, 3), "dilation_rate": FAR, "padding": ((FAR, 0), (FAR, FAR))},
    "strides, dilation and padding": {"kernel_size": 3, "strides": FAR, "dilation_rate": FAR, "padding": FAR},
    "strides of 3, dilation and padding": {"kernel_size": (2, 3), "strides": 3, "dilation_rate": FAR, "padding": FAR},
    "a kernel wider than the image": {"kernel_size": (41, 43), "padding": "same"},
    "dilation 3, which is ordinary": {"kernel_size": 3, "dilation_rate": 3, "padding": "same"},
}


def by_definition(config: convserve.Conv2D, x: Any, kernel: Any, bias: Any) -> Any:
    """Returns a depthwise layer's output, window by window; padding is zeros, which are multiplied as all else is."""
    x = x if config.data_format == "channels_last" else x.transpose(0, 2, 3, 1)
    shape = config.replace(data_format="channels_last").output_shape(x.shape)
    (top, _), (left, _) = padding(config, x.shape[1:3])
    output = np.zeros(shape, "f4")
    taps = [dilation * np.arange(size) for dilation, size in zip(config.dilation_rate, config.kernel_size, strict=True)]
    for row, column in itertools.product(range(shape[1]), range(shape[2])):
        rows, columns = row * config.strides[0] + taps[0] - top, column * config.strides[1] + taps[1] - left
        window = np.zeros((*config.kernel_size, CHANNELS), "f4")
        in_rows, in_columns = ((at >= 0) & (at < size) for at, size in zip((rows, columns), x.shape[1:3], strict=True))
        window[np.ix_(in_rows, in_columns)] = x[0][np.ix_(rows[in_rows], columns[in_columns])]
        with np.errstate(invalid="ignore"):
            output[0, row, column] += (np.repeat(window, 2, axis=2) * kernel[:, :, 0]).sum(axis=(0, 1))
    output += bias
    return output if config.data_format == "channels_last" else output.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", CASES)
def test_what_the_window_does_not_reach_costs_nothing(
    server: RunningServer, client: convserve.Client, name: str, data_format: Any
) -> None:
    rng = np.random.default_rng(7)
    arguments = {"filters": 2 * CHANNELS, "groups": CHANNELS, "data_format": data_format, "dtype": "float32"}
    config = convserve.Conv2D(**arguments, **CASES[name])
    shape = (1, 8, 9, CHANNELS) if data_format == "channels_last" else (1, CHANNELS, 8, 9)
    x = rng.integers(-9, 10, shape).astype("f4")
    kernel = rng.integers(-9, 10, (*config.kernel_size, 1, 2 * CHANNELS)).astype("f4")
    bias = rng.integers(-9, 10, 2 * CHANNELS).astype("f4")
    before = status(server.process.pid, "VmHWM")
    # As in Keras, 0 * inf is nan in padding too; but oneDNN's kernels multiply no padding.
    odd = () if client.info().onednn else (-np.inf, np.nan)
    for tap in (kernel[0, 0, 0, 0], *odd, np.float32(-0.0)):
        kernel[0, 0, 0, 0] = tap
        found = client.convolve(convserve.Layer(config, kernel, bias), x).output
        expected = by_definition(config, x, kernel, bias)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[found == 0]))
    assert status(server.process.pid, "VmHWM") - before < FAR * FAR * 4 * CHANNELS / 4
