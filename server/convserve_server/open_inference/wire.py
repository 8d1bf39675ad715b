"""The protocol on the wire: messages without a copy of their tensors, and the protocol's true names.

The elements are a message's last fields, raw_input_contents and raw_output_contents. The stock parser reads a message
whose fields come in another order, which protobuf allows.

On the wire the protocol's package is "inference"; here it is a private one: see inference_service.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from convserve.tensors import framing
from convserve.tensors.codec import Array
from convserve_server.open_inference.v2 import inference_service_pb2 as messages

PACKAGE = "inference"
SERVICE_NAME = "inference.GRPCInferenceService"

_PRIVATE = messages.DESCRIPTOR.package
_RAW_INPUT_CONTENTS = messages.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUT_CONTENTS = messages.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_INFER_RESPONSE = messages.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class InferRequest(NamedTuple):
    """A request of an inference."""

    message: messages.ModelInferRequest  # its raw_input_contents are not to be used
    raw: Sequence[memoryview | bytes]  # those, on the received bytes

    @classmethod
    def parse(cls, data: bytes) -> InferRequest:
        """Reads a request's bytes. Raises DecodeError if they are none."""
        split = framing.read_last_fields(_RAW_INPUT_CONTENTS, data)
        if split is not None:
            return cls(messages.ModelInferRequest.FromString(split[0]), split[1])
        message = messages.ModelInferRequest.FromString(data)
        return cls(message, message.raw_input_contents)


class InferResponse(NamedTuple):
    """A response with one output."""

    message: messages.ModelInferResponse  # without raw_output_contents
    output: Array | None  # in the engine's memory; None if it is in the caller's

    def _parts(self) -> list[bytes | memoryview]:
        elements = b"" if self.output is None else self.output.reshape(-1).view("u1").data
        return [self.message.SerializeToString(), *framing.write_field(_RAW_OUTPUT_CONTENTS, elements)]

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return b"".join(self._parts())

    def serialize_in_stream(self) -> bytes:
        """Returns the bytes of a stream's message that has this one in it."""
        return b"".join(framing.write_field(_INFER_RESPONSE, *self._parts()))


def pool_of(files: Iterable[FileDescriptor]) -> descriptor_pool.DescriptorPool:
    """Returns a pool of these files and this protocol's under its true names, for reflection.

    It is a pool of its own: in protobuf's default one the true names may be tritonclient's.
    """
    pool, known = descriptor_pool.DescriptorPool(), set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name not in known:
            known.add(file.name)
            for imported in file.dependencies:
                add(imported)
            pool.AddSerializedFile(_renamed(file).SerializeToString())

    for file in (*files, messages.DESCRIPTOR):
        add(file)
    return pool


def _renamed(file: FileDescriptor) -> FileDescriptorProto:
    """Returns a file with the true name of its package, if it is one of this protocol's."""
    copy = FileDescriptorProto.FromString(file.serialized_pb)
    if file.package != _PRIVATE:
        return copy
    text = text_format.MessageToString(copy)
    text = text.replace(f'package: "{_PRIVATE}"', f'package: "{PACKAGE}"').replace(f'".{_PRIVATE}.', f'".{PACKAGE}.')
    return text_format.Parse(text, FileDescriptorProto())


SERVICE: ServiceDescriptor = pool_of(()).FindServiceByName(SERVICE_NAME)
"""The service under its true name."""
