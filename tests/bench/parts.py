"""Where the time of a small call goes, W1 of the peers: part by part in this process, then over gRPC's loopback.

Each figure is the median of many, in microseconds. Parts in one process are what they cost without waiting; over the
connection come gRPC's own work and the hand-overs between threads and processes, of which an echo of the same bytes has
as many.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

import convserve
from convserve import Layer
from convserve._rpc import requests
from convserve.bench.echo import Echo
from convserve.protocol.results import Result
from convserve.tensors import framing
from convserve.v1 import convolution_service_pb2, layer_pb2
from convserve_server.backend import Backend
from convserve_server.engine.startup import load_engine
from convserve_server.scheduling.admission import Admission, Limits
from convserve_server.scheduling.scheduler import Batching, Scheduler
from convserve_server.services.convolution_service import ConvolutionService, ConvolveRequest
from convserve_server.transport.idle_timeouts import IdleTimeouts
from tests.bench import record, tables
from tests.conftest import running_server

_CONFIG = convserve.Conv2D(16, 3, padding="same", activation="relu", data_format="channels_last")
_LIMITS = Limits(2**26, 2**33, 2**33, 64, 64)
_ECHO_TIMEOUT_S = 60.0


class _Context:
    """A call's context, as far as Convolve asks."""

    def is_active(self) -> bool:
        return True

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, Any]:
        return {}

    def time_remaining(self) -> float:
        return 60.0

    def add_callback(self, _: Callable[[], None]) -> bool:
        return False


class _Keeper:
    """The store's only layer."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def layer(self, _: bytes) -> Layer:
        return self._layer


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = record.parser("parts", __doc__).parse_args()
    times = 100 if arguments.quick else 3000
    found = [*_in_one_process(times), *_over_the_connection(times)]
    result = record.begun("parts", arguments, parts=[{"part": name, "us": round(us, 1)} for name, us in found])
    record.write(arguments, result)
    print(tables.parts(result))
    return 0


def _median_us(call: Callable[[], object], times: int) -> float:
    for _ in range(times // 10):
        call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def _in_one_process(times: int) -> list[tuple[str, float]]:
    engine = load_engine("cpu", tf32=False, verbose=False)
    import tensorflow as tf

    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    layer = engine.initialize(_CONFIG.with_seed(0), 3)
    kernel, bias = tf.constant(layer.kernel), tf.constant(layer.bias)
    function = tf.function(lambda x: tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)))
    service, context = ConvolutionService(1, IdleTimeouts(60), 1), _Context()
    admission = Admission(_LIMITS, 1, 1, 2**22)
    service.open(Backend(engine, admission, Scheduler(engine, Batching(1, 64, 2**22)), _Keeper(layer)))  # type: ignore[arg-type]
    stored: Any = layer
    request = requests.convolve_request(stored, x, None)
    by_digest = convolution_service_pb2.ConvolveRequest(layers=[layer_pb2.LayerReference(digest=bytes(32))])
    data = framing.write(by_digest, x)
    received = ConvolveRequest.parse(data)
    answer = service.Convolve(received, context)  # type: ignore[arg-type]
    answered = answer.serialize()
    parts: dict[str, Callable[[], object]] = {
        "the layer in process (tf.function, numpy in and out)": lambda: function(tf.constant(x)).numpy(),
        "client: the request is checked and planned": lambda: requests.convolve_request(_CONFIG, x, None),
        "client: it is written": lambda: framing.write(by_digest, request.input),
        "server: it is read": lambda: ConvolveRequest.parse(data),
        "server: the layer is found, the call admitted and computed": lambda: service.Convolve(received, context),  # type: ignore[arg-type]
        "of that: TensorFlow, in and out": lambda: engine.convolve([layer], [received.input], "float32", 0),  # type: ignore[list-item]
        "server: the answer is written": answer.serialize,
        "client: it is read": lambda: Result.parse(answered),
    }
    return [(name, _median_us(call, times)) for name, call in parts.items()]


def _over_the_connection(times: int) -> list[tuple[str, float]]:
    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    with running_server() as server, convserve.Client(server.target, shared_memory=False) as client:
        layer = client.put(_CONFIG, input_channels=3, seed=0)
        with Echo(grpc.insecure_channel(server.target), _ECHO_TIMEOUT_S) as echo:
            request = echo.request(x.nbytes, layer(x).nbytes)
            return [
                ("over gRPC: an echo of the same bytes", _median_us(lambda: echo(request), times)),
                ("over gRPC: the call", _median_us(lambda: layer(x), times)),
            ]


if __name__ == "__main__":
    sys.exit(main())
