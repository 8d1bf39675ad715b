"""gRPC server reflection: grpc.reflection.v1, which newer callers ask first, and v1alpha before it.

grpcio-reflection has v1alpha alone. The messages of both are the same on the wire, so one servicer answers both.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc


def _v1_file() -> bytes:
    file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = text_format.MessageToString(file).replace("v1alpha", "v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString()


_V1, _V1_FILE, _POOL = "grpc.reflection.v1.ServerReflection", _v1_file(), descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_V1_FILE)
SERVICES: tuple[ServiceDescriptor, ...] = (
    _POOL.FindServiceByName(_V1),
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
"""The services of both versions."""


def add_to_server(names: Iterable[str], pool: descriptor_pool.DescriptorPool, server: grpc.Server) -> None:
    """Serves reflection of services by their full names, from a pool of their files, and of its own."""
    pool.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_V1_FILE)
    servicer = reflection.ReflectionServicer([*names, *(service.full_name for service in SERVICES)], pool)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_V1, {"ServerReflectionInfo": method}),))
