"""Plans are Keras' arithmetic, for layers and inputs that nobody computes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import convserve
from tests.support.keras import truth
from tests.support.keras.calls import INPUT_DTYPES, POLICIES, Call, examples


@st.composite
def large_calls(draw: Any) -> Call:
    """Draws layers and inputs of any size; nothing is computed with them."""
    groups, channels = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    spatial = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
    windows = st.tuples(st.integers(1, 40), st.integers(1, 40))
    steps = st.tuples(st.integers(1, 40), st.integers(1, 40))
    strides, dilation = draw(st.tuples(steps, st.just((1, 1))) | st.tuples(st.just((1, 1)), steps))
    first = draw(st.booleans())
    batch, sizes = draw(st.integers(1, 1000)), draw(spatial)
    values = {
        "filters": groups * draw(st.integers(1, 64)),
        "kernel_size": draw(windows),
        "strides": strides,
        "padding": draw(st.sampled_from(("valid", "same"))),
        "data_format": "channels_first" if first else "channels_last",
        "dilation_rate": dilation,
        "groups": groups,
        "use_bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(tuple(POLICIES))),
    }
    shape = (batch, channels * groups, *sizes) if first else (batch, *sizes, channels * groups)
    return Call(values, "convserve", shape, draw(st.sampled_from(INPUT_DTYPES)))


@given(call=large_calls())
@examples(150)
def test_plans_are_keras_arithmetic(client: convserve.Client, call: Call) -> None:
    """Keras' shape, or Keras' refusal; and the server plans as the client does."""
    try:
        shape = truth.keras_layer(call.arguments).compute_output_shape(call.shape)
    except ValueError:
        with pytest.raises(convserve.InvalidTensorError) as caught:
            call.config.plan(call.shape)
        assert [each.field for each in caught.value.violations] == ["input"]
        return
    pure = call.config.plan(call.shape, input_dtype=call.dtype)
    assert pure.output_shape == shape
    assert pure.admitted is None
    asked = client.plan(call.config, call.shape, input_dtype=call.dtype)
    assert asked.admitted is (asked.refusal is None)
    assert dataclasses.replace(asked, admitted=None, refusal=None) == pure
