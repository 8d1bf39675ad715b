"""Messages that nobody means: does the server answer each, and go on?

    python -m tests.endurance.fuzz --inputs 1000000

Valid requests of every RPC, and what earlier runs found worth keeping (tests/data/fuzz_corpus.json), are changed at
random: bits, bytes, lengths, pieces moved, repeated and left out, parts of one put into another; a stream gets several.
A server of its own gets them over a few connections. After each round it has to be healthy, right, no larger than
before, and never much larger in between. The exit status is 1 if a call hung, a connection broke, the server died or
grew, or it failed by a defect of its own. --keep adds to the corpus the inputs whose outcome (RPC, status, reason,
field) was new.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from convserve.errors import SharedMemoryLostError
from convserve.protocol.status import from_rpc_error
from convserve.v1 import convolution_service_pb2, layer_service_pb2
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from tests.support.processes import forget_peak, status
from tests.support.raw.calls import RPCS, RawCaller, conv2d, convolve_request, layer, plan_request, raw_caller, weights
from tests.support.raw.inference import INFERENCE_RPCS, Output, Tensor, place, raw_request
from tests.support.raw.streams import image, item, start
from tests.support.raw.wire_fields import varint
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer, Serve, running_server

CORPUS = ROOT / "tests" / "data" / "fuzz_corpus.json"
_ROUND = 2_000
_CALLERS = 4
_MAX_GROWTH_BYTES = 300_000_000
_MAX_AT_ONCE_BYTES = 1_000_000_000  # beside what it had: callers' calls, of 64 MiB by their plans
_MAX_BYTES = 20_000
_ALL_RPCS = {rpc.name: rpc for rpc in (*RPCS, *INFERENCE_RPCS)}
MEMORY = Path(f"/dev/shm/convserve-test-fuzz-{os.getpid()}")  # noqa: S108 (where POSIX shared memory is)
_MEMORY_BYTES = 4096
_FAILED = "Its log has the details under error id"  # what is told of a defect
_NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

Input = tuple[str, tuple[bytes, ...]]
"""An RPC's name, and the messages that are sent to it."""


@dataclass
class Fuzz:
    """What came of it.

    Attributes:
        inputs: How many calls were made.
        outcomes: How often each: RPC, status, reason, and the first field that was named.
        defects: What must not be; a few of them.
        new: The first input of each outcome.
    """

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    new: dict[str, Input] = field(default_factory=dict)


def seeds() -> list[Input]:
    """Returns valid calls of every RPC."""
    stored = layer_service_pb2.StoredLayerReference(name="fuzz")
    put = layer_service_pb2.PutLayerStart(
        conv2d=conv2d(),
        name="fuzz",
        weights=layer_service_pb2.WeightsHeader(dtype=1, kernel_shape=(1, 1, 1, 1)),
    )
    update = layer_service_pb2.UpdateWeightsStart(layer=stored, weights=put.weights)
    x = image(1)
    known: dict[str, list[Message]] = {
        "Convolve": [convolve_request(layer(weights=weights(np.ones((1, 1, 1, 1)))))],
        "Plan": [plan_request(layer(conv2d(filters=3)))],
        "ConvolveStream": [start(), *item(1, x), *item(2, x)],
        "Echo": [convolution_service_pb2.EchoRequest(output_bytes=9)],
        "PutLayer": [layer_service_pb2.PutLayerRequest(start=put), layer_service_pb2.PutLayerRequest(piece=bytes(4))],
        "UpdateWeights": [
            layer_service_pb2.UpdateWeightsRequest(start=update),
            layer_service_pb2.UpdateWeightsRequest(piece=bytes(4)),
        ],
        "GetLayer": [layer_service_pb2.GetLayerRequest(layer=stored)],
        "DeleteLayer": [layer_service_pb2.DeleteLayerRequest(layer=stored)],
        "ReadWeights": [layer_service_pb2.ReadWeightsRequest(layer=stored)],
        "ListNameVersions": [layer_service_pb2.ListNameVersionsRequest(name="fuzz")],
        "MoveName": [layer_service_pb2.MoveNameRequest(move=layer_service_pb2.NameMove(name="fuzz"), version=1)],
    }
    known |= _inference_seeds()
    return [(name, tuple(each.SerializeToString() for each in known.get(name, ())) or (b"",)) for name in _ALL_RPCS]


