"""Stored layers through the Open Inference Protocol: outputs, metadata, versions, streams, errors, what adds up."""

import queue

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convserve
from convserve import Client, Conv2D
from convserve.tensors.codec import numpy_dtype
from tests.support.observability.scrapes import Meter
from tests.support.processes import status
from tests.support.raw.calls import checked
from tests.support.raw.inference import (
    DATATYPES,
    INFERENCE_RPCS,
    InferenceCaller,
    Output,
    Tensor,
    inference_caller,
    messages,
    output_of,
    raw_request,
)
from tests.support.servers.server_process import GIVES_BACK_FREED_MEMORY, numpy_server
from tests.support.waiting import eventually

CONV2D = Conv2D(8, 3, use_bias=False, data_format="channels_last")
RNG = np.random.default_rng(7)
KERNEL = RNG.normal(size=(3, 3, 3, 8)).astype("f4")
SECOND = RNG.normal(size=(3, 3, 8, 4)).astype("f4")
X = RNG.integers(-100, 100, (2, 8, 9, 3)).astype("f4")
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture
def caller(server):
    with inference_caller(server.target) as connected:
        yield connected


@pytest.fixture
def layer(client):
    stored = client.put(CONV2D, kernel=KERNEL, name="inference/first")
    yield stored
    client.delete(stored)


@pytest.fixture
def second(client):
    stored = client.put(CONV2D.replace(filters=4), kernel=SECOND, name="inference/second")
    yield stored
    client.delete(stored)


