"""Processor time per call of server and client: a bare gRPC echo, convserve's Echo, and a small call of a layer.

The bare echo is what grpcio in Python costs when a handler does nothing: the same bytes there and back as for the small
call, threads, no interceptors. The small call is W1, the first of `convserve.bench.workloads`, whose layer is put once.
convserve's server and client have their default settings, except that the server computes on the CPU. The same layer
computed in the caller's own process says how much of the small call TensorFlow takes.

Every caller is a process of its own, which makes one call after the other and waits while others have their turns.
Processor time is user and system time of all threads. Linux.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc

import convserve
from convserve.bench import workloads
from convserve.bench.echo import Echo
from tests.bench import record, tables
from tests.support.servers.server_process import running_server

CALLS = {
    "bare_echo": "bare grpcio: echo of the same bytes",
    "echo": "convserve: Echo of the same bytes",
    "layer": "convserve: the layer W1, float32",
    "in_process": "TensorFlow in the caller's process: the same layer",
}
_WHO = ("server", "client", "wall")
SENT, RECEIVED = 12_288, 65_536
_TIMEOUT_S = 60.0
_WARM_UP_CALLS = 300
_WORKLOAD = workloads.standard()[0]


def main() -> int:
    """Runs the benchmark, or with --call one of its callers; returns the exit status."""
    parser = record.parser("processor_time", __doc__)
    parser.add_argument("--serve", action="store_true", help="be the bare echo's server, and print its port")
    parser.add_argument("--call", choices=CALLS, help="be one of the callers: warm up, then make --calls per line read")
    parser.add_argument("--target", default="", help="the address of the server that --call calls")
    parser.add_argument("--calls", type=int, metavar="N", help="calls of each kind in a round")
    arguments = parser.parse_args()
    calls = arguments.calls or (100 if arguments.quick else 1000)
    if arguments.serve:
        _serve()
        return 0
    if arguments.call:
        _be_called_upon(_prepared(arguments.call, arguments.target), calls)
        return 0
    rounds = 2 if arguments.quick else 31
    result = record.begun("processor_time", arguments, sent_bytes=SENT, received_bytes=RECEIVED, rounds=rounds)
    result |= {"calls_per_round": calls, "calls": _measured(rounds, calls)}
    record.write(arguments, result)
    print(_shown(result))
    return 0


def _measured(rounds: int, calls: int) -> dict[str, dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in CALLS}
    with ExitStack() as stack:
        bare, ours = _bare_server(stack), stack.enter_context(running_server())
        our_server = ours.process.pid, ours.target
        servers = {"bare_echo": bare, "echo": our_server, "layer": our_server}
        callers = {kind: _caller(stack, kind, servers[kind][1] if kind in servers else "", calls) for kind in CALLS}
        for _ in range(rounds):
            for kind, caller in callers.items():
                if kind in servers:
                    pid, _ = servers[kind]
                    began = _processor_ms(pid)
                    turn = _turn(caller)
                    turn["server_ms"] = (_processor_ms(pid) - began) / calls
                else:
                    turn = _turn(caller)
                found[kind].append(turn)
    return {kind: _summary(kind, found) for kind in CALLS}


def _summary(kind: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Returns the medians over the rounds, and multiples of the bare echo of the same round."""
    summary: dict[str, Any] = {"what": CALLS[kind]}
    for who in _WHO:
        figure = f"{who}_ms"
        if figure in found[kind][0]:
            pairs = [(mine[figure], bare[figure]) for mine, bare in zip(found[kind], found["bare_echo"], strict=True)]
            summary[figure] = statistics.median(mine for mine, _ in pairs)
            summary[f"{who}_times_bare_echo"] = statistics.median(mine / bare for mine, bare in pairs)
    return summary | {"rounds": found[kind]}


def _processor_ms(pid: int) -> float:
    """Returns the milliseconds of a processor that a process has had, in all its threads, those that ended too."""
    clock = ctypes.c_int()
    failed = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    assert not failed, f"process {pid} has no clock: error {failed}"
    return time.clock_gettime_ns(clock.value) / 1e6


