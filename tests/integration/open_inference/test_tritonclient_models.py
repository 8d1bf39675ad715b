"""What unmodified tritonclient, blocking and awaited, is told of a server and its models."""

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.tritonclient.process import InferenceServerError

LAST = {"data_format": "channels_last"}
KERNEL = np.random.default_rng(0).integers(-2, 3, (3, 3, 2, 4)).astype("f4")
STEM = Layer(Conv2D(4, 3, use_bias=False, **LAST), KERNEL)
HALF = Layer(Conv2D(4, 3, use_bias=False, dtype="float16", **LAST), KERNEL)
X = np.random.default_rng(1).integers(-3, 4, (3, 8, 8, 2)).astype("f4")


@pytest.fixture(scope="module", autouse=True)
def native(sharing_server):
    """Our own client, which stores what the tests call."""
    with convserve.Client(sharing_server.target) as client:
        client.put(STEM, name="models-stem")
        client.put(HALF, name="models-half")
        yield client


def refused(function, *arguments, **options):
    with pytest.raises(InferenceServerError) as raised:
        function(*arguments, **options)
    return raised.value


def test_the_server_is_live_and_ready(triton):
    assert triton.is_server_live() is True
    assert triton.is_server_ready() is True


def test_the_server_says_what_it_is(triton):
    found = triton.get_server_metadata(as_json=True)
    assert found["name"] == "convserve"
    assert found["version"] == convserve.__version__
    assert {"statistics", "model_repository", "model_configuration", "system_shared_memory"} <= set(found["extensions"])


@pytest.mark.parametrize(("name", "datatype"), [("models-stem", "FP32"), ("models-half", "FP16")])
def test_a_stored_layer_is_a_model(triton, name, datatype):
    assert triton.is_model_ready(name) is True
    assert triton.is_model_ready(name, "1") is True
    assert triton.get_model_metadata(name, as_json=True) == {
        "name": name,
        "versions": ["1"],
        "platform": "convserve",
        "inputs": [{"name": "x", "datatype": datatype, "shape": ["-1", "-1", "-1", "2"]}],
        "outputs": [{"name": "y", "datatype": datatype, "shape": ["-1", "-1", "-1", "4"]}],
    }


@pytest.mark.parametrize(("name", "datatype"), [("models-stem", "TYPE_FP32"), ("models-half", "TYPE_FP16")])
def test_a_model_has_a_configuration(triton, name, datatype):
    config = triton.get_model_config(name, as_json=True)["config"]
    assert config["name"] == name
    assert config["max_batch_size"] >= 1  # then the first dimension of the metadata's shapes is the batch
    assert config["input"] == [{"name": "x", "data_type": datatype, "format": "FORMAT_NHWC", "dims": ["-1", "-1", "2"]}]
    assert config["output"] == [{"name": "y", "data_type": datatype, "dims": ["-1", "-1", "4"]}]


def test_the_index_lists_what_is_stored(triton, native):
    found = triton.get_model_repository_index(as_json=True)["models"]
    assert {"name": "models-stem", "version": "1", "state": "READY"} in found
    assert {"models-stem", "models-half", "conv2d"} <= {each["name"] for each in found}


def test_a_model_that_is_not_there_is_not_ready_and_not_found(triton):
    assert triton.is_model_ready("models-none") is False
    assert triton.is_model_ready("models-stem", "77") is False
    for method in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        error = refused(getattr(triton, method), "models-none")
        assert error.status == "NOT_FOUND"
        assert "models-none" in error.message


def test_versions_grow_as_a_name_moves_and_old_ones_stay_callable(triton, native):
    name = f"models-moving-{triton.kind}"
    expected = {}
    for version in ("1", "2", "3"):
        stored = native.put(Layer(STEM.config, KERNEL * int(version)), name=name)
        expected[version] = stored(X)
        assert triton.get_model_metadata(name, as_json=True)["versions"][-1] == version
        newest = triton.infer(name, {"x": X})
        assert newest["model_version"] == version
        np.testing.assert_array_equal(newest["arrays"]["y"], expected[version])
    for version, y in expected.items():
        answer = triton.infer(name, {"x": X}, model_version=version)
        assert answer["model_version"] == version
        np.testing.assert_array_equal(answer["arrays"]["y"], y)
    native.put(Layer(STEM.config, KERNEL), name=name)  # back to what it was: a version of its own again
    assert triton.infer(name, {"x": X})["model_version"] == "4"


def test_loading_and_unloading_a_model(triton):
    triton.load_model("models-stem")
    assert triton.is_model_ready("models-stem") is True
    triton.unload_model("models-stem")
    assert triton.is_model_ready("models-stem") is True  # every stored layer can be called
    for method in (triton.load_model, triton.unload_model):
        error = refused(method, "models-none")
        assert error.status == "NOT_FOUND"
        assert "models-none" in error.message


def test_statistics_of_all_models(triton):
    triton.infer("models-stem", {"x": X})
    found = triton.get_inference_statistics(as_json=True)["model_stats"]
    assert "models-stem" in {each["name"] for each in found}


def test_cuda_shared_memory_is_answered_sensibly(triton):
    assert triton.get_cuda_shared_memory_status(as_json=True) == {}
    triton.unregister_cuda_shared_memory()
    assert refused(triton.register_cuda_shared_memory, "region", b"aGFuZGxl", 0, 64).status == "UNIMPLEMENTED"


def test_what_is_not_there_says_so(triton):
    assert refused(triton.get_log_settings).status == "UNIMPLEMENTED"
    assert refused(triton.get_trace_settings).status == "UNIMPLEMENTED"
