"""What counts as a right answer: the definition of convolution at some places, and how far rounding may go."""

import numpy as np
import pytest

from convserve import Conv2D, Layer
from convserve.bench import correctness
from convserve.bench.workloads import Workload, standard, with_weights

CONFIG = Conv2D(2, 1, use_bias=False, data_format="channels_last", dtype="float32")
LAYER = Layer(CONFIG, np.float32([[[[1, 10], [2, 20]]]]))
X = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
Y = X @ LAYER.kernel[0, 0]


def expectations(layer=LAYER, x=X, y=Y):
    plan = layer.config.plan(x.shape)
    whole = correctness.Expectation(plan.output_shape, plan.output_dtype, y)
    return whole, correctness.by_definition(layer, x, plan)


def test_a_right_answer_does_not_differ():
    for expected in expectations():
        assert expected.difference(Y) == 0.0


def test_one_wrong_value_is_seen_where_one_looks():
    whole, places = expectations()
    wrong = Y.copy()
    wrong[0, 0, 0, 1] += 3.0  # a corner, which is always among the places
    for expected in (whole, places):
        assert expected.difference(wrong) == pytest.approx(3.0 / np.abs(Y).max())


def test_rows_of_another_caller_are_wrong():
    for expected in expectations():
        assert expected.difference(Y[::-1]) > 0.1


@pytest.mark.parametrize("spoilt", [Y[:1], Y.astype(np.float64), Y[..., :1], np.full_like(Y, np.nan)])
def test_another_shape_or_dtype_or_nan_differs_infinitely(spoilt):
    for expected in expectations():
        assert expected.difference(spoilt) == np.inf


def test_equal_infinities_are_equal():
    infinite = np.where(Y > 100, np.float32(np.inf), Y)
    whole, _ = expectations(y=infinite)
    assert whole.difference(infinite) == 0.0
    assert whole.difference(Y) == np.inf


def test_zeros_are_compared_too():
    whole, _ = expectations(y=np.zeros_like(Y))
    assert whole.difference(np.zeros_like(Y)) == 0.0
    assert whole.difference(Y) == np.inf


def test_the_definition_knows_relu_and_bias():
    config = CONFIG.replace(activation="relu", use_bias=True)
    layer = Layer(config, -LAYER.kernel, np.float32([50, 0]))
    _, places = expectations(layer)
    assert places.difference(np.maximum(np.float32([50, 0]) - Y, 0)) == 0.0


@pytest.mark.parametrize("activation", ["gelu", "softmax", {"class_name": "ReLU", "config": {"max_value": 6.0}}])
def test_other_activations_are_keras_to_define(activation):
    layer = Layer(CONFIG.replace(activation=activation), LAYER.kernel)
    assert expectations(layer)[1] is None


def test_the_limit_goes_by_what_is_computed_with():
    assert correctness.limit(CONFIG, tf32=False) < correctness.limit(CONFIG, tf32=True)
    half = CONFIG.replace(dtype="mixed_float16")
    assert correctness.limit(half, tf32=True) == correctness.LIMITS["float16"]


# Workloads


def test_the_standard_workloads_are_calls_that_can_be_made():
    names = [each.name for each in standard()]
    assert len(names) == len(set(names)) == 4
    for workload in standard():
        assert workload.plan().output_shape[0] == workload.input_shape[0]
        assert workload.layer.kernel is not None


def test_inputs_differ_unless_they_are_large():
    few = Workload("w", LAYER, (1, 4, 4, 2)).inputs()
    assert len(few) == 4
    assert not np.array_equal(few[0], few[1])
    assert len(Workload("w", LAYER, (1, 4000, 4000, 2)).inputs()) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "uint8", "int8"])
def test_inputs_have_the_dtype_asked_for(dtype):
    (x, *_) = Workload("w", LAYER, (1, 8, 8, 2), dtype).inputs()
    assert (x.dtype.name, x.shape) == (dtype, (1, 8, 8, 2))
    assert x.std() > 0


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_weights_fit_the_input_and_do_not_change(data_format):
    config = Conv2D(6, 3, groups=2, data_format=data_format)
    shape = (1, 9, 9, 4) if data_format == "channels_last" else (1, 4, 9, 9)
    layer = with_weights(config, shape)
    assert layer.kernel.shape == (3, 3, 2, 6)
    assert layer.digest == with_weights(config, shape).digest != with_weights(config, shape, seed=1).digest
