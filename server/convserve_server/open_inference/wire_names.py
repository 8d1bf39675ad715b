"""The names that the protocol has on the wire, where its package is called "inference"; see inference_service.proto."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from convserve_server.open_inference.v2 import inference_service_pb2

PACKAGE = "inference"
SERVICE_NAME = "inference.GRPCInferenceService"

_PRIVATE = inference_service_pb2.DESCRIPTOR.package


def pool_of(files: Iterable[FileDescriptor]) -> descriptor_pool.DescriptorPool:
    """Returns a pool of these files and this protocol's under its true names, for reflection.

    It is a pool of its own: in protobuf's default one the true names may be tritonclient's.
    """
    pool, known = descriptor_pool.DescriptorPool(), set[str]()
    for file in (*files, inference_service_pb2.DESCRIPTOR):
        _add(file, pool, known)
    return pool


def _add(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, known: set[str]) -> None:
    """Adds a file, after those that it imports."""
    if file.name in known:
        return
    known.add(file.name)
    for each in file.dependencies:
        _add(each, pool, known)
    copy = FileDescriptorProto()
    file.CopyToProto(copy)
    pool.AddSerializedFile(_renamed(copy).SerializeToString())


def _renamed(file: FileDescriptorProto) -> FileDescriptorProto:
    """Returns a file with the true name of its package, if it is one of this protocol's."""
    if file.package != _PRIVATE:
        return file
    file.package = PACKAGE
    for message in file.message_type:
        _rename_fields(message)
    for service in file.service:
        for method in service.method:
            method.input_type, method.output_type = _true(method.input_type), _true(method.output_type)
    return file


def _rename_fields(message: DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:  # of a message or an enum
            field.type_name = _true(field.type_name)
    for nested in message.nested_type:
        _rename_fields(nested)


def _true(name: str) -> str:
    return name.replace(f".{_PRIVATE}.", f".{PACKAGE}.", 1) if name.startswith(f".{_PRIVATE}.") else name


SERVICE: ServiceDescriptor = pool_of(()).FindServiceByName(SERVICE_NAME)
"""The service under its true name."""
