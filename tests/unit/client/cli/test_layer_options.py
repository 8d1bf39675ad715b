"""The options that describe a layer and its weights, and what they mean."""

import re
import shlex

import click
import numpy as np
import pytest

import convserve
from convserve.cli.options import values
from convserve.cli.options.layer import layer_options
from convserve.cli.options.weights import layer_for, weight_options


@click.command()
@layer_options()
@weight_options
def described(parameters, weights):
    return parameters, weights


def options(line=""):
    """Returns Conv2D's parameters and the weights that options give, in one line as a shell would split it."""
    with described.make_context("describe", shlex.split(line)) as context:
        return described.invoke(context)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("3,5", (3, 5)), ("3x5", (3, 5)), ("0", 0), ("-1", -1)])
def test_pair(text, value):
    assert values.pair(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("valid", "valid"),
        ("SAME", "same"),
        ("1,2,3,4", ((1, 2), (3, 4))),
        ("0x0x1x1", ((0, 0), (1, 1))),
        ("1", 1),
        ("2,1", (2, 1)),
    ],
)
def test_padding(text, value):
    assert values.padding(text) == value


def test_shape():
    assert values.shape("4,600,600,3") == values.shape("4x600x600x3") == (4, 600, 600, 3)


def test_value_range():
    assert values.limits_or("shared")("-1,2.5") == (-1, 2.5)
    assert values.limits_or("shared")("shared") == "shared"


def test_channels():
    assert values.channels("0,5,64-66") == [0, 5, 64, 65, 66]
    assert len(values.channels("0-99999999999999")) < 20_000  # no memory is filled before it is refused


def test_named_object():
    assert values.named_object("he_normal") == "he_normal"
    text = '{"class_name": "HeNormal", "config": {"seed": 3}}'
    assert values.named_object(text) == {"class_name": "HeNormal", "config": {"seed": 3}}


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (values.pair, "a"),
        (values.pair, ""),
        (values.pair, "1,2,3"),
        (values.pair, "1.5"),
        (values.pair, "3x5x7"),
        (values.padding, "full"),
        (values.padding, "1,1,1"),
        (values.padding, "1.5"),
        (values.shape, "a,b"),
        (values.limits_or("shared"), "0"),
        (values.limits_or("shared"), "Shared"),
        (values.channels, ""),
        (values.channels, "1,"),
        (values.channels, "-1"),
        (values.channels, "1-2-3"),
        (values.channels, "0,5-2"),
        (values.limits_or("shared"), "5,5"),
        (values.limits_or("shared"), "0,inf"),
        (values.named_object, '{"class_name": '),
        (values.named_object, '{"a":' * 100_000),
    ],
)
def test_other_values_are_refused_with_what_was_expected_and_typed(read, text):
    with pytest.raises(click.BadParameter, match=r"(?s)^expected .* Received ") as refused:
        read(text)
    assert repr(text) in refused.value.message


def test_what_is_not_given_is_left_to_conv2d():
    assert options("--filters 2 --kernel-size 3")[0] == {"filters": 2, "kernel_size": 3}
    assert options()[0] == {}


def test_every_flag_reaches_its_parameter():
    parameters, _ = options(
        "--filters 4 --kernel-size 3,5 --strides 2x1 --padding 1,2,3,4 --data-format channels_first --dilation-rate 1 "
        "--groups 2 --activation relu --no-bias --dtype mixed_float16 --name edges --kernel-initializer he_normal "
        "--bias-initializer ones --kernel-regularizer l2 --bias-regularizer l1 --activity-regularizer l1l2 "
        """--kernel-constraint max_norm --bias-constraint '{"class_name": "NonNeg", "config": {}}'"""
    )
    config = convserve.Conv2D(**parameters)
    assert config == convserve.Conv2D(
        filters=4,
        kernel_size=(3, 5),
        strides=(2, 1),
        padding=((1, 2), (3, 4)),
        data_format="channels_first",
        dilation_rate=1,
        groups=2,
        activation="relu",
        use_bias=False,
        kernel_initializer="he_normal",
        bias_initializer="ones",
        kernel_regularizer="l2",
        bias_regularizer="l1",
        activity_regularizer="l1l2",
        kernel_constraint="max_norm",
        bias_constraint="non_neg",
        name="edges",
        dtype="mixed_float16",
    )


