"""BatchNorms among arrays by name: recognised in each framework's names, and folded where the caller says so."""

import numpy as np
import pytest

import convserve
from convserve import importing
from tests.support.engines.numpy_engine import convolved

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(4, 2, 3, 3)).astype("f4")  # PyTorch's order
CONV_BIAS, GAMMA, BETA, MEAN = RNG.normal(size=(4, 4)).astype("f4")
VARIANCE = RNG.random(4).astype("f4")
X = RNG.normal(size=(1, 6, 7, 2)).astype("f4")


def pytorchs(name, **changes):
    """Returns a BatchNorm2d's arrays."""
    parts = {"weight": GAMMA, "bias": BETA, "running_mean": MEAN, "running_var": VARIANCE, "num_batches_tracked": 7}
    return {f"{name}.{part}": np.asarray(array) for part, array in (parts | changes).items() if array is not None}


def read(tmp_path, arrays, **options):
    np.savez(tmp_path / "net.npz", **arrays)
    return importing.read(tmp_path / "net.npz", prefix="", **options)


def normalized(layer, gamma, beta, epsilon=1e-5):
    """Returns what a BatchNorm makes of a layer's output, before an activation, in float64."""
    y = convolved(layer, X)
    return (y - MEAN) / np.sqrt(np.float64(VARIANCE) + epsilon) * gamma + beta


def test_a_batch_norm_that_nobody_names_is_listed_as_one(tmp_path):
    arrays = {"conv1.weight": WEIGHT} | pytorchs("bn1") | pytorchs("bn2", weight=None, bias=None)
    imported = read(tmp_path, arrays, stride=1)
    assert list(imported.layers) == ["conv1"]
    assert [(each.name, each.kind) for each in imported.skipped] == [("bn1", "BatchNorm"), ("bn2", "BatchNorm")]
    assert all("not folded: name it as batch_norm in the configuration" in each.reason for each in imported.skipped)
    assert imported.note.startswith("the model computes 2 BatchNorm beside these layers")
    assert "batch_norm in a layer's configuration" in imported.note


@pytest.mark.parametrize("bias", [None, CONV_BIAS])
@pytest.mark.parametrize(("gamma", "beta"), [(GAMMA, BETA), (None, BETA), (GAMMA, None), (None, None)])
def test_a_batch_norm_is_folded_before_the_activation(tmp_path, bias, gamma, beta):
    arrays = {"conv1.weight": WEIGHT} | pytorchs("bn1", weight=gamma, bias=beta)
    arrays |= {} if bias is None else {"conv1.bias": bias}
    config = {"conv1": {"stride": 2, "padding": 3, "batch_norm": "bn1", "activation": "relu"}}
    imported = read(tmp_path, arrays, config=config)
    assert imported.skipped == []
    layer, alone = imported.layers["conv1"], read(tmp_path, arrays, stride=2, padding=3).layers["conv1"]
    assert layer.config == alone.config.replace(activation="relu", use_bias=True)
    expected = normalized(alone, 1 if gamma is None else gamma, 0 if beta is None else beta)
    np.testing.assert_allclose(convolved(layer, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "conv", "norm", "epsilon"),
    [
        (("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"), "conv.weight", "bn", 1e-5),
        (("params.bn.scale", "params.bn.bias", "batch_stats.bn.mean", "batch_stats.bn.var"), "params.conv.kernel",
         "params.bn", 1e-5),
        (("params/b/bn/scale", "params/b/bn/bias", "batch_stats/b/bn/mean", "batch_stats/b/bn/var"),
         "params/b/conv/kernel", "params/b/bn", 1e-5),
        (("n/bn/gamma:0", "n/bn/beta:0", "n/bn/moving_mean:0", "n/bn/moving_variance:0"), "n/conv/kernel:0", "n/bn",
         1e-3),
    ],
)  # fmt: skip
def test_names_are_those_of_each_framework(tmp_path, names, conv, norm, epsilon):
    kernel = WEIGHT if conv.endswith("weight") else WEIGHT.transpose(2, 3, 1, 0)
    arrays = dict(zip(names, (GAMMA, BETA, MEAN, VARIANCE), strict=True)) | {conv: kernel}
    (skipped,) = read(tmp_path, arrays, stride=1).skipped
    assert (skipped.name, skipped.kind) == (norm, "BatchNorm")
    for given in ("bn", norm):  # beside the layer, and by its whole name
        for own in (None, 0.25):
            options = {"batch_norm": given, "stride": 1} | ({} if own is None else {"eps": own})
            (layer,) = read(tmp_path, arrays, **options).layers.values()
            (alone,) = read(tmp_path, arrays, stride=1).layers.values()
            expected = normalized(alone, GAMMA, BETA, epsilon if own is None else own)
            np.testing.assert_allclose(convolved(layer, X), expected, rtol=1e-5, atol=1e-5)


