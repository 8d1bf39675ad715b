"""Compares gRPC servers in Python with threads and with asyncio, for handlers that do nothing.

A handler of ours waits for the device, so it cannot run on an event loop: asyncio would hand it to a thread. All kinds
are measured, asyncio with a handler on its loop too, as 12 KB go there and 66 KB come back, as in the workload W1. The
servers take turns, each in a process of its own; callers are threads with a connection each.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio

from convserve.bench.loops import Subject, closed_loop
from tests.bench import record, tables

SENT, RECEIVED = 12_288, 65_536
KINDS = {
    "threads": "grpc.server with 64 threads",
    "few_threads": "grpc.server with 8 threads",
    "asyncio": "grpc.aio.server, the handler on its loop",
    "asyncio_thread": "grpc.aio.server, the handler in a thread",
}
_PATH = "/bench.Echo/Echo"
_ANSWER = bytes(RECEIVED)
_OPTIONS = [("grpc.so_reuseport", 0)]


def main() -> int:
    """Runs the benchmark, or with --serve one of its servers; returns the exit status."""
    parser = record.parser("server_kinds", __doc__)
    parser.add_argument("--serve", choices=KINDS, help="be one of the servers, and print its port")
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve)
        return 0
    rounds, seconds = (2, 0.3) if arguments.quick else (9, 2.0)
    result = record.begun("server_kinds", arguments, sent_bytes=SENT, received_bytes=RECEIVED, rounds=rounds)
    with ExitStack() as stack:
        subjects = {kind: Subject(_connections(stack, kind, 8)) for kind in KINDS}
        latencies: dict[str, list[float]] = {kind: [] for kind in KINDS}
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for subject in subjects.values():
            closed_loop(subject, 8, 0.3)
        for _ in range(rounds):
            for kind, subject in subjects.items():
                latencies[kind].append(statistics.median(closed_loop(subject, 1, seconds).latencies))
                block = closed_loop(subject, 8, seconds)
                rates[kind].append(block.answers / block.seconds)
    result["kinds"] = {
        kind: {
            "what": KINDS[kind],
            "p50_ms": 1e3 * statistics.median(latencies[kind]),
            "calls_per_s_of_8": statistics.median(rates[kind]),
            # Quotients of neighbours, because the machine is not the same from round to round.
            "latency_ratio": _ratio(latencies[kind], latencies["threads"]),
            "rate_ratio": _ratio(rates[kind], rates["threads"]),
        }
        for kind in KINDS
    }
    record.write(arguments, result)
    print(tables.server_kinds(result))
    return 0


def _ratio(mine: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def _connections(stack: ExitStack, kind: str, number: int) -> Callable[[int], Any]:
    """Starts a server; returns call(caller), each caller with a connection of its own."""
    command = [sys.executable, "-m", "tests.bench.server_kinds", "--serve", kind]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    # Channels of the same options would share one connection.
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options=[("caller", each)]) for each in range(number)]
    for channel in channels:
        stack.enter_context(channel)
    methods: list[Any] = [channel.unary_unary(_PATH) for channel in channels]
    request = bytes(SENT)
    return lambda caller: methods[caller](request, timeout=60)


def _serve(kind: str) -> None:
    if kind in ("threads", "few_threads"):
        server = grpc.server(ThreadPoolExecutor(64 if kind == "threads" else 8), options=_OPTIONS)
        server.add_generic_rpc_handlers((_handlers(_echo),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        server.wait_for_termination()
    else:
        asyncio.run(_serve_asyncio(kind == "asyncio_thread"))


async def _serve_asyncio(in_thread: bool) -> None:
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(8)

    async def on_the_loop(request: bytes, context: Any) -> bytes:
        return _echo(request, context)

    async def elsewhere(request: bytes, context: Any) -> bytes:
        return await loop.run_in_executor(threads, _echo, request, context)

    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handlers(elsewhere if in_thread else on_the_loop),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _handlers(handler: Callable[..., Any]) -> grpc.GenericRpcHandler:
    method: Any = grpc.unary_unary_rpc_method_handler(handler)
    return grpc.method_handlers_generic_handler("bench.Echo", {"Echo": method})


def _echo(_: bytes, __: Any) -> bytes:
    return _ANSWER


if __name__ == "__main__":
    sys.exit(main())
