"""The digest: what proto/convserve/v1/layer.proto says of it suffices to compute it, and it identifies what computes.

The first half is a second implementation, written from that comment and from the defaults in the contract's comments;
it shares nothing with convserve. `python tests/unit/client/layers/test_digest.py` fills in text and digest of
vectors that are added
to proto/convserve/v1/digest_test_vectors.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from convserve import Conv2D, Layer, activations
from convserve.layers import messages
from convserve.layers.digest import canonical_text, digest
from convserve.tensors.codec import Array, numpy_dtype
from convserve.v1 import conv2d_pb2
from tests.support.repository import ROOT

VECTORS_FILE = ROOT / "proto/convserve/v1/digest_test_vectors.json"
VECTORS: list[dict[str, Any]] = json.loads(VECTORS_FILE.read_text(encoding="utf-8"))

# The second implementation


class Real(float):
    """A parameter that is a real number; plain integers and truth values are themselves."""


PARAMETERS: dict[str, dict[str, Any]] = {
    "relu": {"negative_slope": Real(0), "max_value": None, "threshold": Real(0)},
    "leaky_relu": {"negative_slope": Real(0.2)},
    "softmax": {"axis": -1},
    "gelu": {"approximate": False},
    "threshold": {"threshold": None, "default_value": None},
    "l1": {"l1": Real(0.01)},
    "l2": {"l2": Real(0.01)},
    "l1l2": {"l1": Real(0), "l2": Real(0)},
    "max_norm": {"max_value": Real(2), "axis": [0]},
    "min_max_norm": {"min_value": Real(0), "max_value": Real(1), "rate": Real(1), "axis": [0]},
    "unit_norm": {"axis": [0]},
    "non_neg": {},
}
REAL = {"negative_slope", "max_value", "threshold", "default_value", "l1", "l2", "min_value", "rate"}
WEIGHT_TYPES = {"mixed_float16": "float32", "mixed_bfloat16": "float32"}


def by_the_comment(vector: dict[str, Any]) -> tuple[str, str]:
    """Returns canonical text and digest, in hexadecimal, of a vector."""
    conv2d = vector["conv2d"]
    lines = ["convserve.v1.layer", f"filters={conv2d['filters']}"]
    for field, default in (("kernelSize", None), ("strides", (1, 1))):
        lines.append(f"{snake(field)}={pair(conv2d.get(field), default)}")
    lines.append(f"padding={padding(conv2d.get('padding', {'mode': 'PADDING_MODE_VALID'}))}")
    lines.append(f"data_format={conv2d['dataFormat'].removeprefix('DATA_FORMAT_').lower()}")
    lines.append(f"dilation_rate={pair(conv2d.get('dilationRate'), (1, 1))}")
    lines.append(f"groups={conv2d.get('groups', 1)}")
    lines.append(f"activation={named(conv2d.get('activation', {'linear': {}}))}")
    lines.append(f"use_bias={value(conv2d.get('useBias', True))}")
    for field in ("kernelRegularizer", "biasRegularizer", "activityRegularizer", "kernelConstraint", "biasConstraint"):
        lines.append(f"{snake(field)}={named(conv2d.get(field))}")
    policy = conv2d.get("dtype", "DTYPE_POLICY_FLOAT32").removeprefix("DTYPE_POLICY_").lower()
    lines.append(f"dtype={policy}")
    lines.append(f"trainable={value(conv2d.get('trainable', True))}")
    elements = b""
    for name in ("kernel", "bias"):
        weight, dtype = vector[name], WEIGHT_TYPES.get(policy, policy)
        lines.append(f"{name}=none" if weight is None else f"{name}={dtype}[{','.join(map(str, weight['shape']))}]")
        elements += b"" if weight is None else cast(bytes.fromhex(weight["data"]), weight["dtype"], dtype)
    text = "".join(f"{line}\n" for line in lines)
    return text, hashlib.sha256(text.encode("ascii") + elements).hexdigest()


def snake(camel: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", camel)


def pair(size: dict[str, int] | None, default: Any) -> str:
    height, width = (size["height"], size["width"]) if size else default
    return f"{height},{width}"


def padding(sent: dict[str, Any]) -> str:
    if "mode" in sent:
        return str(sent["mode"]).removeprefix("PADDING_MODE_").lower()
    return "explicit=" + ",".join(str(sent["explicit"].get(side, 0)) for side in ("top", "bottom", "left", "right"))


def named(sent: dict[str, Any] | None) -> str:
    if sent is None:
        return "none"
    ((camel, given),) = sent.items()
    parameters = dict(PARAMETERS.get(snake(camel), {}))
    parameters |= {snake(key): Real(each) if snake(key) in REAL else each for key, each in given.items()}
    return f"{snake(camel)}({';'.join(f'{key}={value(parameters[key])}' for key in sorted(parameters))})"


def value(of: Any) -> str:
    if of is None:
        return "none"
    if isinstance(of, bool):
        return "true" if of else "false"
    if isinstance(of, float):
        return struct.pack(">d", of).hex()
    return ",".join(map(str, of)) if isinstance(of, list) else str(of)


FORMATS = {"float64": "<d", "float32": "<f", "float16": "<e"}


def cast(elements: bytes, given: str, wanted: str) -> bytes:
    if given == wanted:
        return elements
    return b"".join(rounded(number, wanted) for (number,) in struct.iter_unpack(FORMATS[given], elements))


def rounded(number: float, wanted: str) -> bytes:
    if wanted == "bfloat16":
        bits = int.from_bytes(rounded(number, "float32"), "little")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to_bytes(2, "little")
    try:
        return struct.pack(FORMATS[wanted], number)
    except OverflowError:
        return struct.pack(FORMATS[wanted], float("inf") if number > 0 else float("-inf"))


# The vectors


def weight(sent: dict[str, Any] | None) -> Array | None:
    if sent is None:
        return None
    return np.frombuffer(bytes.fromhex(sent["data"]), numpy_dtype(sent["dtype"])).reshape(sent["shape"])


def layer_of(vector: dict[str, Any]) -> Layer:
    message = json_format.ParseDict(vector["conv2d"], conv2d_pb2.Conv2D())
    return Layer(messages.from_message(message), weight(vector["kernel"]), weight(vector["bias"]))


def by_convserve(vector: dict[str, Any]) -> tuple[str, str]:
    layer = layer_of(vector)
    assert layer.kernel is not None
    return canonical_text(layer.config, layer.kernel, layer.bias), layer.digest.hex()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["shows"] for vector in VECTORS])
def test_vector_follows_from_the_contracts_comment_and_from_convserve(vector: dict[str, Any]) -> None:
    recorded = "".join(f"{line}\n" for line in vector["text"]), vector["digest"]
    assert by_the_comment(vector) == recorded
    assert by_convserve(vector) == recorded


def test_vectors_differ_but_for_the_two_that_say_so() -> None:
    same = [vector["digest"] for vector in VECTORS if vector["shows"].startswith("name, input_shape")]
    assert len(same) == 1
    assert len({vector["digest"] for vector in VECTORS}) == len(VECTORS) - 1


# What matters

CONFIG = Conv2D(2, 3, data_format="channels_last", dtype="float32")
KERNEL = np.linspace(-1, 1, 36, dtype="f4").reshape(3, 3, 2, 2)
BIAS = np.float32([0, 1])


LABELS: list[dict[str, Any]] = [
    {"name": "edges"},
    {"name": "Kantenfilter für 縁"},
    {"input_shape": (600, 600, 2)},
    {"kernel_initializer": "he_normal"},
    {"bias_initializer": "ones"},
]
CHANGES: list[dict[str, Any]] = [
    {"strides": 2},
    {"strides": (1, 2)},
    {"strides": (2, 1)},
    {"padding": "same"},
    {"padding": ((0, 0), (0, 0))},
    {"padding": ((1, 0), (0, 0))},
    {"padding": ((0, 0), (0, 1))},
    {"data_format": "channels_first"},
    {"dilation_rate": (1, 2)},
    {"groups": 2},
    {"activation": "relu"},
    {"activation": "leaky_relu"},
    {"activation": activations.LeakyReLU(negative_slope=0.3)},
    {"activation": activations.ReLU(max_value=6)},
    {"activation": "softmax"},
    {"activation": activations.Softmax(axis=3)},
    {"kernel_regularizer": "l1"},
    {"kernel_regularizer": "l2"},
    {"bias_regularizer": "l2"},
    {"activity_regularizer": "l2"},
    {"kernel_constraint": "max_norm"},
    {"bias_constraint": "max_norm"},
    {"kernel_constraint": "unit_norm"},
    {"dtype": "mixed_float16"},
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"dtype": "float64"},
    {"trainable": False},
]


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_labels_and_initializers_do_not_matter(labels: dict[str, Any]) -> None:
    assert Layer(CONFIG.replace(**labels), KERNEL, BIAS).digest == Layer(CONFIG, KERNEL, BIAS).digest


def test_every_other_parameter_matters() -> None:
    digests = {Layer(CONFIG.replace(**change), KERNEL, BIAS).digest for change in ({}, *CHANGES)}
    assert len(digests) == 1 + len(CHANGES)
    changed = {field for change in (*LABELS, *CHANGES) for field in change}
    # The rest decides the weights' shapes, and is changed with them below.
    assert {field.name for field in dataclasses.fields(Conv2D)} - changed == {"filters", "kernel_size", "use_bias"}


def test_every_weight_matters() -> None:
    digests = {Layer(CONFIG, KERNEL, BIAS).digest, Layer(CONFIG.replace(use_bias=False), KERNEL).digest}
    digests.add(Layer(CONFIG.replace(filters=1), KERNEL[..., :1], BIAS[:1]).digest)
    for index in range(KERNEL.size):
        changed = KERNEL.copy()
        changed.flat[index] = np.nextafter(changed.flat[index], np.float32(2))
        digests.add(Layer(CONFIG, changed, BIAS).digest)
    digests.add(Layer(CONFIG, KERNEL, BIAS + 1).digest)
    digests.add(Layer(CONFIG, KERNEL, np.float32([-0.0, 1])).digest)
    assert len(digests) == 3 + KERNEL.size + 2


def test_the_same_bytes_in_another_shape_are_another_layer() -> None:
    tall, wide = (CONFIG.replace(kernel_size=size) for size in ((9, 1), (1, 9)))
    digests = {Layer(config, KERNEL.reshape(*config.kernel_size, 2, 2), BIAS).digest for config in (tall, wide)}
    assert len(digests) == 2


@pytest.mark.parametrize("kernel", [np.asfortranarray(KERNEL), KERNEL.astype(">f4"), KERNEL.astype("f8"), KERNEL[::1]])
def test_the_layout_of_a_callers_array_does_not_matter(kernel: Array) -> None:
    assert Layer(CONFIG, kernel, list(BIAS)).digest == digest(CONFIG, KERNEL, BIAS)


if __name__ == "__main__":
    for each in VECTORS:
        found_text, found_digest = by_convserve(each)
        each |= {"text": found_text.splitlines(), "digest": found_digest}
    VECTORS_FILE.write_text(json.dumps(VECTORS, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
