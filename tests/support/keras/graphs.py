"""Models as Keras writes them, with what follows what, and the arrays of layers that are no Conv2Ds."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.keras.archives import BIAS, KERNEL, conv2d, model

GAMMA, BETA, MEAN, VARIANCE = np.float32([[2, 3], [1, -1], [0.5, 4], [3, 8]])
NORMAL = {"0": GAMMA, "1": BETA, "2": MEAN, "3": VARIANCE}


def entry(kind: str, name: str, *reads: str, **config: Any) -> dict[str, Any]:
    """Returns an entry of any class, with connections as Keras 3 writes them."""
    given = {"name": name, "dtype": "float32"} | config
    return following({"module": "keras.layers", "class_name": kind, "config": given, "registered_name": None}, *reads)


def following(layer: dict[str, Any], *reads: str) -> dict[str, Any]:
    """Returns an entry that is called once with each of some layers' outputs."""
    tensors = [{"class_name": "__keras_tensor__", "config": {"shape": [None, 8, 8, 2], "dtype": "float32",
                "keras_history": [name, 0, 0]}} for name in reads]  # fmt: skip
    nodes = [{"args": [tensor], "kwargs": {"mask": None}} for tensor in tensors]
    return layer | {"name": layer["config"]["name"], "inbound_nodes": nodes}


def as_keras_2(layer: dict[str, Any], *reads: str) -> dict[str, Any]:
    return layer | {"name": layer["config"]["name"], "inbound_nodes": [[[name, 0, 0, {}]] for name in reads]}


def normalization(name: str, *reads: str, **config: Any) -> dict[str, Any]:
    return entry("BatchNormalization", name, *reads, **{"axis": -1, "epsilon": 1.0} | config)


def functional(*layers: dict[str, Any], outputs: list[Any], name: str = "m") -> dict[str, Any]:
    made = model(name, *layers)
    made["config"] |= {"input_layers": [["x", 0, 0]], "output_layers": outputs}
    return made


X = entry("InputLayer", "x")


def block(*, last: str = "r") -> dict[str, Any]:
    """Returns padding, convolution, normalization, activation, in Keras 3's words."""
    return functional(
        X, entry("ZeroPadding2D", "p", "x", padding=[[0, 1], [0, 1]], data_format="channels_last"),
        following(conv2d("c"), "p"), normalization("b", "c"), entry("ReLU", "r", "b", max_value=6.0),
        outputs=[last, 0, 0],
    )  # fmt: skip


DEPTHWISE, POINTWISE = KERNEL[..., :1], np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)


def others() -> list[dict[str, Any]]:
    base = {"kernel_size": [3, 3], "data_format": "channels_last"}
    return [
        entry("DepthwiseConv2D", "d", **base, use_bias=False),
        entry("SeparableConv2D", "s", filters=3, **base),
        entry("Conv1D", "c", filters=2, kernel_size=[3], padding="causal", data_format="channels_last"),
        entry("SeparableConv1D", "t", filters=3, kernel_size=[3], use_bias=False, data_format="channels_last"),
        entry("DepthwiseConv1D", "e", kernel_size=[3], use_bias=False, data_format="channels_last"),
    ]


ARRAYS = {
    "d": {"kernel": DEPTHWISE},
    "s": {"depthwise_kernel": DEPTHWISE, "pointwise_kernel": POINTWISE, "bias": np.float32([7, 8, 9])},
    "c": {"kernel": KERNEL[0], "bias": BIAS},
    "t": {"depthwise_kernel": DEPTHWISE[0], "pointwise_kernel": POINTWISE[0]},
    "e": {"kernel": DEPTHWISE[0]},
}
