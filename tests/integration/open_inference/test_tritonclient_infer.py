"""What unmodified tritonclient, blocking and awaited, is answered by stored layers: every datatype, streams, errors.

Inputs and weights are small integers, so that what the definition of a convolution says is exact in every dtype.
"""

import ml_dtypes
import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.engines.numpy_engine import convolved
from tests.support.tritonclient.process import InferenceServerError, triton_client

LAST = {"data_format": "channels_last"}
KERNEL = np.random.default_rng(0).integers(-2, 3, (3, 3, 2, 4)).astype("f4")
BIAS = np.float32([1, -1, 2, 0])
FLOATS = {"FP32": np.float32, "FP16": np.float16, "BF16": ml_dtypes.bfloat16, "FP64": np.float64}
INTEGERS = {"UINT8": np.uint8, "INT8": np.int8}


def layer(dtype="float32", activation="relu"):
    return Layer(Conv2D(4, 3, activation=activation, dtype=dtype, **LAST), KERNEL, BIAS)


def image(number, dtype=np.float32, least=-3, shape=(2, 7, 6, 2)):
    return np.random.default_rng(number).integers(least, 4, shape).astype(dtype)


def expected(of, x, dtype=np.float32):
    return np.maximum(convolved(of, x), 0).astype(dtype)


@pytest.fixture(scope="module", autouse=True)
def models(sharing_server):
    """Stores a layer of each floating-point dtype, each a model."""
    with convserve.Client(sharing_server.target) as client:
        for datatype, dtype in FLOATS.items():
            client.put(layer(np.dtype(dtype).name), name=f"infer-{datatype}")


@pytest.mark.parametrize("datatype", FLOATS)
def test_a_model_of_every_dtype_answers_in_its_own(triton, datatype):
    dtype = FLOATS[datatype]
    x = image(1, dtype)
    answer = triton.infer(f"infer-{datatype}", {"x": x}, request_id="a request")
    assert answer["id"] == "a request"
    assert answer["model_name"] == f"infer-{datatype}"
    assert answer["model_version"] == "1"
    assert [(each["name"], each["datatype"], each["shape"]) for each in answer["outputs"]] == [
        ("y", datatype, ["2", "5", "4", "4"])
    ]
    assert answer["arrays"]["y"].dtype == dtype
    np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), x, dtype))


@pytest.mark.parametrize("datatype", FLOATS | INTEGERS)
def test_an_input_of_every_dtype_is_taken(triton, datatype):
    x = image(2, (FLOATS | INTEGERS)[datatype], least=0 if datatype == "UINT8" else -3)
    y = triton.infer("infer-FP32", {"x": x}, {"y": None})["arrays"]["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected(layer(), x))


def test_a_large_tensor_goes_in_one_message(triton, sharing_server):
    with convserve.Client(sharing_server.target) as client:
        if client.info().max_message_bytes < 2**24:
            pytest.skip("in a container of little memory messages are smaller")
    x = image(5, shape=(3, 500, 600, 2))
    y = triton.infer("infer-FP32", {"x": x})["arrays"]["y"]  # 7 MB there, 14 MB back
    np.testing.assert_array_equal(y, expected(layer(), x))


def test_a_callback_is_given_what_a_call_returns(sharing_server):
    x = image(6)
    with triton_client("blocking", sharing_server.target) as triton:
        answer = triton.async_infer("infer-FP32", {"x": x})
    np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), x))


# A layer that comes with the call


def test_conv2d_takes_its_weights_and_keras_parameters_with_the_call(triton):
    x = image(7)
    inputs = {"x": x, "kernel": KERNEL, "bias": BIAS}
    y = triton.infer("conv2d", inputs, parameters={"padding": "same", "strides": 2, "activation": "relu"})
    config = Conv2D(4, 3, 2, padding="same", activation="relu", **LAST)
    np.testing.assert_array_equal(y["arrays"]["y"], expected(Layer(config, KERNEL, BIAS), x))
    without = triton.infer("conv2d", {"x": x, "kernel": KERNEL})
    config = Conv2D(4, 3, use_bias=False, **LAST)
    np.testing.assert_array_equal(without["arrays"]["y"], convolved(Layer(config, KERNEL), x).astype("f4"))


# Streams


def test_a_stream_answers_each_request_and_goes_on_after_an_error(triton):
    images = [image(number, dtype, shape=(number, 7, 6, 2)) for number, dtype in enumerate(FLOATS.values(), 1)]
    requests = [
        {"model_name": f"infer-{datatype}", "inputs": {"x": x}, "request_id": datatype}
        for datatype, x in zip(FLOATS, images, strict=True)
    ]
    wrong = requests[0] | {"inputs": {"x": image(0, shape=(1, 7, 6, 5))}}
    answers = triton.stream(requests[0], wrong, *requests[1:])
    assert "Expected" in answers.pop(1)
    for (datatype, dtype), x, answer in zip(FLOATS.items(), images, answers, strict=True):
        assert answer["id"] == datatype
        np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), x, dtype))


# Errors


@pytest.mark.parametrize(
    ("status", "says", "model", "x", "options"),
    [
        ("NOT_FOUND", "infer-nothing", "infer-nothing", image(0), {}),
        ("NOT_FOUND", "77", "infer-FP32", image(0), {"model_version": "77"}),
        ("INVALID_ARGUMENT", "Received", "infer-FP32", image(0, shape=(1, 7, 6, 3)), {}),
        ("INVALID_ARGUMENT", "INT32", "infer-FP32", image(0, np.int32), {}),
        ("INVALID_ARGUMENT", "Expected y", "infer-FP32", image(0), {"outputs": {"z": None}}),
        ("INVALID_ARGUMENT", "padding", "conv2d", image(0), {"parameters": {"padding": "some"}}),
    ],
)
def test_an_error_says_what_was_expected(triton, status, says, model, x, options):
    with pytest.raises(InferenceServerError) as raised:
        triton.infer(model, {"x": x} | ({"kernel": KERNEL} if model == "conv2d" else {}), **options)
    assert (raised.value.status, says in raised.value.message) == (status, True)


def test_a_deadline_is_kept(triton):
    with pytest.raises(InferenceServerError) as raised:
        triton.infer("infer-FP32", {"x": image(0, shape=(8, 900, 900, 2))}, client_timeout=0.001)
    assert raised.value.status == "DEADLINE_EXCEEDED"
