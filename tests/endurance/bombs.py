"""Messages that parse to many times their bytes, to every RPC: how much memory does the server take for each byte?

    python -m tests.endurance.bombs --mib 16

The bombs are made from the contracts' own descriptors, of both protocols, health, reflection and channelz: for each
field that a request can have, however deep, as many empty ones as fit; numbers of a byte in lists; unknown fields;
messages within messages. It prints the peak of the server's memory for each byte of the worst of each RPC, beside what
messages of the same size that are only bytes have taken before. The exit status is 1 if a bomb took more than 8 times
its bytes, was answered as a defect, or ended the server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from convserve.v1.convolution_service_pb2 import EchoRequest
from tests.support.processes import forget_peak, status
from tests.support.raw.calls import RPCS, RawCaller, raw_caller
from tests.support.raw.inference import INFERENCE_RPCS
from tests.support.raw.wire_fields import field as wire_field
from tests.support.servers.server_process import Serve, running_server

_MAX_DEPTH = 4
_MAX_RATIO = 8
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
_OTHERS = [
    method
    for module in (health_pb2, channelz_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "Watch"  # which answers until it is ended
]
ALL_RPCS: list[MethodDescriptor] = [*RPCS, *INFERENCE_RPCS, *_OTHERS]


@dataclass
class Bombs:
    """What came of it.

    Attributes:
        sent: How many bombs were sent.
        worst: By RPC the most memory for each byte, and the bomb that took it.
        defects: Bombs that took too much, or were answered as none should be.
    """

    sent: int = 0
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)


def bombs_of(descriptor: Descriptor) -> dict[str, bytes]:
    """Returns the unit of each kind of bomb that a type of messages can be: what it is, and a message that is one."""
    units = {"unknown{}": wire_field(999, b""), "unknown numbers": b"\xb8\x3e\x01"}
    return units | dict(_units(descriptor, ()))


def _units(descriptor: Descriptor, around: tuple[Descriptor, ...]) -> Iterator[tuple[str, bytes]]:
    for each in descriptor.fields:
        if each.type == FieldDescriptor.TYPE_MESSAGE:
            yield f"{each.name}{{}}", wire_field(each.number, b"")
            if len(around) < _MAX_DEPTH and each.message_type not in around:
                for name, unit in _units(each.message_type, (*around, descriptor)):
                    yield f"{each.name}{{{name}}}", wire_field(each.number, unit)
        elif each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield each.name, wire_field(each.number, b"")
        else:
            yield each.name, wire_field(each.number, bytes(100))  # as a list has them


def explode(mib: float, rpcs: list[MethodDescriptor] | None = None, *, serve: Serve = running_server) -> Bombs:
    """Sends every bomb of so many MiB to a server of its own, one after the other."""
    found = Bombs()
    # Else the C library would keep what it frees, of one bomb for the next one, and hide what that takes.
    frugal = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
    with serve("--no-keep-memory", environment=frugal) as server, raw_caller(server.target) as caller:
        caller.check_service()
        for _ in range(4):  # so that what is kept for messages of this size is there
            caller.stub.Echo(EchoRequest(payload=bytes(round(mib * 2**20))), timeout=60)
        before = status(server.process.pid, "VmRSS")
        for rpc in rpcs or ALL_RPCS:
            for name, unit in bombs_of(rpc.input_type).items():
                data = unit * max(1, round(mib * 2**20) // len(unit))
                forget_peak(server.process.pid)
                code = _send(caller, rpc, data)
                if server.process.poll() is not None:
                    found.defects.append(f"{rpc.name} {name} ended the server: {server.log.read_text()[-500:]}")
                    return found
                ratio = (status(server.process.pid, "VmHWM") - before) / len(data)
                found.sent += 1
                found.worst[rpc.name] = max(found.worst.get(rpc.name, (0.0, "")), (round(ratio, 1), name))
                if ratio > _MAX_RATIO or code in _BROKEN:
                    found.defects.append(f"{rpc.name} {name}: {ratio:.1f} times its bytes, {code}")
        caller.check_service()
    return found


def _send(caller: RawCaller, rpc: MethodDescriptor, data: bytes) -> grpc.StatusCode:
    try:
        caller.send(rpc, data)
    except grpc.RpcError as failure:
        code: grpc.StatusCode = failure.code()
        return code
    return grpc.StatusCode.OK


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.bombs", description=__doc__)
    parser.add_argument("--mib", type=float, default=16.0, help="size of each bomb")
    found = explode(parser.parse_args().mib)
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.defects else 0


if __name__ == "__main__":
    sys.exit(main())