def test_a_classic_kernel_filters_each_channel_by_itself():
    layer = layer_for(*options("--kernel gaussian --strides 2"), 3)
    config = layer.config
    assert (config.filters, config.groups, config.use_bias, config.padding) == (3, 3, False, "same")
    assert (config.kernel_size, config.strides) == ((5, 5), (2, 2))
    assert layer.kernel.shape == (5, 5, 1, 3)


def test_padding_of_a_classic_kernel_may_be_chosen():
    assert layer_for(*options("--kernel box --padding valid"), 1).config.padding == "valid"


def test_a_kernel_from_a_file_tells_filters_and_size(tmp_path):
    np.save(tmp_path / "k.npy", np.ones((3, 5, 2, 8)))
    np.save(tmp_path / "b.npy", np.arange(8))
    layer = layer_for(*options(f"--kernel {tmp_path}/k.npy --groups 2"), 4)
    assert (layer.config.filters, layer.config.kernel_size, layer.config.padding) == (8, (3, 5), "valid")
    assert layer.bias is None
    layer = layer_for(*options(f"--kernel {tmp_path}/k.npy --bias {tmp_path}/b.npy"), 2)
    assert layer.bias.dtype == np.float32  # integers typed by hand are meant as numbers
    np.testing.assert_array_equal(layer.bias, np.arange(8))


def test_a_kernel_of_rank_2_is_used_like_a_classic_one(tmp_path):
    np.save(tmp_path / "k.npy", np.array([[1, 2], [3, 4]]))
    layer = layer_for(*options(f"--kernel {tmp_path}/k.npy"), 3)
    assert layer.kernel.shape == (2, 2, 1, 3)
    assert (layer.config.groups, layer.config.padding) == (3, "same")


def test_a_kernel_of_another_rank_is_refused(tmp_path):
    np.save(tmp_path / "k.npy", np.ones(3))
    with pytest.raises(convserve.InvalidWeightsError, match=r"Received shape \(3,\)"):
        layer_for(*options(f"--kernel {tmp_path}/k.npy"), 3)


def test_a_kernel_that_is_no_name_and_no_file_is_refused():
    with pytest.raises(convserve.InvalidConfigurationError, match="Did you mean 'sobel-x'"):
        layer_for(*options("--kernel sobel_x"), 3)
    with pytest.raises(convserve.InvalidTensorError, match="No such file"):
        layer_for(*options("--kernel nowhere/k.npy"), 3)


def test_a_seed_reaches_the_initializers():
    layer = layer_for(*options("--filters 1 --kernel-size 1 --seed 7"), 3)
    assert layer.config.kernel_initializer.parameters["seed"] == 7


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "required: --filters, --kernel-size"),
        ("--filters 3", "required: --kernel-size"),
        ("--filters 3 --kernel-size 3 --bias b.npy", "--bias needs --kernel"),
        ("--kernel box --filters 3", "--filters: not allowed with --kernel"),
        ("--kernel box --kernel-size 3", "--kernel-size: not allowed with --kernel"),
        ("--kernel box --groups 1", "--groups: not allowed with --kernel"),
        ("--kernel box --seed 1", "--seed: not allowed with --kernel"),
        ("--kernel box --kernel-initializer ones", "--kernel-initializer: not allowed with --kernel"),
        ("--kernel box --bias b.npy --no-bias", "--no-bias: not allowed with --bias"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(argv, words):
    with pytest.raises(click.UsageError, match=re.escape(words)):
        layer_for(*options(argv), 3)
