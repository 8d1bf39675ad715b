"""The requests of forward passes and plans, as both clients send them. Nothing here does I/O."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from convserve.errors import ConvserveError, InvalidArgumentError, TooLargeError
from convserve.layers.layer import Layer, planned, planned_call
from convserve.layers.plan import Plan
from convserve.protocol.call_arguments import Layers, check_output, layers_of, output_name
from convserve.protocol.results import Result
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors import framing
from convserve.tensors.codec import (
    INPUT_DTYPES,
    Array,
    dtype_number,
    name_of,
    numpy_dtype,
    standard_array,
    standard_dtype,
)
from convserve.v1 import convolution_service_pb2

# Of a tensor that goes in one message, with which no server's --max-message-bytes is exceeded. Pieces take longer: each
# end has two threads for them.
_MAX_WHOLE_BYTES = 2**22 - 2**16
_MAX_FORMS = 16  # that a stored layer keeps: callers of many image sizes need not keep them all
# For which a refusal is remembered: a server may be started again with a higher limit, or only one of several have it.
_REMEMBERED_CALLS = 64
# What gRPC or a server says of a call that is too large.
_LIMIT = re.compile(r"Expected at most (\d+) (bytes in one message|bytes of memory(?: beside weights)?|FLOPs)")
_MAX_MESSAGE_BYTES = 2**31 - 2**16  # protobuf's own bound, less what is beside the tensor


class ConvolveRequest:
    """A forward pass' request: the message without its tensor, and the tensor in the caller's own memory.

    Attributes:
        out: The caller's array for the output, if there is one. It is not written to before an answer is known to be
            one to this call; an answer in pieces that breaks off leaves it half written.
        most_samples: The most samples that may go together, by what servers have refused.
        together: How many a stream sent together last, which may be fewer; all before there was one.
        in_pieces: Whether the tensors are to go in pieces whatever their size.
        refusal: Why a server did not take what was sent first.
    """

    __slots__ = (
        *("_form", "input", "layers", "message", "out", "plan"),
        *("in_pieces", "most_samples", "refusal", "together"),
    )

    def __init__(self, layers: list[Layer | StoredLayerBase], array: Array, form: _Form, out: Any) -> None:
        self.layers, self.input, self._form, self.out = layers, array, form, out
        self.message, self.plan, self.most_samples = form.message, form.plan, form.most_samples
        self.together, self.in_pieces = len(array), False
        self.refusal: ConvserveError | None = None
        if out is not None:
            weights = [(layer.kernel, layer.bias) for layer in self._locals() if layer is not None]
            check_output(out, self.plan, (array, *itertools.chain.from_iterable(weights)))

    def _locals(self) -> list[Layer | None]:
        """Returns the layers with their weights, None for those whose weights only servers have."""
        return [layer.local if isinstance(layer, StoredLayerBase) else layer for layer in self.layers]

    def serialize(self) -> bytes:
        """Returns the message's bytes, into which the tensor is copied."""
        return self._form.before_input + self.input.reshape(-1).view("u1").data

    def result(self, data: bytes) -> Result:
        """Returns what the answer's bytes say; raises InternalError if they answer another call, or none."""
        return Result.parse(data, self.plan, self.out)

    @property
    def is_large(self) -> bool:
        """Whether the tensors are to go in pieces."""
        return self.in_pieces or self.is_divided or max(self.input.nbytes, self.plan.output_bytes) > _MAX_WHOLE_BYTES

    @property
    def is_divided(self) -> bool:
        """Whether a server has refused to take the samples all together."""
        return self.most_samples < len(self.input)

    @property
    def is_divisible(self) -> bool:
        """Whether samples may be computed apart: each result is the same then, but for the penalty of a batch."""
        return len(self.input) > 1 and not any(layer.config.activity_regularizer for layer in self.layers)

    def reduce(self, refusal: ConvserveError) -> bool:
        """Reduces what goes at once, if a server may take the call then; returns whether it may.

        Raises:
            TooLargeError: The first refusal, if the reduced call is refused for something else.
        """
        if not isinstance(refusal, TooLargeError):
            if self.refusal is not None and isinstance(refusal, InvalidArgumentError):
                try:
                    raise self.refusal from None
                finally:
                    self.refusal = None  # whose frames hold this
            return False
        found = _LIMIT.search(str(refusal))
        limit, unit = (int(found[1]), found[2]) if found else (0, "")
        if unit == "bytes in one message":
            # Before pieces go the layers, with the weights that the call carries: as many for any number of samples.
            if self.is_large or len(self._form.before_input) > limit:
                return False
            self.in_pieces = True
        elif self.is_divisible and self.together > 1 and all(each.field == "input" for each in refusal.violations):
            self.most_samples = self.together // 2
            while self.most_samples > 1 and self._takes(unit) > limit:  # which need not be sent to be refused
                self.most_samples //= 2
        else:
            return False
        refusal.__traceback__ = None  # its frames hold it and the tensors
        self.refusal = self.refusal or refusal
        return True

    def _takes(self, unit: str) -> int:
        """Returns what a server counts for the samples that may go together; 0 for an unknown unit."""
        shape = (self.most_samples, *self.input.shape[1:])
        plan = planned_call(self.layers, shape, name_of(self.input), self.plan.output_dtype)
        counted = {
            "bytes of memory": plan.memory_bytes,
            "bytes of memory beside weights": plan.memory_bytes - plan.weight_bytes,
            "FLOPs": plan.flops,
        }
        return counted.get(unit, 0)

    def remember_division(self) -> None:
        """Lets some later calls of a stored layer, with an input of this shape, begin with what was not refused."""
        form = self._form
        if self.refusal is not None:
            form.most_samples, form.calls_left = self.most_samples, _REMEMBERED_CALLS
        elif self.is_divided:
            form.calls_left -= 1
            if form.calls_left <= 0:
                form.most_samples = len(self.input)

    def carrying_layers(self) -> ConvolveRequest:
        """Returns the same request with the stored layers' weights; raises TooLargeError above protobuf's 2 GiB."""
        _check_carried(self._locals(), "make room for them on the server")
        message = convolution_service_pb2.ConvolveRequest()
        message.CopyFrom(self.message)
        message.ClearField("layers")
        message.layers.extend(
            layer.to_carried_reference() if isinstance(layer, StoredLayerBase) else layer.to_reference()
            for layer in self.layers
        )
        return ConvolveRequest(self.layers, self.input, _Form(message, self.plan, self.input), self.out)