def _inference_seeds() -> dict[str, list[Message]]:
    """Returns valid calls of the Open Inference Protocol."""
    x, kernel = np.arange(4, dtype="<f4").reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1), "<f4")
    given = {"strides": "[1, 1]", "activation": "relu", "output_dtype": "FP16"}
    stateless = raw_request("conv2d", parameters=given, x=x, kernel=kernel)
    typed, shared = raw_request("fuzz", x=x), raw_request("fuzz", [place(Output(name="y"), "fuzz", 16, 64)])
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend(range(4))
    shared.inputs.append(place(Tensor(name="x", datatype="FP32", shape=x.shape), "fuzz", x.nbytes))
    named = {"name": "fuzz", "version": "1"}
    region = {"name": "fuzz", "key": f"/{MEMORY.name}", "offset": 0, "byte_size": _MEMORY_BYTES}
    return {
        "ModelReady": [messages.ModelReadyRequest(**named)],
        "ModelMetadata": [messages.ModelMetadataRequest(**named)],
        "ModelConfig": [messages.ModelConfigRequest(**named)],
        "ModelStatistics": [messages.ModelStatisticsRequest(**named)],
        "RepositoryIndex": [messages.RepositoryIndexRequest(ready=True)],
        "RepositoryModelLoad": [messages.RepositoryModelLoadRequest(model_name="fuzz")],
        "RepositoryModelUnload": [messages.RepositoryModelUnloadRequest(model_name="fuzz")],
        "ModelInfer": [stateless],
        "ModelStreamInfer": [raw_request("fuzz", x=x), stateless, typed, shared],
        "SystemSharedMemoryStatus": [messages.SystemSharedMemoryStatusRequest(name="fuzz")],
        "SystemSharedMemoryRegister": [messages.SystemSharedMemoryRegisterRequest(**region)],
        "SystemSharedMemoryUnregister": [messages.SystemSharedMemoryUnregisterRequest(name="fuzz")],
    }


def corpus() -> list[Input]:
    """Returns what earlier runs kept."""
    if not CORPUS.exists():
        return []
    return [(each["rpc"], tuple(map(base64.b64decode, each["messages"]))) for each in json.loads(CORPUS.read_text())]


def changed(source: random.Random, known: list[Input]) -> Input:
    """Returns one of the known inputs, changed."""
    rpc, messages = source.choice(known)
    parts = [bytearray(each) for each in messages]
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        _change(source, parts, known)
    return rpc, tuple(bytes(each[:_MAX_BYTES]) for each in parts)


def _change(source: random.Random, parts: list[bytearray], known: list[Input]) -> None:
    how = source.randrange(9)
    if how == 0:  # a message more, less, or elsewhere
        parts.insert(source.randrange(len(parts) + 1), bytearray(source.choice(source.choice(known)[1] or (b"",))))
        if source.random() < 0.5:
            parts.pop(source.randrange(len(parts)))
        source.shuffle(parts) if source.random() < 0.3 else None
        return
    if not parts:
        return
    part = source.choice(parts)
    at = source.randrange(len(part) + 1)
    if how == 1 and part:
        part[at % len(part)] ^= 1 << source.randrange(8)
    elif how == 2 and part:
        part[at % len(part)] = source.randrange(256)
    elif how == 3:
        del part[at : at + source.randrange(1, 9)]
    elif how == 4:
        part[at:at] = source.randbytes(source.randrange(1, 9))
    elif how == 5:
        part[at:at] = part[at : at + source.randrange(1, 60)]
    elif how == 6:
        part[at : at + source.randrange(3)] = varint(source.choice(_NUMBERS))
    elif how == 7:
        other = source.choice(source.choice(known)[1] or (b"",))
        begin = source.randrange(len(other) + 1)
        part[at:at] = other[begin : begin + source.randrange(1, 200)]
    else:  # a field with a number and a form of its own
        part[at:at] = varint(source.randrange(1, 20) << 3 | source.randrange(6)) + varint(source.choice(_NUMBERS))


