"""What a call costs by Ray Serve's gRPC proxy and by convserve's own port, with the same engine behind both.

    python -m tests.many_machines ray                              # makes the environment
    .venv-ray/bin/pip install 'ray[serve]'
    .venv-ray/bin/python -m tests.many_machines.ray_serve

Each is called by one caller, with the same message: an image of 3 KB, of which 8 maps come back. One after the other is
measured, several times, and the answers are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

import convserve
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import convolution_service_pb2_grpc as services
from convserve.v1 import tensor_pb2
from tests.support.servers.server_process import running_server

LAYER = convserve.Layer(
    convserve.Conv2D(8, 3, activation="relu", data_format="channels_last"),
    np.random.default_rng(1).normal(size=(3, 3, 3, 8)).astype("f4"),
    np.zeros(8, "f4"),
)
X = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
_PORTS = 9000, 8000  # Serve's own, of gRPC and HTTP
_WARM_UP, _TURNS = 50, 5


@serve.deployment(max_ongoing_requests=16)
class Convolution:
    """The contract's Convolve with the engine, of one layer."""

    def __init__(self) -> None:
        from convserve_server.local import Engine

        self._engine = Engine("cpu")

    def Convolve(self, request: Any) -> Any:  # noqa: N802 (a name of the contract)
        x = np.frombuffer(request.input.data, np.uint8).reshape(request.input.shape)
        y = self._engine.convolve(LAYER, x).output
        output = tensor_pb2.Tensor(dtype="DTYPE_FLOAT32", shape=y.shape, data=y.tobytes())
        return messages.ConvolveResponse(output=output)


def measured(call: Callable[[], Any], calls: int) -> list[float]:
    """Returns the milliseconds of calls, one after the other."""
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return found


def main() -> None:
    """Measures both, and prints what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.many_machines.ray_serve", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="of each turn, of which there are five")
    calls = parser.parse_args().calls
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    adder = f"{services.__name__}.add_ConvolutionServiceServicer_to_server"
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=_PORTS[1]),
        grpc_options=gRPCOptions(port=_PORTS[0], grpc_servicer_functions=[adder]),
    )
    serve.run(Convolution.bind())  # type: ignore[attr-defined]
    with running_server() as server, convserve.Client(server.target) as client:
        stored = client.put(LAYER)
        reference = messages.ConvolveRequest(input={"dtype": "DTYPE_UINT8", "shape": X.shape, "data": X.tobytes()})
        reference.layers.add(digest=stored.digest)
        stubs = {
            name: services.ConvolutionServiceStub(grpc.insecure_channel(target))
            for name, target in (("convserve's port", server.target), ("Ray Serve's proxy", f"127.0.0.1:{_PORTS[0]}"))
        }
        found: dict[str, list[float]] = {name: [] for name in stubs}
        answers = [stub.Convolve(reference, timeout=60).output.data for stub in stubs.values()]
        np.testing.assert_allclose(*(np.frombuffer(each, "f4") for each in answers), rtol=1e-5)
        for stub in stubs.values():
            measured(lambda stub=stub: stub.Convolve(reference), _WARM_UP)  # type: ignore[misc]
        for _ in range(_TURNS):
            for name, stub in stubs.items():
                found[name] += measured(lambda stub=stub: stub.Convolve(reference), calls)  # type: ignore[misc]
    medians = {name: statistics.median(each) for name, each in found.items()}
    for name, median in medians.items():
        quantiles = statistics.quantiles(found[name], n=20)
        print(f"{name:18} median {median:6.2f} ms, 95th percentile {quantiles[-1]:6.2f} ms")
    own, proxy = medians.values()
    print(f"{proxy / own:.1f} times; equal answers; Ray {ray.__version__}")
    serve.shutdown()


if __name__ == "__main__":
    main()
