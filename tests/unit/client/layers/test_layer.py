"""Layer: weights that fit the configuration, and the arguments of `Client.conv2d`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, InvalidArgumentError, InvalidConfigurationError, InvalidWeightsError, Layer
from convserve.layers.layer import given_parameters, planned
from convserve.v1 import layer_pb2

CONFIG = Conv2D(4, 3, groups=2, data_format="channels_last", dtype="float32")
KERNEL = np.arange(3 * 3 * 2 * 4, dtype=np.float64).reshape(3, 3, 2, 4)
BIAS = np.ones(4)


def test_weights_are_cast_to_the_policys_weight_type() -> None:
    layer = Layer(CONFIG, KERNEL, BIAS)
    assert layer.kernel is not None
    assert layer.bias is not None
    assert (layer.kernel.dtype, layer.bias.dtype) == (np.float32, np.float32)
    assert Layer(CONFIG.replace(dtype="mixed_float16"), KERNEL, BIAS).kernel.dtype == np.float32  # type: ignore[union-attr]
    assert Layer(CONFIG.replace(dtype="float16"), KERNEL * 1e9, BIAS).kernel.dtype == np.float16  # type: ignore[union-attr]
    assert layer.input_channels == 4


@pytest.mark.parametrize(
    ("kernel", "bias", "use_bias", "field", "words"),
    [
        (None, BIAS, True, "kernel", "a bias alone"),
        (KERNEL, None, True, "bias", "use_bias=False"),
        (KERNEL, BIAS, False, "bias", "Expected no bias"),
        (KERNEL[:2], BIAS, True, "kernel", "(2, 3, 2, 4)"),
        (KERNEL[..., 0], BIAS, True, "kernel", "(3, 3, 2)"),
        (KERNEL.transpose(3, 2, 0, 1), BIAS, True, "kernel", "kernel.transpose(2, 3, 1, 0)"),
        (KERNEL, BIAS[:3], True, "bias", "(3,)"),
        (KERNEL.astype(int) + 2**24, BIAS, True, "kernel", "int64 numbers that it rounds"),
        (KERNEL, [0, 0, 0, 2**63 - 1], True, "bias", "integers that float32 has exactly"),
        (KERNEL.astype(complex), BIAS, True, "kernel", "complex128"),
        (np.zeros((3, 3, 0, 4)), BIAS, True, "kernel", "at least 1"),
        ([[1, 2], [3]], BIAS, True, "kernel", "Expected an array"),
    ],
)
def test_weights_that_do_not_fit_are_refused(kernel: Any, bias: Any, use_bias: bool, field: str, words: str) -> None:
    with pytest.raises(InvalidWeightsError) as refused:
        Layer(CONFIG.replace(use_bias=use_bias), kernel, bias)
    (violation,) = refused.value.violations
    assert violation.field == field
    assert words in violation.description


@pytest.mark.parametrize("dtype", ["?", "i1", ">i2", "<i4", "i8", "u1", "u2", ">u4", "u8"])
def test_integers_are_numbers(dtype: str) -> None:
    kernel = (KERNEL % 2).astype(dtype)
    layer = Layer(CONFIG, kernel, np.asarray(BIAS, dtype).tolist())
    assert layer.digest == Layer(CONFIG, KERNEL % 2, BIAS).digest


@pytest.mark.parametrize(
    ("number", "dtype", "is_exact"),
    [
        (2**24, "float32", True), (2**24 + 1, "float32", False), (2**30, "float32", True), (-(2**63), "float32", True),
        (2**63 - 1, "float32", False), (2**63, "float64", True), (2**63 - 1, "float64", False),
        (2049, "float16", False), (2050, "float16", True), (65504, "float16", True), (65536, "float16", False),
        (256, "bfloat16", True), (257, "bfloat16", False), (257, "mixed_bfloat16", True),
    ],
)  # fmt: skip
def test_integers_are_taken_where_they_are_exact(number: int, dtype: str, is_exact: bool) -> None:
    config, kernel = Conv2D(1, 1, use_bias=False, dtype=dtype), [[[[number]]]]
    if is_exact:
        assert Layer(config, kernel).kernel == number
    else:
        with pytest.raises(InvalidWeightsError, match=rf"integers that {config.variable_dtype} has exactly"):
            Layer(config, kernel)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8"])
def test_the_bounds_of_every_integer_are_taken_or_refused(dtype: str) -> None:
    info, config = np.iinfo(dtype), Conv2D(1, 1, use_bias=False, dtype="float64")
    for number in (info.min, info.min + 1, info.max - 1, info.max):
        kernel = np.full((1, 1, 1, 1), number, dtype)
        if int(float(number)) == number:
            assert Layer(config, kernel).kernel == number
        else:
            with pytest.raises(InvalidWeightsError, match="that it rounds"):
                Layer(config, kernel)


def test_a_sobel_as_a_list_is_a_kernel() -> None:
    sobel: Any = [[[[-1]], [[0]], [[1]]], [[[-2]], [[0]], [[2]]], [[[-1]], [[0]], [[1]]]]
    assert Layer.from_arguments(None, None, sobel, [3], None, {}).digest == Layer(
        Conv2D(1, 3), np.float32(sobel), np.float32([3])
    ).digest  # fmt: skip


def test_kernel_for_other_channels_is_refused() -> None:
    with pytest.raises(InvalidWeightsError, match=r"\(3, 3, 3, 4\).*6 channels.*\(3, 3, 2, 4\)"):
        Layer(CONFIG, KERNEL, BIAS).check_input_channels(6)


@pytest.mark.parametrize(
    ("groups", "shape", "words"),
    [
        (1, (1, 8, 8, 1), r"^input: Expected as many .* takes, 2\. Received 1 \(input shape .*channels_last'\)\.$"),
        (3, (1, 8, 8, 32), r"^input: Expected as many .* takes, 6\."),  # though groups=3 does not divide 32
        (1, (1, 2, 8, 8), r"Axis 1 has 2: x\.transpose\(0, 2, 3, 1\) is channels_last\.$"),
    ],
)
def test_an_input_of_other_channels_than_the_kernels_is_what_is_wrong(groups: int, shape: Any, words: str) -> None:
    config = Conv2D(6, 3, groups=groups, use_bias=False, data_format="channels_last")
    with pytest.raises(InvalidWeightsError, match=words):
        planned([Layer(config, np.ones((3, 3, 2, 6)))], shape, "float32", None)


@pytest.mark.parametrize("layer", [Layer(CONFIG), Layer(CONFIG, KERNEL, BIAS)])
def test_message_round_trip_keeps_everything(layer: Layer) -> None:
    back = Layer.from_message(layer.to_message())
    assert back.config == layer.config
    assert (back.kernel is None) == (layer.kernel is None)
    if layer.kernel is not None:
        np.testing.assert_array_equal(back.kernel, layer.kernel)
        np.testing.assert_array_equal(back.bias, layer.bias)


def test_message_with_weights_but_no_kernel_is_refused() -> None:
    message = Layer(CONFIG).to_message()
    message.weights.CopyFrom(layer_pb2.Weights())
    with pytest.raises(InvalidWeightsError, match=r"kernel: .*Received none"):
        Layer.from_message(message)


def test_kernel_gives_filters_size_and_use_bias() -> None:
    layer = Layer.from_arguments(None, None, KERNEL, None, None, {"groups": 2})
    assert (layer.config.filters, layer.config.kernel_size, layer.config.use_bias) == (4, (3, 3), False)
    assert Layer.from_arguments(None, None, KERNEL, BIAS, None, {"groups": 2}).config.use_bias


def test_kernel_and_stated_parameters_must_agree() -> None:
    with pytest.raises(InvalidWeightsError, match="kernel"):
        Layer.from_arguments(8, None, KERNEL, None, None, {"groups": 2})
    with pytest.raises(InvalidWeightsError, match="bias"):
        Layer.from_arguments(None, None, KERNEL, None, None, {"groups": 2, "use_bias": True})


@pytest.mark.parametrize(
    ("filters", "size", "kernel", "field"),
    [(None, 3, None, "filters"), (4, None, None, "kernel_size"), (None, None, KERNEL[0], "filters")],
)
def test_what_is_missing_is_named(filters: Any, size: Any, kernel: Any, field: str) -> None:
    with pytest.raises(InvalidConfigurationError) as refused:
        Layer.from_arguments(filters, size, kernel, None, None, {})
    assert refused.value.violations[0].field == field


def test_a_ragged_list_is_no_array() -> None:
    ragged = [[1, 2], [3]]
    with pytest.raises(InvalidWeightsError, match=r"^kernel: Expected an array"):
        Layer.from_arguments(None, None, ragged, None, None, {})
    layer = Layer.from_arguments(None, None, "sobel-x", None, None, {}, ragged)
    assert layer.input_channels == 1  # the call says what is wrong with its input


@pytest.mark.parametrize("config", [None, 5, "conv", {"filters": 4}, Layer(CONFIG)])
def test_a_layer_is_of_a_configuration(config: Any) -> None:
    with pytest.raises(InvalidConfigurationError, match=r"^config: Expected a Conv2D"):
        Layer(config)


def test_unknown_parameter_gets_a_suggestion() -> None:
    with pytest.raises(InvalidConfigurationError, match=r"stride: .*Did you mean strides\?"):
        Layer.from_arguments(4, 3, None, None, None, {"stride": 2})  # type: ignore[typeddict-unknown-key]


def test_seed_is_for_initializers_without_one() -> None:
    assert Layer.from_arguments(4, 3, None, None, 7, {}).config.kernel_initializer.parameters["seed"] == 7
    with pytest.raises(InvalidArgumentError, match="seed"):
        Layer.from_arguments(4, 3, None, None, 1.5, {})  # type: ignore[arg-type]


def test_the_digest_follows_an_array_that_changes() -> None:
    kernel = KERNEL.astype("f4")
    layer, config = Layer(CONFIG.replace(use_bias=False), kernel), CONFIG.replace(use_bias=False)
    before = layer.digest
    kernel[0] = 7
    assert layer.digest == Layer(config, kernel.copy()).digest != before
    kernel.flags.writeable = False
    lasting = Layer(config, kernel)
    assert lasting.digest is lasting.digest


def test_what_is_not_given_is_not_taken_for_given() -> None:
    arguments: dict[str, Any] = {
        name: parameter.default for name, parameter in inspect.signature(convserve.Client.conv2d).parameters.items()
    }
    arguments["unknown"] = {}
    defaults = given_parameters(arguments)
    assert Layer.from_arguments(4, 3, None, None, None, defaults).config == Conv2D(4, 3)
    assert Layer.from_arguments(None, None, KERNEL, None, None, defaults).config == Conv2D(4, 3, use_bias=False)
    given = {"strides": 2, "use_bias": False, "groups": 2, "name": "a"}
    assert given_parameters(arguments | given | {"kernel": KERNEL, "timeout": 3}) == defaults | given
    assert given_parameters(arguments | {"unknown": {"stride": 2}}) == defaults | {"stride": 2}