def fuzz(inputs: int, seconds: float = 3600.0, seed: int | None = None, *, serve: Serve = running_server) -> Fuzz:
    """Sends so many inputs, or for so long, whichever is over first."""
    found, known = Fuzz(), [*seeds(), *corpus()]
    source = random.Random(seed)
    began = time.monotonic()
    limits = ("--max-call-bytes", str(2**26), "--layer-memory-bytes", str(2**26), "--idle-s", "5")
    with _memory(), serve(*limits, "--shared-memory") as server, ThreadPoolExecutor(_CALLERS) as pool:
        size = 0
        while found.inputs < inputs and time.monotonic() < began + seconds and not found.defects:
            number = min(_ROUND, inputs - found.inputs)
            shares = [number // _CALLERS + (index < number % _CALLERS) for index in range(_CALLERS)]
            seeds_of_round = [source.randrange(2**63) for _ in shares]
            for part in pool.map(
                lambda each: send_changed(server.target, known, *each), zip(seeds_of_round, shares, strict=True)
            ):
                found.inputs += part.inputs
                found.outcomes += part.outcomes
                found.defects += part.defects
                for outcome, each in part.new.items():
                    if outcome not in found.new:
                        found.new[outcome] = each
                        known.append(each)
            found.defects += _unhealthy(server, found)
            now = status(server.process.pid, "VmRSS")
            if not size:
                size = now
                forget_peak(server.process.pid)
            if now - size > _MAX_GROWTH_BYTES:
                found.defects.append(f"the server grew from {size} to {now} bytes")
            if (most := status(server.process.pid, "VmHWM")) - size > _MAX_AT_ONCE_BYTES:
                found.defects.append(f"the server had {most} bytes at once")
    return found


@contextmanager
def _memory() -> Iterator[None]:
    """Makes the shared memory that is registered."""
    MEMORY.write_bytes(bytes(_MEMORY_BYTES))
    try:
        yield
    finally:
        MEMORY.unlink(missing_ok=True)


def send_changed(target: str, known: list[Input], seed: int, number: int) -> Fuzz:
    """Sends a server so many changed inputs; returns how they ended."""
    found, source = Fuzz(), random.Random(seed)
    with raw_caller(target) as caller:
        for _ in range(number):
            sent = changed(source, known)
            found.inputs += 1
            outcome = _outcome(caller, _ALL_RPCS[sent[0]], sent, found)
            found.outcomes[outcome] += 1
            found.new.setdefault(outcome, sent)
    return found


def _outcome(caller: RawCaller, rpc: MethodDescriptor, sent: Input, found: Fuzz) -> str:
    try:
        answers = caller.send(rpc, *sent[1])
    except grpc.RpcError as failure:
        error = from_rpc_error(failure)
        code, text = failure.code(), str(failure.details())
        is_lost = isinstance(error, SharedMemoryLostError)  # it named a region that nobody handed over
        broken = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        if code in broken and not is_lost:
            found.defects.append(f"{rpc.name} {code.name}: {text[:300]}: {sent!r:.2000}")
        if code is grpc.StatusCode.INTERNAL:
            found.defects.append(f"{rpc.name} INTERNAL {getattr(error, 'error_id', '')}: {text[:300]}: {sent!r:.2000}")
        fields = [each.field for each in getattr(error, "violations", ())]
        return f"{rpc.name} {code.name} {type(error).__name__} {_kind(fields[0]) if fields else ''}".rstrip()
    told = _told_in_stream(answers) if rpc.name == "ModelStreamInfer" else []
    found.defects += [f"{rpc.name}: {each[:300]}: {sent!r:.2000}" for each in told if _FAILED in each]
    return f"{rpc.name} OK {_kind(told[0].partition(':')[0]) if told else ''}".rstrip()


def _kind(text: str) -> str:
    """Returns what a text is about, without what its caller wrote, so that outcomes are few."""
    return re.sub("[0-9]+", "N", re.sub(r"(?s)(?<=parameters\.).*| Received .*", "", text))[:60]


def _told_in_stream(answers: list[bytes]) -> list[str]:
    """Returns the errors of a stream whose failures are told in its answers."""
    found = [messages.ModelStreamInferResponse.FromString(each).error_message for each in answers]
    return [each for each in found if each]


def _unhealthy(server: RunningServer, found: Fuzz) -> list[str]:
    if server.process.poll() is not None:
        return [f"the server died with status {server.process.returncode}: {server.log.read_text()[-2000:]}"]
    try:
        with raw_caller(server.target) as caller:
            caller.check_service()
    except (grpc.RpcError, AssertionError) as error:
        return [f"the server is not healthy: {error}"]
    return []


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--keep", action="store_true", help="add what was new to the corpus")
    arguments = parser.parse_args()
    found = fuzz(arguments.inputs, arguments.seconds, arguments.seed)
    shown = {"inputs": found.inputs, "outcomes": found.outcomes, "defects": found.defects}
    print(json.dumps(shown, indent=2, sort_keys=True))
    if arguments.keep:
        _keep(found)
    return 1 if found.defects else 0


def _keep(found: Fuzz) -> None:
    kept = {*corpus(), *found.new.values()}
    rows = [{"rpc": rpc, "messages": [base64.b64encode(each).decode() for each in sent]} for rpc, sent in sorted(kept)]
    Path(CORPUS).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    sys.exit(main())
