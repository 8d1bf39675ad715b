"""A torch.nn.Conv2d as a layer, read by its attributes; what PyTorch's own modules have is written out here."""

from types import SimpleNamespace

import numpy as np
import pytest

import convserve
from convserve.importing.torch_conv2d import layer_from_torch

WEIGHT = np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2)


class Tensor:
    """What of a torch.Tensor is used: it gives no array before it is detached, and none of bfloat16."""

    def __init__(self, values, dtype="float32", detached=False):
        self.values, self.dtype, self.shape, self.detached = values, f"torch.{dtype}", values.shape, detached

    def detach(self):
        return Tensor(self.values, self.dtype.removeprefix("torch."), True)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, "float32", self.detached)

    def numpy(self):
        assert self.detached
        assert self.dtype != "torch.bfloat16"
        return self.values


def conv2d(**changes):
    """Returns the attributes of torch.nn.Conv2d(3, 4, 2, stride=2, padding=1)."""
    found = {
        "weight": Tensor(WEIGHT), "bias": Tensor(np.ones(4, np.float32)), "stride": (2, 2), "padding": (1, 1),
        "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "transposed": False,
    }  # fmt: skip
    return SimpleNamespace(**found | changes)


def test_the_module_and_the_layer_say_the_same():
    layer = layer_from_torch(conv2d())
    assert layer.config == convserve.Conv2D(
        4, 2, strides=2, padding=((1, 1), (1, 1)), data_format="channels_last", dtype="float32"
    )
    np.testing.assert_array_equal(layer.kernel, WEIGHT.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(layer.bias, np.ones(4))


def test_without_a_bias_and_with_words():
    layer = layer_from_torch(conv2d(bias=None, padding="same", stride=(1, 1), dilation=(2, 1)))
    assert layer.config.padding == "same"
    assert layer.config.dilation_rate == (2, 1)
    assert layer.bias is None


@pytest.mark.parametrize(
    ("dtype", "values"), [("float16", np.float16), ("float64", np.float64), ("bfloat16", np.float32)]
)
def test_it_computes_in_the_modules_dtype(dtype, values):
    module = conv2d(weight=Tensor(WEIGHT.astype(values), dtype), bias=None)
    assert layer_from_torch(module).config.dtype == dtype


class Lazy:
    """The weight of a module that was never called."""

    @property
    def shape(self):
        raise RuntimeError("Can't access the shape of an uninitialized parameter")


@pytest.mark.parametrize(
    "module",
    [
        conv2d(transposed=True), conv2d(weight=Tensor(WEIGHT[0])), conv2d(weight=Lazy()), SimpleNamespace(), None, 3,
        conv2d(weight=Tensor(WEIGHT.astype(np.int8), "qint8")),
    ],
)  # fmt: skip
def test_other_modules_are_refused(module):
    with pytest.raises(convserve.InvalidWeightsError, match=r"kernel: Expected .* Received"):
        layer_from_torch(module)


@pytest.mark.parametrize("changes", [{"padding_mode": "reflect"}, {"dilation": (2, 2)}])
def test_what_a_conv2d_cannot_do_is_refused(changes):
    with pytest.raises(convserve.InvalidConfigurationError, match="Expected"):
        layer_from_torch(conv2d(**changes))