def test_a_pattern_names_what_stands_beside_each_layer(tmp_path):
    arrays = {}
    for number, block in enumerate(("", "layer1.0.", "layer1.1.")):
        arrays |= {f"{block}conv1.weight": WEIGHT + number} | pytorchs(f"{block}bn1", bias=BETA + number)
    imported = read(tmp_path, arrays, config={"*conv1": {"padding": 1, "batch_norm": "bn1"}})
    assert imported.skipped == []
    for number, layer in enumerate(imported.layers.values()):
        alone = read(tmp_path, {"c.weight": WEIGHT + number}, padding=1).layers["c"]
        np.testing.assert_allclose(convolved(layer, X), normalized(alone, GAMMA, BETA + number), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arrays",
    [
        pytorchs("x", running_var=None),
        pytorchs("x", running_mean=None, running_var=None),  # a LayerNorm looks like it
        pytorchs("x", running_var=VARIANCE[:3]),
        pytorchs("x", weight=WEIGHT[0, 0]),
        pytorchs("x", running_mean=MEAN.astype("i8")),
        pytorchs("x") | {"x.scale": GAMMA},
    ],
)
def test_what_is_no_batch_norm_is_none(tmp_path, arrays):
    imported = read(tmp_path, {"conv.weight": WEIGHT} | arrays, stride=1)
    assert list(imported.layers) == ["conv"]
    assert {each.name for each in imported.skipped} == arrays.keys()
    assert not any(each.kind == "BatchNorm" for each in imported.skipped)


@pytest.mark.parametrize(
    ("arrays", "config", "words"),
    [
        ({}, {"batch_norm": "bn2"}, r"conv1.batch_norm: Expected the name .* \(bn1\). Received 'bn2'. .* mean 'bn1'\?"),
        (pytorchs("bn1", weight=GAMMA[:3], bias=BETA[:3], running_mean=MEAN[:3], running_var=VARIANCE[:3]),
         {"batch_norm": "bn1"}, "'bn1': its arrays have the shapes"),
        (pytorchs("bn1", running_var=-VARIANCE - 1), {"batch_norm": "bn1"}, "weights are not finite"),
        ({}, {"batch_norm": "bn1", "activity_regularizer": "l2"}, "activity_regularizer"),
        ({}, {"eps": 1e-3}, r"conv1.epsilon: Expected batch_norm beside it.* Received epsilon=0.001 alone"),
        ({"conv2.weight": WEIGHT}, {"batch_norm": "bn1"}, "a BatchNorm of this layer alone. Received 'bn1', which"),
    ],
)  # fmt: skip
def test_a_batch_norm_that_does_not_fit_is_told_with_its_layer(tmp_path, arrays, config, words):
    every = {"conv1.weight": WEIGHT} | pytorchs("bn1") | arrays
    with pytest.raises(convserve.InvalidConfigurationError, match=words):
        read(tmp_path, every, config={"conv?": {"stride": 1, **config}})
