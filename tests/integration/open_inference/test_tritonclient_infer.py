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


@pytest.mark.parametrize("datatype", FLOATS)
def test_an_output_may_be_asked_for_in_another_dtype(triton, datatype):
    dtype, x = FLOATS[datatype], image(9)
    y = triton.infer("infer-FP32", {"x": x}, parameters={"output_dtype": datatype})["arrays"]["y"]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected(layer(), x, dtype))


@pytest.mark.parametrize(
    ("datatype", "field"),
    [("FP32", "fp32_contents"), ("FP64", "fp64_contents"), ("UINT8", "uint_contents"), ("INT8", "int_contents")],
)
def test_typed_contents_are_taken(triton, datatype, field):
    dtype = (FLOATS | INTEGERS)[datatype]
    x = image(3, dtype, least=0 if datatype == "UINT8" else -3)
    tensor = {"name": "x", "datatype": datatype, "shape": x.shape, "contents": {field: x.reshape(-1).tolist()}}
    answer = triton.infer_message({"model_name": "infer-FP32", "inputs": [tensor]})
    np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), x))


def test_the_native_client_is_answered_the_same(triton, sharing_server):
    x = np.random.default_rng(4).random((3, 9, 9, 2), dtype=np.float32)
    with convserve.Client(sharing_server.target) as client:
        native = client.layer("infer-FP32")(x)
    np.testing.assert_array_equal(triton.infer("infer-FP32", {"x": x})["arrays"]["y"], native)


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
    images = [image(number, shape=(number, 7, 6, 2)) for number in range(1, 9)]
    requests = [{"model_name": "infer-FP32", "inputs": {"x": x}, "request_id": f"r{len(x)}"} for x in images]
    requests[3] |= {"inputs": {"x": image(0, shape=(1, 7, 6, 5))}}
    answers = triton.stream(*requests)
    for number, (x, answer) in enumerate(zip(images, answers, strict=True)):
        if number == 3:
            assert "Expected" in answer
            assert "Received" in answer
        else:
            assert answer["id"] == f"r{len(x)}"
            np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), x))


def test_a_stream_carries_several_models(triton):
    requests = [
        {"model_name": f"infer-{datatype}", "inputs": {"x": image(8, dtype)}, "request_id": datatype}
        for datatype, dtype in FLOATS.items()
    ]
    for (datatype, dtype), answer in zip(FLOATS.items(), triton.stream(*requests), strict=True):
        assert answer["id"] == datatype
        np.testing.assert_array_equal(answer["arrays"]["y"], expected(layer(), image(8, dtype), dtype))


# Errors


def refusal(status, *says, model="infer-FP32", inputs=None, **options):
    return model, {"x": image(0)} if inputs is None else inputs, options, status, says


REFUSALS = {
    "another model": refusal("NOT_FOUND", "infer-nothing", model="infer-nothing"),
    "another version": refusal("NOT_FOUND", "infer-FP32", "77", model_version="77"),
    "a version of letters": refusal("INVALID_ARGUMENT", "version", "new", model_version="new"),
    "other channels": refusal("INVALID_ARGUMENT", "Received", "3", inputs={"x": image(0, shape=(1, 7, 6, 3))}),
    "three dimensions": refusal("INVALID_ARGUMENT", "Received", inputs={"x": image(0, shape=(7, 6, 2))}),
    "a small image": refusal("INVALID_ARGUMENT", "Received", inputs={"x": image(0, shape=(1, 2, 2, 2))}),
    "another datatype": refusal("INVALID_ARGUMENT", "FP32", "INT32", inputs={"x": image(0, np.int32)}),
    "another input": refusal("INVALID_ARGUMENT", "Expected x", "'z'", inputs={"z": image(0)}),
    "one input more": refusal("INVALID_ARGUMENT", "'z'", inputs={"x": image(0), "z": image(0)}),
    "no input": refusal("INVALID_ARGUMENT", "Expected x", inputs={}),
    "another output": refusal("INVALID_ARGUMENT", "Expected y", "'z'", outputs={"z": None}),
    "no kernel": refusal("INVALID_ARGUMENT", "kernel", model="conv2d"),
    "a wrong parameter": refusal(
        "INVALID_ARGUMENT", "padding", "some", model="conv2d",
        inputs={"x": image(0), "kernel": KERNEL}, parameters={"padding": "some"},
    ),
    "an unknown parameter": refusal(
        "INVALID_ARGUMENT", "stride", model="conv2d",
        inputs={"x": image(0), "kernel": KERNEL}, parameters={"stride": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "options", "status", "says"), REFUSALS.values(), ids=REFUSALS)
def test_an_error_says_what_was_expected(triton, model, inputs, options, status, says):
    with pytest.raises(InferenceServerError) as raised:
        triton.infer(model, inputs, **options)
    assert raised.value.status == status
    for each in says:
        assert each in raised.value.message


def test_a_deadline_is_kept(triton):
    with pytest.raises(InferenceServerError) as raised:
        triton.infer("infer-FP32", {"x": image(0, shape=(8, 900, 900, 2))}, client_timeout=0.001)
    assert raised.value.status == "DEADLINE_EXCEEDED"
