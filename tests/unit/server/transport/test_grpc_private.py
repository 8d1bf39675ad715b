"""What is used of gRPC though it does not promise it: this fails first when gRPC changes."""

import time
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import json_format
from grpc._cython import cygrpc
from grpc_channelz.v1 import _servicer, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2_grpc

from convserve_server.health import Health
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.transport.grpc_private import add_channelz, code_at_end, is_non_blocking, servers


class Registered:
    """Takes the place of a server, and keeps the handlers that are added to it."""

    def add_generic_rpc_handlers(self, handlers):
        (self.handler,) = handlers

    def add_registered_method_handlers(self, service, handlers):
        pass


def test_of_the_health_the_watch_keeps_no_thread():
    server = Registered()
    health_pb2_grpc.add_HealthServicer_to_server(Health([]), server)
    handlers = {
        name: server.handler.service(SimpleNamespace(method=f"/grpc.health.v1.Health/{name}"))
        for name in ("Check", "Watch")
    }
    assert {name: is_non_blocking(handler) for name, handler in handlers.items()} == {"Check": False, "Watch": True}


def test_a_server_needs_no_more_of_its_pool_than_to_submit_and_a_context_tells_its_code():
    codes = []

    def answer(request, context):
        codes.append(context.code())
        context.set_code(grpc.StatusCode.DATA_LOSS)
        codes.append(context.code())
        return b""

    handlers = {"M": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPool(1, "call"))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/a.B/M")(b"", timeout=60)
    server.stop(None).wait()
    assert failure.value.code() is grpc.StatusCode.DATA_LOSS
    assert codes == [None, grpc.StatusCode.DATA_LOSS]


def test_channelz_shows_channels_that_have_fields_newer_than_its_own():
    server = grpc.server(ThreadPool(1, "call"))
    add_channelz(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = channelz_pb2_grpc.ChannelzStub(channel).GetTopChannels(
            channelz_pb2.GetTopChannelsRequest(), timeout=60
        )
    server.stop(None).wait()
    assert f"dns:///127.0.0.1:{port}" in [each.data.target for each in answer.channel]


def test_servers_are_counted_whatever_is_newer_in_what_grpc_says_of_them(monkeypatch):
    said = '{"server": [{"ref": {"serverId": "1", "newer": {}}, "data": {"callsStarted": "5"}}], "newer": 1}'
    monkeypatch.setattr(cygrpc, "channelz_get_servers", lambda _: said)
    monkeypatch.setattr(_servicer, "json_format", json_format)  # as where no server has channelz
    assert [each.data.calls_started for each in servers()] == [5]


@pytest.mark.parametrize(
    ("code", "answered", "remaining_s", "expected"),
    [
        (None, True, 50, "OK"),
        (None, True, 0, "DEADLINE_EXCEEDED"),
        (None, False, 0, "DEADLINE_EXCEEDED"),
        (None, False, 0.5, "DEADLINE_EXCEEDED"),  # of 100 s, which gRPC may have rounded up by less than 1
        (None, False, 50, "CANCELLED"),
        (grpc.StatusCode.NOT_FOUND, False, 0, "NOT_FOUND"),
        (grpc.StatusCode.OK, True, 50, "OK"),
    ],
)
def test_the_code_of_a_call_of_100_seconds(code, answered, remaining_s, expected):
    context = SimpleNamespace(code=lambda: code, time_remaining=lambda: remaining_s)
    arrived_ns = time.time_ns() - round((100 - remaining_s) * 1e9)
    assert code_at_end(context, answered=answered, arrived_ns=arrived_ns) == expected
