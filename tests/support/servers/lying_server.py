"""A server that answers whatever a test says: what no honest one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

CONVOLUTION, LAYERS = "/convserve.v1.ConvolutionService/", "/convserve.v1.LayerService/"

Answer = Message | bytes
Answers = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[Answer]]


class LyingServer(grpc.GenericRpcHandler):
    """The answers by method.

    Attributes:
        target: The server's address.
        sent: How many messages it has sent.
    """

    def __init__(self) -> None:
        self.target = ""
        self.sent = 0
        self._answers: dict[str, Answers] = {}

    def answer(self, method: str, *messages: Answer) -> None:
        """Has a method answer with messages once it has received one."""

        def answers(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Answer]:
            next(requests, None)
            yield from messages

        self.let(method, answers)

    def let(self, method: str, answers: Answers) -> None:
        """Has a method answer as a function says."""
        self._answers[method] = answers

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        """Returns a method's handler; every form of call is a stream each way to it."""
        answers = self._answers.get(call.method)

        def handler(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            assert answers is not None
            for each in answers(requests, context):
                if not context.is_active():
                    return
                self.sent += 1
                yield each if isinstance(each, bytes) else each.SerializeToString()

        return answers and grpc.stream_stream_rpc_method_handler(handler)


@contextmanager
def lying_server(health: HealthServicer | None = None) -> Iterator[LyingServer]:
    """Yields a server without answers, which it stops, with a health service if one is given."""
    lies = LyingServer()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers((lies,))
    if health is not None:
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
    lies.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield lies
    server.stop(None).wait()
