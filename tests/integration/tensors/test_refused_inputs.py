"""What a refused call was given is free once its caller has the error, without a garbage collection."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convserve import AsyncClient, Client, Conv2D, Layer, TooLargeError
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.tensor_paths import WAYS
from tests.support.waiting import eventually

LAYER = Layer(Conv2D(2, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 1, 2), "f4"))
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def small() -> Iterator[RunningServer]:
    with numpy_server("--max-call-bytes", "10000", "--shared-memory") as server:
        yield server


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def given() -> tuple[np.ndarray[Any, Any], weakref.ref[Any]]:
    x = np.ones((1, 60, 60, 1), "f4")
    return x, weakref.ref(x)


@EVERY_WAY
def test_of_a_client(small: RunningServer, way: Any, no_collection: None) -> None:
    with way.forced(), Client(small.target, shared_memory=way.shares) as client:
        x, known = given()
        try:
            client.convolve(LAYER, x)
        except TooLargeError:
            del x
        eventually(lambda: known() is None)  # gRPC's thread has it a little longer


@EVERY_WAY
def test_of_an_asyncio_client(small: RunningServer, way: Any, no_collection: None) -> None:
    async def run() -> None:
        async with AsyncClient(small.target, shared_memory=way.shares) as client:
            x, known = given()
            try:
                await client.convolve(LAYER, x)
            except TooLargeError:
                del x
            await asyncio.to_thread(eventually, lambda: known() is None)

    asyncio.run(run())
