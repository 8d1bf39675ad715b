"""Wrong calls, past the client: each is refused as the contract says, names its field, and does no harm."""

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from convserve.v1 import initializer_pb2, layer_pb2
from convserve.v1.conv2d_pb2 import Conv2D, ExplicitPadding, Padding, Size2D
from tests.support.raw.calls import checked, conv2d, convolve_request, layer, plan_request, raw_caller, tensor, weights

B = 2**31 - 1
UNKNOWN = b"\xc2\x3e\x02hi"  # field 1000, as a future version may have it
FAMILIES = [field.name for field in Conv2D.DESCRIPTOR.fields if field.message_type and field.message_type.oneofs]


@pytest.fixture(scope="module")
def caller(server):
    with raw_caller(server.target) as connected:
        yield connected


@pytest.fixture(autouse=True)
def unharmed(caller):
    """After each test the server is healthy and answers the same caller rightly."""
    yield
    caller.check_service()


def refusal(method, request, reason, code=grpc.StatusCode.INVALID_ARGUMENT):
    """Returns the text with which a request is refused, and the descriptions by field."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=60)
    return checked(caught.value, code, reason)


# Tensors

SHAPES = {
    "zero": ((1, 0, 2, 1), "Expected every dimension to be at least 1."),
    "negative": ((1, -2, -2, 1), "Expected every dimension to be at least 1."),
    "most negative": ((-(2**63), 1, 1, 1), "Expected every dimension to be at least 1."),
    "0 in 64 bits": ((2**40, 2**40, 1, 1), "Expected at most 2**63 - 1 elements."),
    "4 in 64 bits": ((2**62 + 1, 4, 1, 1), "Expected at most 2**63 - 1 elements."),
    "largest": ((2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1), "Expected at most 2**63 - 1 elements."),
    "2**63 elements": ((1, 2**63 - 1, 1, 2), "Expected at most 2**63 - 1 elements."),
    "rank 1": ((4,), "Expected 4 dimensions"),
    "rank 3": ((2, 2, 1), "Expected 4 dimensions"),
    "rank 5": ((1, 1, 2, 2, 1), "Expected 4 dimensions"),
    "rank 9": ((1, 1, 1, 1, 1, 1, 2, 2, 1), "Expected "),
    "rank 100 000": ((1,) * 100_000, "Expected "),
}


@pytest.mark.parametrize(("shape", "expected"), SHAPES.values(), ids=SHAPES)
def test_an_input_of_an_impossible_shape_is_refused(caller, shape, expected):
    text, fields = refusal(caller.stub.Plan, plan_request(input_shape=shape), "INVALID_TENSOR")
    assert expected in text
    assert list(fields) == ["input"]
    for data in (b"", bytes(16)):
        _, fields = refusal(caller.stub.Convolve, convolve_request(input=tensor(0, shape=shape, data=data)),
                            "INVALID_TENSOR")  # fmt: skip
        assert list(fields) == ["input"]


def test_a_scalar_input_is_refused(caller):
    text, _ = refusal(caller.stub.Convolve, convolve_request(input=tensor(0)), "INVALID_TENSOR")
    assert "Received 0: shape ()." in text


@pytest.mark.parametrize("size", [0, 1, 15, 17, 32, 10**6])
def test_an_input_of_another_byte_count_is_refused(caller, size):
    request = convolve_request(input=tensor(0, shape=(1, 2, 2, 1), data=bytes(size)))
    text, _ = refusal(caller.stub.Convolve, request, "INVALID_TENSOR")
    assert text == (
        f"input: Expected 16 bytes, as shape (1, 2, 2, 1) and dtype float32 need. Received {size} bytes."
    )  # fmt: skip


def test_a_call_without_an_input_is_refused(caller):
    request = convolve_request()
    request.ClearField("input")
    _, fields = refusal(caller.stub.Convolve, request, "INVALID_REQUEST")
    assert list(fields) == ["input"]


def test_nan_and_infinity_in_a_tensor_are_computed_with(caller):
    image = np.array([np.nan, np.inf, -np.inf, 3], "f4").reshape(1, 2, 2, 1)
    for kernel in (1.0, 0.0, np.nan, np.inf):
        request = convolve_request(layer(weights=weights(np.full((1, 1, 1, 1), kernel))), input=tensor(image))
        output = np.frombuffer(caller.stub.Convolve(request, timeout=60).output.data, "<f4").reshape(image.shape)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(output, image * np.float32(kernel))


# Numbers that stand for words


@pytest.mark.parametrize("number", [7, -1, B, -B - 1])
def test_an_unknown_dtype_is_refused(caller, number):
    image = tensor(np.zeros((1, 2, 2, 1)), dtype=number)
    text, fields = refusal(caller.stub.Convolve, convolve_request(input=image), "INVALID_TENSOR")
    assert (list(fields), f"Received {number}." in text) == (["input"], True)
    kernel = weights(tensor(np.zeros((1, 1, 1, 1)), dtype=number))
    _, fields = refusal(caller.stub.Convolve, convolve_request(layer(weights=kernel)), "INVALID_WEIGHTS")
    assert list(fields) == ["kernel"]
    _, fields = refusal(caller.stub.Plan, plan_request(input_dtype=number), "INVALID_TENSOR")
    assert list(fields) == ["input_dtype"]


@pytest.mark.parametrize("number", [5, 6, 7, -1])  # uint8 and int8 are for inputs only
def test_an_output_dtype_that_is_not_floating_is_refused(caller, number):
    for method, request in ((caller.stub.Convolve, convolve_request), (caller.stub.Plan, plan_request)):
        _, fields = refusal(method, request(output_dtype=number), "INVALID_TENSOR")
        assert list(fields) == ["output_dtype"]


# Choices


@pytest.mark.parametrize("field", FAMILIES)
@pytest.mark.parametrize("choice", [b"", UNKNOWN], ids=["none", "unknown"])
def test_a_choice_that_is_not_made_or_not_known_is_refused(caller, field, choice):
    config = conv2d()
    getattr(config, field).SetInParent()
    getattr(config, field).MergeFromString(choice)
    _, fields = refusal(caller.stub.Convolve, convolve_request(layer(config)), "INVALID_CONFIGURATION")
    assert list(fields) == [field]


@pytest.mark.parametrize("choice", [b"", UNKNOWN], ids=["none", "unknown"])
def test_a_reference_to_no_layer_is_refused(caller, choice):
    for method, request in ((caller.stub.Convolve, convolve_request), (caller.stub.Plan, plan_request)):
        _, fields = refusal(method, request(layer_pb2.LayerReference.FromString(choice)), "INVALID_REQUEST")
        assert list(fields) == ["layers"]


# Numbers of a configuration

REALS = [
    (family.name, member.name, parameter.name)
    for family in (Conv2D.DESCRIPTOR.fields_by_name[name] for name in FAMILIES)
    for member in family.message_type.fields
    if member.message_type
    for parameter in member.message_type.fields
    if parameter.type == FieldDescriptor.TYPE_DOUBLE
]


def test_every_family_with_real_parameters_is_tried():
    assert {family for family, _, _ in REALS} == set(FAMILIES) - {"padding"}
    assert len(REALS) > 40


@pytest.mark.parametrize(("family", "member", "parameter"), REALS, ids=".".join)
def test_a_parameter_that_is_not_finite_is_refused(caller, family, member, parameter):
    for value in (np.nan, np.inf, -np.inf):
        config = conv2d()
        setattr(getattr(getattr(config, family), member), parameter, value)
        _, fields = refusal(caller.stub.Convolve, convolve_request(layer(config)), "INVALID_CONFIGURATION")
        assert f"{family}.{parameter}" in fields


@pytest.mark.parametrize(
    ("field", "change"),
    [
        *(("data_format", {"data_format": number}) for number in (0, 3, -1)),
        *(("padding", {"padding": Padding(mode=number)}) for number in (0, 3)),
        *(("dtype", {"dtype": number}) for number in (7, -1)),
        *(("filters", {"filters": filters}) for filters in (0, -1, -B - 1)),
        *(("groups", {"groups": groups}) for groups in (0, -1, -B - 1)),
        ("filters", {"filters": 3, "groups": 2}),
        *((field, {field: Size2D(height=height, width=width)})
          for field in ("kernel_size", "strides", "dilation_rate") for height, width in ((0, 1), (1, -1), (-B - 1, B))),
        ("strides", {"strides": Size2D(height=2, width=1), "dilation_rate": Size2D(height=1, width=2)}),
        *(("padding", {"padding": Padding(explicit=ExplicitPadding(**{side: -1}))})
          for side in ("top", "bottom", "left", "right")),
        ("name", {"name": "a/b"}),
        ("name", {"name": "\U0001f600" * 10**6}),
        *(("input_shape", {"input_shape": shape})
          for shape in ((1, 1), (1, 1, 1, 1), (0, 1, 1), (-2, 1, 1), [1] * 10**5)),
        ("kernel_initializer.mode", {"kernel_initializer": initializer_pb2.Initializer(
            variance_scaling=initializer_pb2.VarianceScalingInitializer(mode="é" * 10**6))}),
        ("kernel_initializer.input_axes", {"kernel_initializer": initializer_pb2.Initializer(
            he_normal=initializer_pb2.FanInitializer(input_axes=initializer_pb2.Axes(axis=[99] * 10**5)))}),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_parameter_that_is_no_word_or_that_keras_refuses_is_refused(caller, field, change):
    for method, request in ((caller.stub.Convolve, convolve_request), (caller.stub.Plan, plan_request)):
        _, fields = refusal(method, request(layer(conv2d(**change))), "INVALID_CONFIGURATION")
        assert list(fields) == [field]


def test_everything_that_is_wrong_is_named_at_once_with_the_layers_index(caller):
    wrong = conv2d(filters=-1, kernel_size=Size2D(height=0, width=0), data_format=0, dtype=99, name="/" * 10**6)
    _, fields = refusal(caller.stub.Convolve, convolve_request(layer(), layer(wrong)), "INVALID_CONFIGURATION")
    assert set(fields) == {f"layers[1].{name}" for name in ("filters", "kernel_size", "data_format", "dtype", "name")}


# Weights

ONE = np.zeros((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("field", "given", "use_bias"),
    [
        ("kernel", weights(), False),
        ("kernel", weights(bias=np.zeros(1)), True),
        ("kernel", weights(np.zeros((2, 1, 1, 1))), False),
        ("kernel", weights(np.zeros((1, 2, 1, 1))), False),
        ("input", weights(np.zeros((1, 1, 2, 1))), False),
        ("kernel", weights(np.zeros((1, 1, 1, 2))), False),
        ("kernel", weights(np.zeros((1, 1, 1))), False),
        ("kernel", weights(np.zeros((1, 1, 1, 1, 1))), False),
        ("kernel", weights(tensor(0)), False),
        ("kernel", weights(tensor(ONE, shape=(1, 0, 1, 1), data=b"")), False),
        ("kernel", weights(tensor(ONE, shape=(1, 1, -1, -1))), False),
        ("kernel", weights(tensor(ONE, shape=(2**40, 2**40, 1, 1), data=b"")), False),
        ("kernel", weights(tensor(ONE, dtype=0)), False),
        ("kernel", weights(tensor(ONE, dtype=4)), False),
        ("kernel", weights(tensor(ONE, dtype=6, data=b"\1")), False),
        ("kernel", weights(tensor(ONE, data=bytes(3))), False),
        ("bias", weights(ONE), True),
        ("bias", weights(ONE, np.zeros(1)), False),
        ("bias", weights(ONE, np.zeros(2)), True),
        ("bias", weights(ONE, np.zeros((1, 1))), True),
        ("bias", weights(ONE, tensor(0)), True),
        ("bias", weights(ONE, tensor(np.zeros(1), dtype=5, data=b"\1")), True),
        ("bias", weights(ONE, tensor(np.zeros(1), data=bytes(5))), True),
    ],
)
def test_weights_that_do_not_fit_are_refused(caller, field, given, use_bias):
    wrong = layer(conv2d(use_bias=use_bias), weights=given)
    _, fields = refusal(caller.stub.Convolve, convolve_request(wrong), "INVALID_WEIGHTS")
    assert list(fields) == [field]
    _, fields = refusal(caller.stub.Plan, plan_request(layer(), wrong), "INVALID_WEIGHTS")
    assert list(fields) == [f"layers[1].{field}"]


# Layers


def test_a_call_without_layers_is_refused(caller):
    for method, request in ((caller.stub.Convolve, convolve_request), (caller.stub.Plan, plan_request)):
        made = request()
        made.ClearField("layers")
        assert list(refusal(method, made, "INVALID_REQUEST")[1]) == ["layers"]


@pytest.mark.parametrize("size", [0, 31, 33, 10**6])
def test_a_digest_of_another_length_is_refused(caller, size):
    request = convolve_request(layer_pb2.LayerReference(digest=bytes(size)))
    text, fields = refusal(caller.stub.Convolve, request, "INVALID_REQUEST")
    assert (list(fields), f"Received {size} bytes." in text) == (["digest"], True)


@pytest.mark.parametrize(
    ("reference", "code", "named"),
    [
        ({"digest": bytes(range(32))}, grpc.StatusCode.FAILED_PRECONDITION, bytes(range(32)).hex()),
        ({"name": "nobody"}, grpc.StatusCode.NOT_FOUND, "nobody"),
        ({"name": ""}, grpc.StatusCode.NOT_FOUND, ""),
        ({"name": "\U0001f600" * 10**6}, grpc.StatusCode.NOT_FOUND, "\U0001f600"),
        ({"name": "\0/../%n"}, grpc.StatusCode.NOT_FOUND, "\0/../%n"),
    ],
)
def test_a_layer_that_nobody_put_is_not_found(caller, reference, code, named):
    request = plan_request(layer_pb2.LayerReference(**reference))
    for method, made in ((caller.stub.Plan, request), (caller.stub.Convolve, convolve_request(*request.layers))):
        with pytest.raises(grpc.RpcError) as caught:
            method(made, timeout=60)
        checked(caught.value, code, "LAYER_NOT_FOUND")
        resource = error_details_pb2.ResourceInfo()
        assert any(each.Unpack(resource) for each in rpc_status.from_call(caught.value).details)
        assert resource.resource_type == "convserve.v1.Layer"
        assert resource.resource_name.startswith(named)
