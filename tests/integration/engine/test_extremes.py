"""Numbers as large as their fields take, single and combined: computed, or refused as the caller's, never a defect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import Client, Conv2D, DeadlineExceededError, InvalidArgumentError, InvalidTensorError, RetryRule
from tests.support.servers.server_process import RunningServer, running_server

M = 2**31 - 1
LARGE = st.sampled_from((2**15, 2**16, 2**24, 2**30 - 1, 2**30, 2**30 + 1, M - 8, M - 1, M))
SMALL = st.integers(1, 4)
NUMBER = SMALL | LARGE
PAIR = st.tuples(NUMBER, NUMBER)
AMOUNT = st.just(0) | NUMBER
PADDING = st.tuples(st.tuples(AMOUNT, AMOUNT), st.tuples(AMOUNT, AMOUNT))


@pytest.fixture(scope="module")
def small() -> Any:
    """A server that computes nothing that takes long, and a client of it."""
    limits = ("--max-call-bytes", "1000000", "--max-batch-samples", "1")
    with running_server(*limits) as server, Client(server.target, retry=RetryRule(attempts=1), timeout=60) as client:
        yield server, client


@st.composite
def calls(draw: Any) -> tuple[Conv2D, tuple[int, ...]]:
    """Draws a layer and its input's shape."""
    groups, data_format = draw(st.integers(1, 3)), draw(st.sampled_from(("channels_last", "channels_first")))
    channels, sizes = groups * draw(st.integers(1, 2)), (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    padding = draw(st.sampled_from(("same", "valid")) | PADDING)
    names = [["strides"], ["dilation_rate"], *([] if isinstance(padding, str) else [["strides", "dilation_rate"]])]
    steps = {name: draw(PAIR) for name in draw(st.sampled_from(names))}
    config = Conv2D(
        groups * draw(SMALL | st.just(M // groups)),
        draw(st.tuples(SMALL, SMALL) | st.tuples(SMALL, SMALL) | PAIR),
        padding=padding,
        data_format=data_format,
        groups=groups,
        dtype=draw(st.sampled_from(("float32", "float16", "bfloat16", "float64"))),
        kernel_initializer="ones",
        **steps,
    )
    return config, (1, *sizes, channels) if data_format == "channels_last" else (1, channels, *sizes)


@given(call=calls())
@settings(max_examples=40, derandomize=True)
def test_extremes_are_computed_or_refused_and_no_defect(small: Any, call: tuple[Conv2D, tuple[int, ...]]) -> None:
    server, client = small
    config, shape = call
    try:
        planned = client.plan(config, shape)
        answered = client.convolve(config, np.ones(shape, "f4"))
    except (InvalidArgumentError, DeadlineExceededError):  # an InternalError fails the test
        assert server.process.poll() is None
    else:
        assert planned.admitted
        assert answered.output.shape == planned.output_shape


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 8, 8, 4), {"groups": 2, "kernel_size": 3, "strides": M, "padding": ((0, M), (M, 0))}),
        ((1, 8, 8, 4), {"groups": 2, "kernel_size": 3, "dilation_rate": M, "padding": ((M, M), (M, M))}),
        ((1, 8, 8, 2), {"groups": 1, "kernel_size": 3, "strides": 2**20, "padding": ((0, 0), (0, M))}),
        ((1, 9, 9, 2), {"groups": 1, "kernel_size": (3, 2), "strides": (2**24, 1), "padding": ((1, M), (1, 0))}),
    ],
)
def test_padding_that_nobody_counts_is_refused_by_call_and_plan(
    server: RunningServer, client: Client, shape: tuple[int, ...], arguments: Any, dtype: str
) -> None:
    config = Conv2D(4, data_format="channels_last", dtype=dtype, **arguments)
    for ask in (client.plan, lambda config, shape: client.convolve(config, np.ones(shape, "f4"))):
        with pytest.raises(
            InvalidTensorError, match=r"padding: Expected a (height|width) below 2\*\*31 with the padding"
        ):
            ask(config, shape)
    between = [Conv2D(shape[3], 1, data_format="channels_last"), config]
    with pytest.raises(InvalidTensorError, match=r"layers\[1\].padding: Expected"):
        client.plan(between, shape)