def refused(call, code=INVALID, reason="INVALID_REQUEST"):
    """Asserts that a call is refused in full form; returns the text, and descriptions by field."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return checked(caught.value, code, reason)


# Outputs


def test_a_stored_layer_is_a_model(caller, layer):
    request = raw_request("inference/first", x=X)
    request.id = "some id"
    answer = caller.infer(request)
    (tensor,) = answer.outputs
    assert (answer.model_name, answer.model_version, answer.id) == ("inference/first", "1", "some id")
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("y", "FP32", [2, 6, 7, 8])
    np.testing.assert_array_equal(output_of(answer), layer(X))


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_is_taken(caller, client, layer, name):
    x = X.clip(0, 100).astype(numpy_dtype(DATATYPES[name]))
    np.testing.assert_array_equal(output_of(caller.infer(raw_request("inference/first", x=x))), layer(x))


@pytest.mark.parametrize("name", ["FP32", "FP16", "BF16", "FP64"])
def test_every_floating_point_datatype_can_be_asked_for(caller, client, layer, name):
    answer = caller.infer(raw_request("inference/first", parameters={"output_dtype": name}, x=X))
    assert answer.outputs[0].datatype == name
    expected = client.convolve(layer, X, output_dtype=DATATYPES[name]).output
    np.testing.assert_array_equal(output_of(answer), expected)


@pytest.mark.parametrize("name", ["FP32", "FP64", "UINT8", "INT8"])
def test_typed_contents_are_taken(caller, layer, name):
    x = X.clip(0, 100).astype(DATATYPES[name])
    field = {"FP32": "fp32", "FP64": "fp64", "UINT8": "uint", "INT8": "int"}[name]
    request = raw_request("inference/first", x=x)
    del request.raw_input_contents[:]
    getattr(request.inputs[0].contents, f"{field}_contents").extend(x.reshape(-1).tolist())
    np.testing.assert_array_equal(output_of(caller.infer(request)), layer(x))


def test_a_chain_is_the_names_with_commas_between_them(caller, client, layer, second):
    answer = caller.infer(raw_request("inference/first,inference/second", x=X))
    np.testing.assert_array_equal(output_of(answer), client.convolve([layer, second], X).output)
    metadata = caller.call("ModelMetadata", name="inference/first,inference/second")
    assert [list(each.shape) for each in (*metadata.inputs, *metadata.outputs)] == [[-1, -1, -1, 3], [-1, -1, -1, 4]]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_losses_are_parameters_of_the_response(caller, client, data_format):
    config = CONV2D.replace(kernel_regularizer="l2", activity_regularizer="l1", data_format=data_format)
    x = X if data_format == "channels_last" else X.transpose(0, 3, 1, 2)
    layer = client.put(config, kernel=KERNEL, name="inference/losses")
    found = caller.infer(raw_request("inference/losses", x=x)).parameters
    losses = client.convolve(layer, np.ascontiguousarray(x)).losses[0]
    assert {name: value.double_param for name, value in found.items()} == {
        "layers[0].losses.kernel": losses.kernel,
        "layers[0].losses.activity": losses.activity,
    }
    client.delete(layer)


PARAMETERS = [
    ({}, {}),
    ({"strides": 2, "padding": "same", "activation": "relu"}, {"strides": 2, "padding": "same", "activation": "relu"}),
    ({"strides": "[2, 1]"}, {"strides": (2, 1)}),
    ({"padding": "[[1, 2], [0, 3]]"}, {"padding": ((1, 2), (0, 3))}),
    ({"filters": 8, "kernel_size": 3, "dilation_rate": "[1, 2]"}, {"dilation_rate": (1, 2)}),
    ({"activation": '{"class_name": "LeakyReLU", "config": {"negative_slope": 0.5}}', "dtype": "float64"},
     {"activation": {"class_name": "LeakyReLU", "config": {"negative_slope": 0.5}}, "dtype": "float64"}),
    ({"groups": 1, "kernel_regularizer": "l2", "priority": 1, "timeout": 5, "sequence_id": 3}, {}),
]  # fmt: skip


@pytest.mark.parametrize("bias", [None, np.arange(8, dtype="f4")], ids=["no bias", "bias"])
@pytest.mark.parametrize(("parameters", "meant"), PARAMETERS)
def test_the_stateless_model_takes_keras_parameters(caller, client, parameters, meant, bias):
    inputs = {"x": X, "kernel": KERNEL} | ({} if bias is None else {"bias": bias})
    answer = caller.infer(raw_request("conv2d", parameters=parameters, **inputs))
    expected = client.conv2d(X, kernel=KERNEL, bias=bias, data_format="channels_last", **meant)
    np.testing.assert_array_equal(output_of(answer), expected)
    assert answer.model_version == "1"


# What there is


def test_what_the_server_says_of_itself(caller):
    assert caller.call("ServerLive").live
    assert caller.call("ServerReady").ready
    found = caller.call("ServerMetadata")
    assert (found.name, found.version) == ("convserve", convserve.__version__)
    assert list(found.extensions) == ["model_repository", "model_configuration", "statistics", "parameters"]


SHAPES = [
    (CONV2D, (3, 3, 3, 8), [-1, -1, -1, 3], [-1, -1, -1, 8], "FP32"),
    (CONV2D.replace(groups=2), (3, 3, 3, 8), [-1, -1, -1, 6], [-1, -1, -1, 8], "FP32"),
    (CONV2D.replace(data_format="channels_first"), (3, 3, 3, 8), [-1, 3, -1, -1], [-1, 8, -1, -1], "FP32"),
    (CONV2D.replace(activation="glu", padding=((1, 0), (0, 2))), (3, 3, 3, 8), [-1, -1, -1, 3], [-1, -1, -1, 4],
     "FP32"),
    (CONV2D.replace(activation="glu", data_format="channels_first"), (3, 3, 3, 8), [-1, 3, -1, -1], [-1, 8, -1, -1],
     "FP32"),
    (CONV2D.replace(dtype="mixed_float16"), (3, 3, 3, 8), [-1, -1, -1, 3], [-1, -1, -1, 8], "FP16"),
    (CONV2D.replace(dtype="bfloat16"), (3, 3, 3, 8), [-1, -1, -1, 3], [-1, -1, -1, 8], "BF16"),
    (CONV2D.replace(dtype="float64"), (3, 3, 3, 8), [-1, -1, -1, 3], [-1, -1, -1, 8], "FP64"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "kernel", "takes", "gives", "name"), SHAPES)
def test_metadata_and_configuration_agree_with_what_is_computed(caller, client, config, kernel, takes, gives, name):
    layer = client.put(config, kernel=np.ones(kernel, "f4"), name="inference/shapes")
    metadata = caller.call("ModelMetadata", name="inference/shapes")
    (x,), (y,) = metadata.inputs, metadata.outputs
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("inference/shapes", ["1"], "convserve")
    assert (x.name, x.datatype, list(x.shape)) == ("x", name, takes)
    assert (y.name, y.datatype, list(y.shape)) == ("y", name, gives)
    answer = caller.infer(raw_request("inference/shapes", x=np.ones([8 if size < 0 else size for size in takes], "f4")))
    (found,) = answer.outputs
    assert (found.name, found.datatype) == (y.name, y.datatype)
    assert all(size in (-1, real) for size, real in zip(gives, found.shape, strict=True))
    config = caller.call("ModelConfig", name="inference/shapes").config
    # With a batch size above 0, dimensions are without the batch.
    assert config.max_batch_size > 0
    assert ([list(each.dims) for each in config.input], [list(each.dims) for each in config.output]) == (
        [takes[1:]], [gives[1:]],
    )  # fmt: skip
    told = json_format.MessageToDict(config, preserving_proto_field_name=True)
    assert (told["input"][0]["data_type"], told["output"][0]["data_type"]) == (f"TYPE_{name}",) * 2
    assert (config.WhichOneof("scheduling_choice"), config.backend) == ("dynamic_batching", "convserve")
    client.delete(layer)


def test_the_stateless_model_is_told_of_too(caller):
    metadata, config = caller.call("ModelMetadata", name="conv2d"), caller.call("ModelConfig", name="conv2d").config
    shapes = {"x": [-1] * 4, "kernel": [-1] * 4, "bias": [-1]}
    assert {each.name: list(each.shape) for each in metadata.inputs} == shapes
    assert {each.name: list(each.dims) for each in config.input} == shapes
    assert [each.name for each in config.input if each.optional] == ["bias"]
    assert (config.max_batch_size, list(metadata.versions)) == (0, ["1"])


def index(caller):
    """Returns the versions of all models, by name."""
    found = {}
    for each in caller.call("RepositoryIndex").models:
        assert (each.state, each.reason) == ("READY", "")
        found.setdefault(each.name, []).append(each.version)
    return found


def test_versions_grow_as_a_name_moves_and_old_ones_stay(caller, client):
    kernels = [np.full((1, 1, 3, 1), number, "f4") for number in range(3)]
    config = CONV2D.replace(filters=1, kernel_size=1)
    assert not caller.call("ModelReady", name="inference/moving").ready
    for number, kernel in enumerate((kernels[0], kernels[1], kernels[1], kernels[0], kernels[2])):
        client.put(config, kernel=kernel, name="inference/moving")
        assert caller.call("ModelReady", name="inference/moving").ready, number
    assert list(caller.call("ModelMetadata", name="inference/moving").versions) == ["1", "2", "3", "4"]
    assert index(caller)["inference/moving"] == ["1", "2", "3", "4"]
    for version, factor in {"1": 0, "2": 1, "3": 0, "4": 2, "": 2}.items():
        request = raw_request("inference/moving", x=X)
        request.model_version = version
        answer = caller.infer(request)
        assert answer.model_version == (version or "4")
        np.testing.assert_array_equal(output_of(answer), factor * X.sum(axis=3, keepdims=True))
    (first,) = (each for each in client.layers() if each.digest == convserve.Layer(config, kernels[0]).digest)
    client.delete(first)
    assert index(caller)["inference/moving"] == ["2", "4"]
    assert not caller.call("ModelReady", name="inference/moving", version="3").ready
    request = raw_request("inference/moving", x=X)
    request.model_version = "3"
    text, _ = refused(lambda: caller.infer(request), NOT_FOUND, "LAYER_NOT_FOUND")
    assert text == "Expected a version of 'inference/moving' that is stored: 2, 4. Received 3."
    for each in client.layers(name_prefix="inference/moving"):
        client.delete(each)
    assert "inference/moving" not in index(caller)


def test_loading_pins_and_unloading_unpins(tmp_path):
    """A layer that no name leads to any more is evicted when there is no room, unless it is pinned."""
    kernels = [np.full((1, 1, 25_000, 1), number, "f4") for number in range(4)]
    config = CONV2D.replace(filters=1, kernel_size=1)
    with (
        numpy_server("--layer-memory-bytes", "250000") as running,
        Client(running.target) as client,
        inference_caller(running.target) as caller,
    ):
        client.put(config, kernel=kernels[0], name="a")
        caller.call("RepositoryModelLoad", model_name="a")
        for number in (1, 2):
            client.put(config, kernel=kernels[number], name="a")
        assert index(caller)["a"] == ["1", "3"]
        caller.call("RepositoryModelUnload", model_name="a")
        client.put(config, kernel=kernels[3], name="a")
        assert index(caller)["a"] == ["3", "4"]
        caller.call("RepositoryModelLoad", model_name="conv2d")
        refused(lambda: caller.call("RepositoryModelLoad", model_name="b"), NOT_FOUND, "LAYER_NOT_FOUND")
        refused(lambda: caller.call("RepositoryModelUnload", model_name="b"), NOT_FOUND, "LAYER_NOT_FOUND")
        # Of a chain all or nothing is pinned.
        refused(lambda: caller.call("RepositoryModelLoad", model_name="a,b"), NOT_FOUND, "LAYER_NOT_FOUND")
        for number in (1, 2):
            client.put(config, kernel=kernels[number], name="a")
        assert index(caller)["a"] == ["2", "3", "5", "6"]  # 4 was evicted
        refused(lambda: caller.call("RepositoryModelLoad", model_name="a", repository_name="other"))
        strange = {"config": messages.ModelRepositoryParameter(string_param="{}")}
        refused(lambda: caller.call("RepositoryModelLoad", model_name="a", parameters=strange))


# Figures


def test_statistics_add_up(server, client):
    x = np.ones((3, 4, 4, 1), "f4")
    layer = client.put(CONV2D.replace(filters=1, kernel_size=1), kernel=np.ones((1, 1, 1, 1), "f4"), name="inference/n")
    with inference_caller(server.target) as caller:
        before = caller.statistics("inference/n")
        assert (before.name, before.version) == ("inference/n", "1")
        futures = []
        method = caller.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        for _ in range(20):
            futures.append(method.future(raw_request("inference/n", x=x).SerializeToString(), timeout=60))
        for each in futures:
            each.result()
        answers = list(caller.stream([raw_request("inference/n", x=x)] * 3))
        assert not any(each.error_message for each in answers)
        refused(lambda: caller.infer(raw_request("inference/n", x=X)), reason="INVALID_TENSOR")
        found = caller.statistics("inference/n")
        assert found.inference_count - before.inference_count == 23 * 3
        stats = found.inference_stats
        parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
        counts = before.inference_stats
        assert stats.success.count - counts.success.count == 23
        assert stats.fail.count - counts.fail.count == 1
        assert {each.count for each in parts} == {stats.success.count}
        assert 0 < sum(each.ns for each in parts) <= stats.success.ns
        assert sum(each.batch_size * each.compute_infer.count for each in found.batch_stats) == found.inference_count
        assert sum(each.compute_infer.count for each in found.batch_stats) == found.execution_count <= 23 * 2
        assert sum(each.compute_infer.ns for each in found.batch_stats) <= stats.compute_infer.ns
        assert found.last_inference > 1.6e12
        every = {each.name for each in caller.call("ModelStatistics").model_stats}
        assert {"inference/n", "conv2d"} <= every
    client.delete(layer)


# Streams


def test_each_request_of_a_stream_has_one_answer_in_order(caller, layer):
    requests = [raw_request("inference/first", x=X + number) for number in range(5)]
    requests.insert(2, raw_request("inference/nowhere", x=X))
    for number, request in enumerate(requests):
        request.id = str(number)
    answers = list(caller.stream(requests))
    assert [each.infer_response.id for each in answers] == list("012345")
    assert [bool(each.error_message) for each in answers] == [False, False, True, False, False, False]
    assert answers[2].error_message.startswith("Expected the name of a stored layer. Received 'inference/nowhere'")
    for number, answer in enumerate(each for each in answers if not each.error_message):
        np.testing.assert_array_equal(output_of(answer.infer_response), layer(X + number))
        assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_is_answered_while_it_is_open(caller, layer):
    sent = queue.SimpleQueue()
    call = caller.stream(iter(sent.get, None))
    for _ in range(3):
        sent.put(raw_request("inference/first", x=X))
        np.testing.assert_array_equal(output_of(next(call).infer_response), layer(X))
    sent.put(None)
    assert list(call) == []


# What is wrong


def spoiled(**changes):
    """Returns a request for a stored layer of which some fields of the input are others."""
    request = raw_request("inference/first", x=X)
    for name, value in changes.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def without_raw():
    request = raw_request("inference/first", x=X)
    del request.raw_input_contents[:]
    return request


def typed(name, **contents):
    request = without_raw()
    request.inputs[0].datatype = name
    request.inputs[0].shape[:] = [1, 1, 1, 3]
    request.inputs[0].contents.CopyFrom(messages.InferTensorContents(**contents))
    return request


def more_raw():
    request = raw_request("inference/first", x=X)
    request.raw_input_contents.append(b"")
    return request


def versioned(version):
    request = raw_request("inference/first", x=X)
    request.model_version = version
    return request


WRONG = {
    "another name": (spoiled(name="input0"), "INVALID_REQUEST", "inputs"),
    "no input": (messages.ModelInferRequest(model_name="inference/first"), "INVALID_REQUEST", "inputs"),
    "another input too": (raw_request("inference/first", x=X, z=X), "INVALID_REQUEST", "inputs"),
    "datatype": (spoiled(datatype="INT32"), "INVALID_TENSOR", "inputs.x.datatype"),
    "no datatype": (spoiled(datatype=""), "INVALID_TENSOR", "inputs.x.datatype"),
    "size": (spoiled(shape=[2, 8, 9, 4]), "INVALID_TENSOR", "inputs.x"),
    "negative": (spoiled(shape=[2, 8, 9, -3]), "INVALID_TENSOR", "inputs.x.shape"),
    "zero": (spoiled(shape=[0, 8, 9, 3]), "INVALID_TENSOR", "inputs.x.shape"),
    "rank": (spoiled(shape=[2, 8, 27]), "INVALID_TENSOR", "inputs.x.shape"),
    "channels": (spoiled(shape=[2, 8, 27, 1]), "INVALID_TENSOR", "inputs.x.shape"),
    "too small for the kernel": (raw_request("inference/first", x=X[:, :2]), "INVALID_TENSOR", "inputs.x"),
    "no raw contents": (without_raw(), "INVALID_REQUEST", "raw_input_contents"),
    "more raw contents": (more_raw(), "INVALID_REQUEST", "raw_input_contents"),
    "typed FP16": (typed("FP16", fp32_contents=[1, 2, 3]), "INVALID_TENSOR", "inputs.x.contents"),
    "typed in another field": (typed("FP32", fp64_contents=[1, 2, 3]), "INVALID_TENSOR", "inputs.x.contents"),
    "typed too large": (typed("UINT8", uint_contents=[1, 2, 256]), "INVALID_TENSOR", "inputs.x.contents"),
    "typed too small": (typed("INT8", int_contents=[1, 2, -129]), "INVALID_TENSOR", "inputs.x.contents"),
    "version": (versioned("first"), "INVALID_REQUEST", "model_version"),
    "negative version": (versioned("-1"), "INVALID_REQUEST", "model_version"),
    "another output": (raw_request("inference/first", [Output(name="z")], x=X), "INVALID_REQUEST", "outputs"),
    "output twice": (raw_request("inference/first", [Output(name="y")] * 2, x=X), "INVALID_REQUEST", "outputs"),
    "output dtype": (raw_request("inference/first", parameters={"output_dtype": "INT8"}, x=X), "INVALID_TENSOR",
                     "parameters.output_dtype"),
    "long chain": (raw_request("a," * 2000, x=X), "INVALID_REQUEST", "model_name"),
    "no kernel": (raw_request("conv2d", x=X), "INVALID_REQUEST", "inputs"),
    "kernel": (raw_request("conv2d", x=X, kernel=KERNEL[:, :, :2]), "INVALID_WEIGHTS", "inputs.x"),
    "bias": (raw_request("conv2d", x=X, kernel=KERNEL, bias=KERNEL[0, 0, 0, :2]), "INVALID_WEIGHTS", "inputs.bias"),
    "unknown parameter": (raw_request("conv2d", parameters={"stride": 2}, x=X, kernel=KERNEL), "INVALID_CONFIGURATION",
                          "parameters.stride"),
    "wrong parameter": (raw_request("conv2d", parameters={"strides": 0}, x=X, kernel=KERNEL), "INVALID_CONFIGURATION",
                        "parameters.strides"),
    "no JSON": (raw_request("conv2d", parameters={"strides": "[2,"}, x=X, kernel=KERNEL), "INVALID_REQUEST",
                "parameters.strides"),
    "long JSON": (raw_request("conv2d", parameters={"strides": f"[{'[],' * 10**5}1]"}, x=X, kernel=KERNEL),
                  "INVALID_REQUEST", "parameters.strides"),
    "deep JSON": (raw_request("conv2d", parameters={"strides": "[" * 10**5}, x=X, kernel=KERNEL), "INVALID_REQUEST",
                  "parameters.strides"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "reason", "field"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_by_the_protocols_fields(caller, layer, request_, reason, field):
    _, found = refused(lambda: caller.infer(request_), reason=reason)
    assert list(found) == [field]


def test_an_unknown_model_or_version_is_not_found(caller, layer):
    for name, version in (("inference/nowhere", ""), ("inference/first", "2"), ("conv2d", "2"), ("", ""), ("a,,b", ""),
                          ("inference/first,inference/first", "2")):  # fmt: skip
        for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
            if (name, method) != ("", "ModelStatistics"):
                refused(lambda m=method: caller.call(m, name=name, version=version), NOT_FOUND, "LAYER_NOT_FOUND")  # noqa: B023
        request = raw_request(name, x=X)
        request.model_version = version
        refused(lambda: caller.infer(request), NOT_FOUND, "LAYER_NOT_FOUND")  # noqa: B023
        assert not caller.call("ModelReady", name=name, version=version).ready
    refused(lambda: caller.call("ModelReady", name="inference/first", version="one"))


def test_shared_memory_is_refused_where_it_is_not_allowed(caller, layer):
    unimplemented = grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"
    text, _ = refused(
        lambda: caller.call("SystemSharedMemoryRegister", name="a", key="/a", byte_size=8), *unimplemented
    )
    assert "--shared-memory" in text
    refused(lambda: caller.call("CudaSharedMemoryRegister", name="a", byte_size=8), *unimplemented)
    request = messages.ModelInferRequest(
        model_name="inference/first", inputs=[Tensor(name="x", datatype="FP32", shape=X.shape)]
    )
    request.inputs[0].parameters["shared_memory_region"].string_param = "a"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = X.nbytes
    refused(lambda: caller.infer(request), *unimplemented)
    assert not caller.call("SystemSharedMemoryStatus").regions
    assert not caller.call("CudaSharedMemoryStatus").regions
    caller.call("SystemSharedMemoryUnregister")
    caller.call("CudaSharedMemoryUnregister")


@pytest.mark.parametrize("rpc", INFERENCE_RPCS, ids=lambda rpc: rpc.name)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=64))
def test_any_bytes_are_answered_or_refused(caller, rpc, data):
    method = caller.channel.stream_stream(f"/inference.GRPCInferenceService/{rpc.name}")
    try:
        list(method(iter([data]), timeout=60))
    except grpc.RpcError as failure:
        assert failure.code() in (INVALID, NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED), failure.details()  # noqa: PT017


# The service


def test_reflection_and_health_have_the_true_names(server):
    with grpc.insecure_channel(server.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert file.package == "inference"
        (service,) = file.service
        types = {each.name: each.input_type for each in service.method}
        assert types["ModelStreamInfer"] == ".inference.ModelInferRequest"
        assert types.keys() == {each.name for each in INFERENCE_RPCS}
        assert database.FindFileContainingSymbol("google.rpc.BadRequest").package == "google.rpc"
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status == 1


def test_a_setting_turns_it_off():
    with numpy_server("--no-open-inference") as running, grpc.insecure_channel(running.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            InferenceCaller(channel).call("ServerLive")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "inference.GRPCInferenceService" not in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_a_server_that_stops_is_not_ready(client):
    with numpy_server("--pre-stop-s", "3600") as running, inference_caller(running.target) as caller:
        assert caller.call("ServerReady").ready
        running.process.terminate()
        for line in running.process.stdout:
            if line.startswith("stopping"):
                break
        assert not caller.call("ServerReady").ready
        assert caller.call("ServerLive").live


def test_metrics_count_its_calls():
    infer, stream = (f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
    request = raw_request("conv2d", x=X, kernel=KERNEL)
    wrong = raw_request("nowhere", x=X)
    with numpy_server("--metrics", "127.0.0.1:0") as running, inference_caller(running.target) as caller:
        meter = Meter(running.metrics)
        answer = caller.infer(request)
        assert [bool(each.error_message) for each in caller.stream([request, wrong])] == [False, True]
        refused(lambda: caller.infer(wrong), NOT_FOUND, "LAYER_NOT_FOUND")
        found = meter.after(3)
        assert found["convserve_requests_total", "OK", infer] == 1
        assert found["convserve_requests_total", "NOT_FOUND", infer] == 1
        assert found["convserve_requests_total", "OK", stream] == 1
        assert found["convserve_refused_total", "LAYER_NOT_FOUND"] == 2
        assert found["convserve_compute_seconds_count", infer] == found["convserve_compute_seconds_count", stream] == 1
        assert found["convserve_input_bytes_total", infer] == X.nbytes
        assert found["convserve_received_bytes_total", infer] == request.ByteSize() + wrong.ByteSize()
        assert found["convserve_sent_bytes_total", infer] == answer.ByteSize()


def test_a_stream_that_waits_keeps_no_tensor():
    """Each of them, and each message that one travels in, is 36 MB."""
    request, asked = raw_request("one", x=np.ones((1, 3000, 3000, 1), "f4")), queue.SimpleQueue()
    with (
        numpy_server("--no-keep-memory", environment=GIVES_BACK_FREED_MEMORY) as running,
        Client(running.target) as client,
        inference_caller(running.target) as caller,
    ):
        if client.info().max_message_bytes < 2 * request.ByteSize():
            pytest.skip("in a container of little memory messages are smaller")
        client.put(CONV2D.replace(filters=1, kernel_size=1), kernel=np.ones((1, 1, 1, 1), "f4"), name="one")
        before, stream = status(running.process.pid, "VmRSS"), caller.stream(iter(asked.get, None))
        for _ in range(3):
            asked.put(request)
            assert not next(stream).error_message
            eventually(lambda: status(running.process.pid, "VmRSS") < before + request.ByteSize() / 2)
        asked.put(None)
        assert not list(stream)


def test_an_error_in_a_stream_is_as_long_as_a_calls_own(caller):
    request = raw_request("conv2d", parameters={"s" * 10**6: 2}, x=X, kernel=KERNEL)
    (answer,) = caller.stream([request])
    with pytest.raises(grpc.RpcError) as caught:
        caller.infer(request)
    assert answer.error_message == caught.value.details()
    assert 100 < len(answer.error_message) < 2000
