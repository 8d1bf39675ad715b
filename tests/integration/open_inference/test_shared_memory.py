"""System shared memory through the Open Inference Protocol: both ways, and what a hostile or careless caller does."""

import os
import secrets
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest

from convserve import Client, Conv2D
from convserve_server.open_inference.system_memory import user_of
from tests.support.processes import descriptors
from tests.support.raw.calls import checked
from tests.support.raw.inference import (
    InferenceCaller,
    Output,
    Tensor,
    inference_caller,
    messages,
    output_of,
    place,
    raw_request,
)
from tests.support.servers.server_process import numpy_server

FOLDER = Path("/dev/shm")  # noqa: S108
SIZE = 2**16
X = np.arange(2 * 8 * 8 * 3, dtype="f4").reshape(2, 8, 8, 3)
KERNEL = np.arange(3 * 3 * 3 * 4, dtype="f4").reshape(3, 3, 3, 4)
INVALID = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"


@pytest.fixture
def key():
    """The name of 64 KiB of shared memory, with X at their beginning."""
    name = f"convserve-test-{secrets.token_hex(8)}"
    (FOLDER / name).write_bytes(X.tobytes().ljust(SIZE, b"\0"))
    yield f"/{name}"
    (FOLDER / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def expected(sharing_server):
    """What the model "shared" computes of X."""
    with Client(sharing_server.target) as client:
        return client.put(Conv2D(4, 3, use_bias=False), kernel=KERNEL, name="shared")(X)


@pytest.fixture
def caller(sharing_server, expected):
    with inference_caller(sharing_server.target) as connected:
        yield connected
        connected.call("SystemSharedMemoryUnregister")


def content(key, offset=0, count=None, shape=None):
    data = (FOLDER / key.removeprefix("/")).read_bytes()[offset:]
    return np.frombuffer(data, "f4", count).reshape(shape)


def shared_request(region, output=None, x=X, **inside):
    """Returns a request whose input is in a region, and whose output goes there if there is a place for it."""
    tensor = place(Tensor(name="x", datatype="FP32", shape=x.shape), region, **({"size": x.nbytes} | inside))
    outputs = [] if output is None else [place(Output(name="y"), region, **output)]
    return messages.ModelInferRequest(model_name="shared", inputs=[tensor], outputs=outputs)


def refused(call, code=INVALID[0], reason=INVALID[1]):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return checked(caught.value, code, reason)


def test_tensors_go_both_ways(caller, key, expected):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    caller.call("SystemSharedMemoryRegister", name="b", key=key, offset=4096, byte_size=SIZE - 4096)
    assert "system_shared_memory" in caller.call("ServerMetadata").extensions
    answer = caller.infer(shared_request("a", {"size": SIZE - 20_000, "offset": 20_000}))
    (tensor,) = answer.outputs
    told = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in tensor.parameters.items()}
    assert told == {
        "shared_memory_region": "a",
        "shared_memory_byte_size": expected.nbytes,
        "shared_memory_offset": 20_000,
    }
    assert list(answer.raw_output_contents) == [b""]
    np.testing.assert_array_equal(content(key, 20_000, expected.size, expected.shape), expected)
    # One way alone, and through the other region.
    np.testing.assert_array_equal(output_of(caller.infer(shared_request("a"))), expected)
    outside = raw_request("shared", [place(Output(name="y"), "b", expected.nbytes, 36_000)], x=X)
    caller.infer(outside)
    np.testing.assert_array_equal(content(key, 40_096, expected.size, expected.shape), expected)
    (answer,) = caller.stream([shared_request("a", {"size": 8192, "offset": 8192})])
    assert not answer.error_message
    np.testing.assert_array_equal(content(key, 8192, expected.size, expected.shape), expected)


def test_input_and_output_may_overlap(caller, key, expected):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    caller.infer(shared_request("a", {"size": SIZE, "offset": 0}))
    np.testing.assert_array_equal(content(key, 0, expected.size, expected.shape), expected)


def test_the_stateless_models_kernel_may_be_there_too(caller, key, expected):
    with (FOLDER / key.removeprefix("/")).open("r+b") as file:
        file.seek(32_768)
        file.write(KERNEL.tobytes())
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    request = shared_request("a")
    request.model_name = "conv2d"
    request.inputs.append(place(Tensor(name="kernel", datatype="FP32", shape=KERNEL.shape), "a", KERNEL.nbytes, 32_768))
    np.testing.assert_array_equal(output_of(caller.infer(request)), expected)


def test_regions_are_listed_until_they_are_unregistered(caller, key):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    caller.call("SystemSharedMemoryRegister", name="b", key=key, offset=64, byte_size=128)
    found = caller.call("SystemSharedMemoryStatus").regions
    assert {name: (each.name, each.key, each.offset, each.byte_size) for name, each in found.items()} == {
        "a": ("a", key, 0, SIZE),
        "b": ("b", key, 64, 128),
    }
    assert set(caller.call("SystemSharedMemoryStatus", name="b").regions) == {"b"}
    caller.call("SystemSharedMemoryUnregister", name="b")
    refused(lambda: caller.call("SystemSharedMemoryStatus", name="b"))
    caller.call("SystemSharedMemoryUnregister")
    assert not caller.call("SystemSharedMemoryStatus").regions


