"""Places in shared memory: within a region, beyond it, and in regions that go while a call computes."""

import os
import threading

import grpc
import numpy as np
import pytest

from convserve.v1.conv2d_pb2 import Padding, Size2D
from convserve.v1.convolution_service_pb2 import ConvolveRequest, ConvolveResponse
from convserve.v1.tensor_pb2 import Tensor
from tests.support.raw.calls import RPCS, checked, conv2d, layer, raw_caller, tensor, weights
from tests.support.raw.shared_memory import Sharer, X, check_sharing, place, refused, shared_request

MIB = 2**20
(CONVOLVE,) = (each for each in RPCS if each.name == "Convolve")
LOST = (grpc.StatusCode.UNAVAILABLE, "SHARED_MEMORY_LOST")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TENSOR")


@pytest.fixture
def caller(sharing_server):
    """A caller, after whom the server must still be well."""
    with raw_caller(sharing_server.target) as connected:
        yield connected
        connected.check_service()
        with Sharer.of(connected) as sharer:
            check_sharing(connected, sharer)


@pytest.fixture
def sharer(caller):
    with Sharer.of(caller) as connected:
        yield connected


@pytest.mark.parametrize("name", [b"", bytes(15), bytes(16), bytes(17), bytes(1000)], ids=len)
def test_a_name_of_nothing(caller, name):
    for request in (shared_request(place(name)), shared_request(None, place(name), input=tensor(X))):
        refused(caller, request, *LOST)


# Places

SIZE = 4096
BAD_OFFSETS = [-1, -64, -(2**63), 1, 63, 65, SIZE, SIZE + 64, SIZE - 1, 2**31, 2**62, 2**63 - 64, 2**63 - 1]


@pytest.mark.parametrize("offset", BAD_OFFSETS)
def test_an_input_that_is_not_within_its_region(caller, sharer, offset):
    region = sharer.share(SIZE)
    text, fields = refused(caller, shared_request(region.place(offset)), *INVALID)
    assert f"offset_bytes={offset}." in text
    assert list(fields) == ["input"]


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 4, 65), (1, 2**31, 1, 1), (2**60, 1, 1, 1), (2**62, 4, 1, 1), (0, 1, 1, 1), (1, -1, 1, 1), (1,) * 9, ()],
)
def test_an_input_larger_than_its_region(caller, sharer, shape):
    region = sharer.share(SIZE)
    refused(caller, shared_request(region.place(), shape=shape), *INVALID)


@pytest.mark.parametrize("offset", [each for each in BAD_OFFSETS if each != SIZE])
def test_an_output_that_is_not_within_its_region(caller, sharer, offset):
    region = sharer.share(SIZE)
    request = shared_request(None, region.place(offset), input=tensor(X))
    _, fields = refused(caller, request, *INVALID)
    assert list(fields) == ["output_memory"]


@pytest.mark.parametrize("offset", [0, SIZE - 64])
def test_an_output_for_which_there_is_no_room_comes_in_the_message(caller, sharer, offset):
    region = sharer.share(SIZE)
    x = np.ones((1, 32, 33, 1), "f4")
    answer = caller.stub.Convolve(shared_request(None, region.place(offset), input=tensor(x)), timeout=60)
    assert answer.output.data == (2 * x).tobytes()
    assert not answer.output.HasField("shared_memory")
    assert region.map[:] == bytes(SIZE)


@pytest.mark.parametrize("offset", [0, 64, 128, 960, 1024])
def test_input_and_output_may_overlap(caller, sharer, offset):
    region = sharer.share(SIZE)
    x = np.arange(256, dtype="<f4")
    region.map[:1024] = x.tobytes()
    caller.stub.Convolve(shared_request(region.place(), region.place(offset), (1, 16, 16, 1)), timeout=60)
    assert region.map[offset : offset + 1024] == (2 * x).tobytes()


def test_a_place_is_passed_over_beside_elements_in_any_order_of_fields(caller, sharer):
    region = sharer.share(SIZE)
    region.map[:64] = X.tobytes()
    layers = ConvolveRequest(layers=shared_request(region.place()).layers).SerializeToString()
    head = Tensor(dtype=1, shape=X.shape).SerializeToString()
    inside = Tensor(shared_memory=region.place()).SerializeToString()
    for elements, x in ((b"", X), ((X + 1).tobytes(), X + 1)):
        beside = b"\x7a" + bytes([len(elements)]) + elements
        for fields in ([head, inside, beside], [beside, head, inside], [inside, beside, head]):
            tensor_bytes = b"".join(fields)
            assert len(tensor_bytes) < 128
            request = layers + b"\x7a" + bytes([len(tensor_bytes)]) + tensor_bytes
            assert ConvolveRequest.FromString(request).input.shared_memory == region.place()
            (answer,) = caller.send(CONVOLVE, request)
            assert ConvolveResponse.FromString(answer).output.data == (2 * x).tobytes()


# While a call computes


def slow_call(region):
    """Returns a request over a region of 1 MiB and more that takes a while."""
    window = Size2D(height=31, width=31)
    config = conv2d(filters=16, kernel_size=window, padding=Padding(mode=2))
    layers = [layer(config, weights=weights(np.ones((31, 31, 1, 16)))), layer(weights=weights(np.ones((1, 1, 16, 1))))]
    return shared_request(region.place(), region.place(MIB // 2), (1, 300, 300, 1), layers=layers)


@pytest.mark.parametrize("end", ["forgotten", "connection closed"])
def test_a_region_that_goes_while_a_call_computes(caller, end):
    with Sharer.of(caller) as sharer:
        region = sharer.share(MIB)
        region.map[: MIB // 2] = np.ones(MIB // 8, "f4").tobytes()
        expected = caller.stub.Convolve(slow_call(region), timeout=60)
        assert expected.output.HasField("shared_memory")
        call = caller.stub.Convolve.future(slow_call(region), timeout=60)
        if end == "forgotten":
            assert sharer.send(region.name) == b"\1"
        else:
            sharer.socket.close()
        if call.exception(timeout=60) is not None:
            checked(call.exception(), *LOST)
        elif call.result().output.data:
            assert call.result().output.data == region.map[MIB // 2 : MIB // 2 + 360_000]


def test_memory_that_changes_while_a_call_computes(caller, sharer):
    region = sharer.share(MIB)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            region.map[:MIB] = os.urandom(MIB)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            answer = caller.stub.Convolve(slow_call(region), timeout=60)
            assert list(answer.output.shape) == [1, 300, 300, 1]
    finally:
        stop.set()
        writer.join()
