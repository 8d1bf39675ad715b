"""Unmodified tritonclient, blocking and awaited, with its tensors in system shared memory, both ways."""

import uuid

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.tritonclient.process import InferenceServerError

DOUBLE = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), 2.0))
X = np.random.default_rng(0).integers(-99, 99, (3, 40, 50, 1)).astype("f4")
SHARED_X = (X.nbytes, 0, X.shape, "FP32")


@pytest.fixture(scope="module", autouse=True)
def model(sharing_server):
    with convserve.Client(sharing_server.target) as client:
        client.put(DOUBLE, name="shared-double")


@pytest.fixture
def regions(triton):
    """Returns a function that makes a region of so many bytes and registers it; all are gone afterwards."""
    made = []

    def made_and_registered(size, offset=0):
        name = f"convserve-test-{uuid.uuid4().hex}"
        triton.region("create", name, f"/{name}", size)
        made.append(name)
        triton.register_system_shared_memory(name, f"/{name}", size - offset, offset)
        return name

    yield made_and_registered
    triton.unregister_system_shared_memory()
    for name in made:
        triton.region("destroy", name)


def refused(function, *arguments, **options):
    with pytest.raises(InferenceServerError) as raised:
        function(*arguments, **options)
    return raised.value


def test_an_input_and_an_output_may_be_shared(triton, regions):
    x, y = regions(X.nbytes), regions(2 * X.nbytes)
    triton.region("write", x, X)
    answer = triton.infer("shared-double", {"x": (x, *SHARED_X)}, {"y": (y, 2 * X.nbytes, 0)})
    assert answer["arrays"] == {}
    (head,) = answer["outputs"]
    assert (head["name"], head["datatype"], head["shape"]) == ("y", "FP32", [str(each) for each in X.shape])
    assert head["parameters"]["shared_memory_region"]["string_param"] == y
    assert head["parameters"]["shared_memory_byte_size"]["int64_param"] == str(X.nbytes)
    np.testing.assert_array_equal(triton.region("read", y, np.float32, X.shape), 2 * X)


def test_one_region_may_have_both_at_offsets(triton, regions):
    region = regions(2 * X.nbytes + 128, 64)  # registered from its byte 64 on
    triton.region("write", region, X, 64)
    end = X.nbytes + 64
    triton.infer("shared-double", {"x": (region, *SHARED_X)}, {"y": (region, X.nbytes, end)})
    np.testing.assert_array_equal(triton.region("read", region, np.float32, X.shape, 64), X)
    np.testing.assert_array_equal(triton.region("read", region, np.float32, X.shape, 64 + end), 2 * X)


def test_a_stream_may_share_too(triton, regions):
    x, y = regions(4 * X.nbytes), regions(4 * X.nbytes)
    requests = []
    for number in range(4):
        triton.region("write", x, number * X, number * X.nbytes)
        shared = (x, X.nbytes, number * X.nbytes, X.shape, "FP32")
        outputs = {"y": (y, X.nbytes, number * X.nbytes)}
        requests.append({"model_name": "shared-double", "inputs": {"x": shared}, "outputs": outputs})
    assert not [each for each in triton.stream(*requests) if isinstance(each, str)]
    for number in range(4):
        found = triton.region("read", y, np.float32, X.shape, number * X.nbytes)
        np.testing.assert_array_equal(found, 2 * number * X)


def test_the_status_lists_what_is_registered(triton, regions):
    name, other = regions(4096), regions(8192, 1024)
    found = triton.get_system_shared_memory_status(as_json=True)["regions"]
    assert found[name] == {"name": name, "key": f"/{name}", "byte_size": "4096"}
    assert found[other] == {"name": other, "key": f"/{other}", "byte_size": "7168", "offset": "1024"}
    assert set(triton.get_system_shared_memory_status(name, as_json=True)["regions"]) == {name}
    triton.unregister_system_shared_memory(name)
    assert name not in triton.get_system_shared_memory_status(as_json=True)["regions"]
    triton.unregister_system_shared_memory(name)  # once more is no error
    assert refused(triton.get_system_shared_memory_status, name).status == "INVALID_ARGUMENT"
    triton.unregister_system_shared_memory()
    assert triton.get_system_shared_memory_status(as_json=True) == {}
