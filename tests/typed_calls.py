"""What type checkers say of calls: mypy reads this file (`make lint`), and nobody runs it."""

# mypy: enable-error-code="arg-type, var-annotated, union-attr, misc"

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, Literal, assert_type

import numpy as np
import numpy.typing as npt

from convserve import AsyncClient, AsyncStoredLayer, Client, Conv2D, ConvserveError, Layer, Result, StoredLayer

Array = npt.NDArray[Any]
Status = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
LAYER = Conv2D(8, 3)


def blocking(client: Client, x: Array, halves: npt.NDArray[np.float16], is_loud: bool) -> None:
    assert_type(client.conv2d(x, 64, 3, 2, "same", activation="relu", seed=0), Array)
    client.conv2d(x, 64, 3, stride=2)  # type: ignore[arg-type]
    client.conv2d(x, "64", 3)  # type: ignore[arg-type]
    client.conv2d(x, 64, 3, groups="all")  # type: ignore[arg-type]

    assert_type(client.convolve(LAYER, x), Result[Any])
    assert_type(client.convolve(LAYER, x).output, Array)
    assert_type(client.convolve([LAYER, Layer(LAYER)], x, output_dtype="float16").output, Array)
    assert_type(client.convolve(LAYER, x, output_dtype=np.float16).output, npt.NDArray[np.float16])
    assert_type(client.convolve(LAYER, x, output_dtype=np.dtype(np.float64)).output, npt.NDArray[np.float64])
    assert_type(client.convolve(LAYER, x, out=halves).output, npt.NDArray[np.float16])

    assert_type(client.map(LAYER, [x]), Generator[Array, None, None])
    assert_type(client.map(LAYER, [x], as_completed=True), Generator[tuple[int, Array], None, None])
    assert_type(client.map(LAYER, [x], errors="return"), Generator[Array | ConvserveError, None, None])
    for item in client.map(LAYER, [x], as_completed=True, errors="return"):
        assert_type(item, tuple[int, Array | ConvserveError])
    assert_type(client.map(LAYER, [x], as_completed=is_loud), Generator[Any, None, None])
    client.map(LAYER, [x], errors="ignore")  # type: ignore[call-overload]

    assert_type(client.put(LAYER, input_channels=3), StoredLayer)
    assert_type(client.put(LAYER, input_channels=3)(x), Array)
    assert_type(client.health(), Status)


async def awaited(client: AsyncClient, x: Array, halves: npt.NDArray[np.float16]) -> None:
    assert_type(await client.conv2d(x, 64, 3, 2, "same", activation="relu", seed=0), Array)
    await client.conv2d(x, 64, 3, stride=2)  # type: ignore[arg-type]

    assert_type((await client.convolve(LAYER, x)).output, Array)
    assert_type((await client.convolve(LAYER, x, output_dtype=np.float16)).output, npt.NDArray[np.float16])
    assert_type((await client.convolve(LAYER, x, out=halves)).output, npt.NDArray[np.float16])

    assert_type(client.map(LAYER, [x]), AsyncGenerator[Array, None])
    assert_type(client.map(LAYER, [x], errors="return"), AsyncGenerator[Array | ConvserveError, None])
    async for index, y in client.map(LAYER, [x], as_completed=True):
        assert_type(index, int)
        assert_type(y, Array)

    assert_type(await client.put(LAYER, input_channels=3), AsyncStoredLayer)
    assert_type(await client.health(), Status)
