"""Servers that say that they stop: callers of several go to the others before a call is refused."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from convserve import RetryRule
from convserve.v1 import convolution_service_pb2
from convserve_server.health import Health
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.lying_server import CONVOLUTION, lying_server
from tests.support.waiting import eventually


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_calls_leave_a_server_that_says_it_stops_while_it_still_serves(make_client: Any) -> None:
    with ExitStack() as opened:
        healths = [Health([]), Health([])]
        servers = [opened.enter_context(lying_server(each)) for each in healths]
        for server, health in zip(servers, healths, strict=True):
            server.answer(f"{CONVOLUTION}GetServerInfo", convolution_service_pb2.GetServerInfoResponse())
            health.set_serving(True)
        client = opened.enter_context(make_client([each.target for each in servers], retry=RetryRule(attempts=1)))

        def asked(calls: int = 6) -> list[bool]:
            before = [each.sent for each in servers]
            for _ in range(calls):
                client.info()
            return [each.sent > start for each, start in zip(servers, before, strict=True)]

        eventually(lambda: asked() == [True, True])
        healths[0].set_serving(False)
        eventually(lambda: asked() == [False, True])
