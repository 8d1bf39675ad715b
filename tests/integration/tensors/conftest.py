"""What tests of the ways that tensors travel share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.server_process import RunningServer
from tests.support.tensor_paths import Taken, by_every_way, observed


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def every_way(
    request: pytest.FixtureRequest, sharing_server: RunningServer
) -> Callable[[Callable[[Any], Any]], dict[str, Any]]:
    """Does something with each client by every way."""
    return functools.partial(by_every_way, request.param, sharing_server.target)


@pytest.fixture
def taken() -> Iterator[Taken]:
    """What travels by which way during a test."""
    with observed() as found:
        yield found