class _Form:
    """What requests for the same layers, with inputs of the same shape and dtype, have in common."""

    def __init__(self, message: convolution_service_pb2.ConvolveRequest, plan: Plan, array: Array) -> None:
        self.message, self.plan = message, plan  # the message is without its tensor
        self.most_samples: int = array.shape[0]  # that go together, by what servers have refused
        self.calls_left = 0  # until all are tried again
        # The message's bytes, up to the input's elements.
        self.before_input = message.SerializeToString() + framing.frame(name_of(array), array.shape).opening


def convolve_request(
    layers: Layers, x: Any, output_dtype: Any, batching: bool = True, out: Any = None
) -> ConvolveRequest:
    """Returns the request of a forward pass.

    Raises:
        InvalidArgumentError: If anything is wrong with layers or input, or `out` cannot take the output.
        TooLargeError: For weights above protobuf's 2 GiB.
    """
    wanted = output_name(output_dtype)
    is_plain = type(x) is np.ndarray and x.flags.c_contiguous
    if is_plain and isinstance(layers, StoredLayerBase):  # by far most calls
        form = layers.forms.get((x.shape, x.dtype, wanted, batching))
        if form is not None:
            return ConvolveRequest([layers], x, form, out)
    listed = layers_of(layers)
    array = standard_array(x, "input", INPUT_DTYPES)
    plan = planned_call(listed, array.shape, name_of(array), wanted)
    numpy_dtype(plan.output_dtype)  # bfloat16 may need a package, which is better said now than after the work
    _check_carried(listed, "put the layers, and call what `put` returns")
    message = convolution_service_pb2.ConvolveRequest(
        layers=[layer.to_reference() for layer in listed], output_dtype=dtype_number(wanted), unbatched=not batching
    )
    form = _Form(message, plan, array)
    if isinstance(layers, StoredLayerBase):
        if len(layers.forms) >= _MAX_FORMS:
            layers.forms.clear()
        layers.forms[array.shape, array.dtype, wanted, batching] = form
    return ConvolveRequest(listed, array, form, out)


def _check_carried(layers: Sequence[Layer | StoredLayerBase | None], remedy: str) -> None:
    carried = sum(layer.kernel.nbytes for layer in layers if isinstance(layer, Layer) and layer.kernel is not None)
    if carried >= _MAX_MESSAGE_BYTES:
        expected = "weights below 2 GiB, protobuf's bound for what a call carries"
        raise TooLargeError.for_field("layers", expected, f"{carried} bytes: {remedy}")


def plan_request(
    layers: Layers, input_shape: Sequence[int] | None, input_dtype: Any, output_dtype: Any
) -> convolution_service_pb2.PlanRequest:
    """Returns the request of a plan; raises InvalidArgumentError if anything is wrong with layers or shape."""
    listed = layers_of(layers)
    planned(listed, input_shape, input_dtype, output_dtype)
    return convolution_service_pb2.PlanRequest(
        layers=[Layer(layer.config).to_reference() for layer in listed],  # a plan needs no weights
        given=[number for number, layer in enumerate(listed) if layer.kernel_shape is not None],
        input_shape=() if input_shape is None else tuple(input_shape),
        input_dtype=dtype_number(standard_dtype(input_dtype, "input_dtype", INPUT_DTYPES)),
        output_dtype=dtype_number(output_name(output_dtype)),
    )