WRONG = {
    "unknown region": (shared_request("none"), "inputs.x"),
    "no region": (shared_request(""), "inputs.x"),
    "beyond the end": (shared_request("a", offset=SIZE - 8), "inputs.x"),
    "far beyond the end": (shared_request("a", offset=2**62), "inputs.x"),
    "output beyond the end": (shared_request("a", {"size": 8192, "offset": SIZE - 8}), "outputs.y"),
    "output too small": (shared_request("a", {"size": 8}), "outputs.y"),
    "unknown region for the output": (raw_request("shared", [place(Output(name="y"), "none", SIZE)], x=X), "outputs.y"),
    "negative offset": (shared_request("a", offset=-64), "inputs.x.parameters.shared_memory_offset"),
}


@pytest.mark.parametrize(("request_", "field"), WRONG.values(), ids=WRONG)
def test_a_wrong_place_is_refused(caller, key, request_, field):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    _, found = refused(lambda: caller.infer(request_))
    assert list(found) == [field]


def test_a_size_that_is_not_the_tensors_is_refused(caller, key):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    _, found = refused(lambda: caller.infer(shared_request("a", size=X.nbytes - 4)), reason="INVALID_TENSOR")
    assert list(found) == ["inputs.x"]


def test_memory_that_shrinks_harms_nobody(sharing_server, caller, key, expected):
    """Where the server had mapped it, this would end its process."""
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    for size in (1000, 0):  # less than either tensor
        os.truncate(FOLDER / key.removeprefix("/"), size)
        _, found = refused(lambda: caller.infer(shared_request("a")))
        assert list(found) == ["inputs.x"]
        outside = raw_request("shared", [place(Output(name="y"), "a", SIZE)], x=X)
        _, found = refused(lambda: caller.infer(outside))  # noqa: B023
        assert list(found) == ["outputs.y"]
        assert (FOLDER / key.removeprefix("/")).stat().st_size == size
    np.testing.assert_array_equal(output_of(caller.infer(raw_request("shared", x=X))), expected)
    assert sharing_server.process.poll() is None


def test_no_descriptor_is_left_behind(sharing_server, caller, key):
    before = descriptors(sharing_server.process.pid)
    for _ in range(20):
        caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
        caller.infer(shared_request("a"))
        caller.call("SystemSharedMemoryUnregister", name="a")
        refused(lambda: caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE + 1))
    assert descriptors(sharing_server.process.pid) <= before + 2


def test_callers_with_tokens_have_regions_of_their_own(tmp_path, key):
    first, second = (f"{name}-0123456789abcdef" for name in ("first", "second"))
    (tmp_path / "tokens").write_text(f"first {first} read,compute\nsecond {second} read,compute\n")
    arguments = ("--shared-memory", "--tokens-file", f"{tmp_path}/tokens", "--listen", f"unix://{tmp_path}/s")
    with numpy_server(*arguments) as running:
        bearers = [(("authorization", f"Bearer {token}"),) for token in (first, second)]
        with inference_caller(running.target, bearers[0]) as one, inference_caller(running.target, bearers[1]) as two:
            one.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
            assert set(one.call("SystemSharedMemoryStatus").regions) == {"a"}
            assert not two.call("SystemSharedMemoryStatus").regions
            two.call("SystemSharedMemoryUnregister")
            assert set(one.call("SystemSharedMemoryStatus").regions) == {"a"}
            request = shared_request("a")
            request.model_name = "conv2d"
            request.inputs.add(name="kernel", datatype="FP32", shape=KERNEL.shape)
            request.raw_input_contents.append(KERNEL.tobytes())
            assert one.infer(request).outputs
            refused(lambda: two.infer(request))


def test_a_connections_user_is_found():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as connected:
            assert user_of(f"ipv4:127.0.0.1:{connected.getsockname()[1]}") == os.geteuid()
        with socket.socket(socket.AF_INET6) as mapped:
            mapped.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
            assert user_of(f"ipv4:127.0.0.1:{mapped.getsockname()[1]}") == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")
def test_another_users_connection_is_told_from_ones_own(caller, key):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.seteuid(65534)
        try:
            connected = socket.socket()
        finally:
            os.seteuid(0)
        with connected:
            connected.connect(listener.getsockname())
            assert user_of(f"ipv4:127.0.0.1:{connected.getsockname()[1]}") == 65534
    os.chown(FOLDER / key.removeprefix("/"), 65534, -1)
    _, found = refused(lambda: caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE))
    assert list(found) == ["key"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")
def test_another_user_finds_no_region(sharing_server, caller, key):
    caller.call("SystemSharedMemoryRegister", name="a", key=key, byte_size=SIZE)
    apart = [("grpc.use_local_subchannel_pool", 1)]  # else it would share the first caller's connection
    with grpc.insecure_channel(sharing_server.target, apart) as channel:
        other = InferenceCaller(channel)
        os.seteuid(65534)
        try:
            grpc.channel_ready_future(channel).result(60)
        finally:
            os.seteuid(0)
        assert not other.call("SystemSharedMemoryStatus").regions
        _, found = refused(lambda: other.infer(shared_request("a")))
        assert list(found) == ["inputs.x"]
        outside = raw_request("shared", [place(Output(name="y"), "a", SIZE)], x=X)
        _, found = refused(lambda: other.infer(outside))
        assert list(found) == ["outputs.y"]
        other.call("SystemSharedMemoryUnregister")
    assert set(caller.call("SystemSharedMemoryStatus").regions) == {"a"}
