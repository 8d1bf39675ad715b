"""An answer whose output lies in shared memory: taken if it is the one that was asked for, where it was asked for."""

from __future__ import annotations

import mmap
from typing import Any
from unittest import mock

import numpy as np
import pytest

from convserve import Conv2D, InternalError, Layer, SharedMemoryLostError
from convserve._rpc.requests import convolve_request
from convserve._rpc.shared_memory import SharedRequest
from convserve.tensors.shared_memory import Region
from convserve.v1.convolution_service_pb2 import ConvolveRequest, ConvolveResponse, LayerOutcome

LAYER = Layer(Conv2D(4, 3, use_bias=False, data_format="channels_last"), np.ones((3, 3, 3, 4), "f4"))
SHAPE = (2, 6, 6, 4)


@pytest.fixture
def shared() -> SharedRequest:
    """A request in memory that nobody else has."""
    memory = mock.Mock()
    memory.region.side_effect = lambda size, _: Region(size)
    memory.place_of.return_value = None
    return SharedRequest(memory, convolve_request(LAYER, np.ones((2, 8, 8, 3), "f4"), None), 1)


def answer(shared: SharedRequest, shape: Any = SHAPE, dtype: int = 1, layers: int = 1) -> ConvolveResponse:
    made = ConvolveResponse(layers=[LayerOutcome()] * layers)
    made.output.dtype = dtype
    made.output.shape.extend(shape)
    made.output.shared_memory.CopyFrom(ConvolveRequest.FromString(shared.data).output_memory)
    return made


def test_the_output_that_was_asked_for(shared: SharedRequest) -> None:
    shared._output.shared()[: 4 * 288].view("f4")[:] = 27
    output = shared.result(answer(shared).SerializeToString()).output
    np.testing.assert_array_equal(output, np.full(SHAPE, 27, "f4"))


@pytest.mark.parametrize(
    "lie",
    [{"shape": (2, 4, 9, 4)}, {"shape": (288,)}, {"shape": (7, 6, 6, 4)}, {"dtype": 2}, {"layers": 0}, {"layers": 2},
     {"layers": 1_000_000}],
    ids=str,
)  # fmt: skip
def test_another_output(shared: SharedRequest, lie: dict[str, Any]) -> None:
    with pytest.raises(InternalError, match="Expected an answer as the contract has it"):
        shared.result(answer(shared, **lie).SerializeToString())


def test_memory_that_was_withdrawn_while_the_server_wrote_into_it() -> None:
    memory, region, out = mock.Mock(), Region(288 * 4), np.empty(SHAPE, "f4")
    memory.region.side_effect = lambda size, _: Region(size)
    memory.place_of.side_effect = lambda array: region.place() if array is out else None
    shared = SharedRequest(memory, convolve_request(LAYER, np.ones((2, 8, 8, 3), "f4"), None, out=out), 1)
    data = answer(shared).SerializeToString()
    assert shared.result(data).output is out
    memory.place_of.side_effect = lambda _: None
    with pytest.raises(SharedMemoryLostError):  # which has the call made again
        shared.result(data)


def test_what_a_server_writes_to_memory_that_was_withdrawn_is_not_seen() -> None:
    region = Region(2**18)
    own = region.shared()
    with mmap.mmap(region.descriptor, region.size) as servers:
        own[:] = 1
        servers[5:6] = b"\5"
        region.withdraw()
        servers[:] = bytes(region.size)
        assert own[5] == 5
        assert own.sum() == region.size + 4
        own[7] = 9
        assert servers[7] == 0
        del own, region


@pytest.mark.parametrize("place", [{"region": bytes(16)}, {"offset_bytes": 64}, {"offset_bytes": 2**62}], ids=str)
def test_another_place(shared: SharedRequest, place: dict[str, Any]) -> None:
    made = answer(shared)
    for field, value in place.items():
        setattr(made.output.shared_memory, field, value)
    with pytest.raises(InternalError, match="in another place than was asked for"):
        shared.result(made.SerializeToString())


def test_an_output_that_came_by_itself_is_checked_too(shared: SharedRequest) -> None:
    made = answer(shared, (2, 4, 9, 4))
    made.output.ClearField("shared_memory")
    made.output.data = bytes(4 * 288)
    with pytest.raises(InternalError, match="an output of shape"):
        shared.result(made.SerializeToString())