def _bare_server(stack: ExitStack) -> tuple[int, str]:
    """Starts grpcio's server with a handler that does nothing; returns its process id and its address."""
    command = [sys.executable, "-m", "tests.bench.processor_time", "--serve"]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    return process.pid, f"127.0.0.1:{int(process.stdout.readline())}"


def _serve() -> None:
    """Answers a request with the same bytes each time, with grpcio alone."""
    answer = bytes(RECEIVED)
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    method: Any = grpc.unary_unary_rpc_method_handler(lambda _, __: answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def _caller(stack: ExitStack, kind: str, target: str, calls: int) -> subprocess.Popen[str]:
    """Starts a caller, and returns it once it has warmed up."""
    command = [sys.executable, "-m", "tests.bench.processor_time"]
    command += ["--call", kind, "--target", target, "--calls", f"{calls}"]
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready == "ready\n", f"the caller {kind} did not start: {ready}"
    return process


def _turn(caller: subprocess.Popen[str]) -> dict[str, float]:
    """Lets a caller make its calls; returns what they took."""
    assert caller.stdin is not None
    assert caller.stdout is not None
    caller.stdin.write("go\n")
    turn: dict[str, float] = json.loads(caller.stdout.readline())
    return turn


def _be_called_upon(call: Callable[[], object], calls: int) -> None:
    """Warms up; then makes so many calls for every line of the standard input, and prints what they took."""
    for _ in range(_WARM_UP_CALLS):
        call()
    print("ready", flush=True)
    for _ in sys.stdin:
        walls = []
        began = time.process_time()
        for _ in range(calls):
            started = time.perf_counter()
            call()
            walls.append(time.perf_counter() - started)
        spent = time.process_time() - began
        print(json.dumps({"client_ms": 1e3 * spent / calls, "wall_ms": 1e3 * statistics.median(walls)}), flush=True)


def _prepared(kind: str, target: str) -> Callable[[], object]:
    """Returns the call of a kind, which was made once and gave as many bytes as it should."""
    layer, (x, *_) = _WORKLOAD.layer, _WORKLOAD.inputs()
    call: Callable[[], Any]
    if kind == "bare_echo":
        method: Any = grpc.insecure_channel(target).unary_unary("/bench.Echo/Echo")
        call = partial(method, bytes(SENT), timeout=_TIMEOUT_S)
    elif kind == "echo":
        call = partial(Echo(grpc.insecure_channel(target), _TIMEOUT_S), Echo.request(SENT, RECEIVED))
    elif kind == "layer":
        call = partial(convserve.Client(target).put(layer.config, kernel=layer.kernel, bias=layer.bias), x)
    else:
        call = _in_process(layer, x)
    answer = call()
    received = len(answer) if isinstance(answer, bytes) else answer.nbytes
    assert RECEIVED <= received < RECEIVED + 16, received  # Echo's answer has a field's number and length, too
    return call


def _in_process(layer: convserve.Layer, x: Any) -> Callable[[], Any]:
    import tensorflow as tf

    kernel, bias = tf.constant(layer.kernel), tf.constant(layer.bias)
    function = tf.function(lambda x: tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)))
    return lambda: function(tf.constant(x)).numpy()


def _shown(result: dict[str, Any]) -> str:
    columns = [f"{who}_ms" for who in _WHO] + [f"{who}_times_bare_echo" for who in _WHO]
    rows = [
        [each["what"], *(tables.short(each[column]) if column in each else "-" for column in columns)]
        for each in result["calls"].values()
    ]
    head = ["processor time per call, ms", "server", "client", "wall clock, ms"]
    head += [f"{who}: times the bare echo" for who in ("server", "client", "wall clock")]
    computing = result["calls"]["layer"]["server_ms"] / result["calls"]["in_process"]["client_ms"]
    beside = f"The server takes {computing:.2f} times as much for W1 as TensorFlow in the caller's process."
    return f"{tables.table(head, rows)}\n\n{beside}\n\n{tables.provenance(result)}"


if __name__ == "__main__":
    sys.exit(main())
