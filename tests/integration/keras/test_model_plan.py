"""`convserve.keras.plan`: calls and bytes of a forward pass, as they then are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from convserve.keras import plan, to_remote
from tests.support.keras.models import CountedCalls, with_random_statistics
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers


def model_of() -> Any:
    def parts() -> list[Any]:
        return [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]

    inner = keras.Sequential([keras.Input((None, None, 3)), *parts(), layers.SeparableConv2D(3, 3)], name="inner")
    x, bytes_, steps = keras.Input((12, 12, 3)), keras.Input((12, 12, 3), dtype="uint8"), keras.Input((2, 12, 3))
    y = layers.DepthwiseConv2D(3, dtype="mixed_float16", name="narrow")(inner(x))
    outputs = [
        layers.Conv2D(2, 1, activation="glu", name="halved")(inner(y)),
        layers.Conv2D(2, 1, name="of_bytes")(bytes_),
        layers.TimeDistributed(layers.Conv1D(4, 3, name="step"))(steps),
    ]
    return with_random_statistics(keras.Model([x, bytes_, steps], outputs))


def test_a_forward_pass_is_as_planned(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    shapes = [(3, 12, 12, 3), (3, 12, 12, 3), (3, 2, 12, 3)]
    random = np.random.default_rng(0)
    inputs = [
        random.integers(0, 9, shape).astype(tensor.dtype) for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    planned = plan(model, shapes)
    for fuse, traffic in ((False, planned.separate), (True, planned.fused)):
        with monkeypatch.context() as patched:
            counted = CountedCalls(patched)
            to_remote(model, server.target, fuse=fuse)(inputs)
        assert (counted.calls, counted.input_bytes, counted.output_bytes) == (
            traffic.count, traffic.input_bytes, traffic.output_bytes
        )  # fmt: skip
    assert planned.separate.flops == planned.fused.flops > 0
    assert planned.separate.count > planned.fused.count


def test_it_shows_itself_as_a_table() -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(2, 1)])
    planned = plan(model)
    assert repr(planned).splitlines() == [
        "                             calls       sent   received         work",
        "to_remote(model)                 2   1.344 kB  864 bytes  8.568 kFLOP",
        "to_remote(model, fuse=True)      1  768 bytes  288 bytes  8.568 kFLOP",
    ]
    assert "<td>to_remote(model, fuse=True)</td><td>1</td>" in planned._repr_html_()
    assert [call.layers for call in planned.fused.calls] == [tuple(each.name for each in model.layers)]
    assert planned.fused.calls[0].input_shape == (1, 8, 8, 3)
    assert plan(to_remote(model, "127.0.0.1:1", fuse=True)) == planned
    assert plan(model, (5, 8, 8, 3), only=[model.layers[1].name]).separate.count == 1
    assert plan(model, {model.inputs[0].name: (5, 8, 8, 3)}).fused.input_bytes == 5 * 768


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 9, 3), (None, 8, 8, 3), "no", 5, [(1, 8, 8, 3)] * 2, {"x": 3}])
def test_a_shape_that_is_none_of_the_models_is_refused(shape: Any) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)])
    with pytest.raises(convserve.InvalidRequestError, match="input_shape: Expected"):
        plan(model, shape)


def test_several_inputs_have_several_shapes() -> None:
    image, other = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    model = keras.Model([image, other], layers.Conv2D(4, 3)(image))
    assert plan(model, [(2, 8, 8, 3)] * 2).separate.calls[0].input_shape == (2, 8, 8, 3)
    for shape in (5, (2, 8, 8, 3)):
        with pytest.raises(convserve.InvalidRequestError, match="input_shape: Expected"):
            plan(model, shape)


def test_other_models_are_refused() -> None:
    for model in (None, layers.Conv2D(4, 3)):
        with pytest.raises(convserve.InvalidRequestError, match="Sequential or Functional"):
            plan(model)
    with pytest.raises(convserve.InvalidRequestError, match="a built model"):
        plan(keras.Sequential([layers.Conv2D(4, 3)]))
    with pytest.raises(convserve.InvalidRequestError, match="input_shape: Expected"):
        plan(keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)]))
