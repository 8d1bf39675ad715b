"""The calls that perf_analyzer 2.60.0 makes, in its order and with its messages, as they were recorded.

Its wheel wants a newer C library than many machines have, so they are replayed. What is asserted is what it reads from
the answers (model_parser.cc, inference_profiler.cc and infer_context.cc of triton-inference-server/perf_analyzer).
"""

import base64
import uuid

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.engines.numpy_engine import convolved

STEM = Layer(
    Conv2D(4, 3, padding="same", use_bias=False, data_format="channels_last"),
    np.random.default_rng(0).integers(-2, 3, (3, 3, 2, 4)).astype("f4"),
)
SHAPE = [8, 9, 2]  # --shape x:8,9,2
X = np.random.default_rng(1).integers(-3, 4, (3, *SHAPE)).astype("f4")  # -b 3
Y = convolved(STEM, X).astype("f4")
REGION_BYTES = 102400 * len(X)  # --output-shared-memory-size, by default, and the batch
REQUESTS = 6
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
def name(triton, sharing_server):
    with convserve.Client(sharing_server.target) as client:
        return client.put(STEM, name=f"analyzed-{uuid.uuid4().hex}").name


@pytest.fixture
def regions(triton):
    """Its regions' names, "y" and "x_0_0", with keys that no other process has."""
    made = {name: f"{name}-{uuid.uuid4().hex}" for name in ("y", "x_0_0")}
    for key, size in zip(made.values(), (REGION_BYTES, X.nbytes), strict=True):
        triton.region("create", key, f"/{key}", size)
    triton.region("write", made["x_0_0"], X)
    yield made
    for key in made.values():
        triton.region("destroy", key)


def request(name, number, version="", **tensors):
    """Returns one of its requests. The parameter comes with every one, of a stream or not."""
    return {
        "model_name": name,
        "model_version": version,
        "id": str(number),
        "parameters": {"triton_enable_empty_final_response": {"bool_param": True}},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": list(X.shape)} | tensors.get("x", {})],
        "outputs": [{"name": "y"} | tensors.get("y", {})],
    } | ({} if tensors else {"raw_input_contents": [base64.b64encode(X).decode()]})


def shared(region, size):
    parameters = {"shared_memory_region": {"string_param": region}, "shared_memory_byte_size": {"int64_param": size}}
    return {"parameters": parameters}


def begin(triton, name, version=""):
    """Asks what it asks first, and reads that as it does."""
    metadata = triton.message("ModelMetadata", {"name": name, "version": version})
    config = triton.message("ModelConfig", {"name": name, "version": version})["config"]
    assert config["max_batch_size"] >= len(X)  # it refuses -b otherwise, and leaves out the shapes' first dimension
    (x,), (y,) = metadata["inputs"], metadata["outputs"]
    assert (x["name"], x["datatype"], y["name"], y["datatype"]) == ("x", "FP32", "y", "FP32")
    assert "-1" in x["shape"][1:]  # only then does it heed --shape
    assert [each["name"] for each in config["input"]] == ["x"]
    assert [each["name"] for each in config["output"]] == ["y"]
    assert "sequence_batching" not in config
    assert "ensemble_scheduling" not in config
    assert not config["model_transaction_policy"].get("decoupled")


def statistics(triton, name, version=""):
    """Returns the statistics of the versions that it finds by name."""
    assert "statistics" in triton.message("ServerMetadata", {})["extensions"]
    found = triton.message("ModelStatistics", {"name": name, "version": version})["model_stats"]
    return {int(each["version"]): each for each in found if each["name"] == name}


def check_statistics(before, after):
    (version,) = [number for number in after if count(after, number, "queue") > count(before, number, "queue")]
    assert version == 1
    counted = [count(after, version, part) - count(before, version, part) for part in (*PARTS, "success")]
    assert counted == [REQUESTS] * 5
    grown = [int(after[1][key]) - int(before[1].get(key, 0)) for key in ("inference_count", "execution_count")]
    assert grown[0] == REQUESTS * len(X)
    assert 1 <= grown[1] <= REQUESTS
    spent = {part: time(after, part) - time(before, part) for part in (*PARTS, "success")}
    assert 0 < sum(spent[part] for part in PARTS) <= spent["success"]  # the rest is shown as overhead


def count(found, version, part):
    return int(found.get(version, {}).get("inference_stats", {}).get(part, {}).get("count", 0))


def time(found, part):
    return int(found[1]["inference_stats"][part].get("ns", 0))


@pytest.mark.parametrize("version", ["", "1"])
def test_one_request_after_the_other(triton, name, version):
    begin(triton, name, version)
    before = statistics(triton, name, version)
    for number in range(REQUESTS):
        answer = triton.infer_message(request(name, number, version))
        assert answer["id"] == str(number)
        np.testing.assert_array_equal(answer["arrays"]["y"], Y)
    check_statistics(before, statistics(triton, name, version))


def test_streaming(triton, name):
    begin(triton, name)
    before = statistics(triton, name)
    answers = triton.stream_messages(*(request(name, number) for number in range(REQUESTS)))
    assert [each["id"] for each in answers] == [str(number) for number in range(REQUESTS)]
    for each in answers:
        assert each["parameters"]["triton_final_response"] == {"bool_param": True}  # it waits for it
        np.testing.assert_array_equal(each["arrays"]["y"], Y)
    check_statistics(before, statistics(triton, name))


@pytest.mark.parametrize("streaming", [False, True])
def test_shared_memory_system(triton, name, regions, streaming):
    begin(triton, name)
    triton.message("SystemSharedMemoryUnregister", {})
    triton.message("CudaSharedMemoryUnregister", {})
    for region, size in (("y", REGION_BYTES), ("x_0_0", X.nbytes)):
        register = {"name": region, "key": f"/{regions[region]}", "byte_size": size}
        triton.message("SystemSharedMemoryRegister", register)
    before = statistics(triton, name)
    tensors = {"x": shared("x_0_0", X.nbytes), "y": shared("y", REGION_BYTES)}
    requests = [request(name, number, **tensors) for number in range(REQUESTS)]
    answers = triton.stream_messages(*requests) if streaming else list(map(triton.infer_message, requests))
    assert [each["id"] for each in answers] == [str(number) for number in range(REQUESTS)]
    np.testing.assert_array_equal(triton.region("read", regions["y"], np.float32, Y.shape), Y)
    check_statistics(before, statistics(triton, name))
    triton.message("SystemSharedMemoryUnregister", {})
    triton.message("CudaSharedMemoryUnregister", {})
