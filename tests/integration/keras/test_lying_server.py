"""A RemoteConv2D of a server that lies: an error, in a graph and outside of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import keras
import numpy as np
import pytest

from convserve import InternalError
from convserve.keras import RemoteConv2D
from convserve.v1 import convolution_service_pb2 as cs
from convserve.v1 import layer_service_pb2 as ls
from convserve.v1.layer_pb2 import StoredLayer
from tests.support.servers.lying_server import CONVOLUTION, LAYERS, lying_server

SHAPE = (2, 6, 6, 4)


def put(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[Any]:
    """Answers with the layer that comes, as if it had been there."""
    start = ls.PutLayerRequest.FromString(next(requests)).start
    conv2d, shape = start.conv2d, start.weights.kernel_shape
    yield ls.PutLayerResponse(layer=StoredLayer(digest=start.expected_digest, conv2d=conv2d, kernel_shape=shape))


def answer(shape: tuple[int, ...], layers: int = 1) -> cs.ConvolveResponse:
    made = cs.ConvolveResponse(layers=[cs.LayerOutcome()] * layers)
    made.output.dtype, made.output.data = 1, np.ones(shape, "f4").tobytes()
    made.output.shape.extend(shape)
    return made


@pytest.mark.parametrize("lie", [answer((2, 4, 9, 4)), answer((288,)), answer(SHAPE, 0)], ids=["shape", "rank", "none"])
def test_an_output_that_is_none_is_an_error(lie: cs.ConvolveResponse) -> None:
    x = np.ones((2, 8, 8, 3), "f4")
    with lying_server() as lies:
        layer = RemoteConv2D(4, 3, server=lies.target)
        model = keras.Sequential([keras.Input((8, 8, 3)), layer])
        lies.let(LAYERS + "PutLayer", put)
        lies.answer(CONVOLUTION + "Convolve", answer(SHAPE))
        assert np.asarray(layer(x)).shape == SHAPE
        lies.answer(CONVOLUTION + "Convolve", lie)
        with pytest.raises(InternalError, match="Expected an answer as the contract has it"):
            layer(x)
        with pytest.raises(Exception, match="Expected an answer as the contract has it"):
            model.predict(x, verbose=0)
