"""Requests and responses of an inference, read and written without copying tensors through messages.

The elements are a message's last fields, raw_input_contents and raw_output_contents. What is written in another order,
which protobuf allows, is read by the stock parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from convserve.tensors import framing
from convserve.tensors.codec import Array
from convserve_server.open_inference.v2 import inference_service_pb2 as messages

_RAW_INPUT_CONTENTS = messages.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUT_CONTENTS = messages.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_INFER_RESPONSE = messages.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class InferRequest(NamedTuple):
    """A request of an inference.

    Attributes:
        message: The message, in which nobody looks for raw_input_contents.
        raw: Those, on the received bytes.
    """

    message: messages.ModelInferRequest
    raw: Sequence[memoryview | bytes]

    @classmethod
    def parse(cls, data: bytes) -> InferRequest:
        """Reads a request's bytes.

        Raises:
            DecodeError: If they are none.
        """
        found = framing.read_last_fields(_RAW_INPUT_CONTENTS, data)
        if found is not None:
            return cls(messages.ModelInferRequest.FromString(found[0]), found[1])
        message = messages.ModelInferRequest.FromString(data)
        return cls(message, message.raw_input_contents)


class InferResponse(NamedTuple):
    """A response with one output.

    Attributes:
        message: The message without raw_output_contents.
        output: The output in the engine's memory, or None if it is in the caller's.
    """

    message: messages.ModelInferResponse
    output: Array | None

    def _parts(self) -> list[bytes | memoryview]:
        elements = b"" if self.output is None else self.output.reshape(-1).view("u1").data
        return [self.message.SerializeToString(), *framing.write_field(_RAW_OUTPUT_CONTENTS, elements)]

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return b"".join(self._parts())

    def serialize_in_stream(self) -> bytes:
        """Returns the bytes of a stream's message that has this one in it."""
        return b"".join(framing.write_field(_INFER_RESPONSE, *self._parts()))
