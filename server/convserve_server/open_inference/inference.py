"""The one path of an inference: which model, which tensors, and what comes of them. It knows no gRPC."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from convserve.errors import (
    FieldViolation,
    InvalidArgumentError,
    InvalidRequestError,
    InvalidTensorError,
    TooLargeError,
)
from convserve.layers.layer import Layer
from convserve.protocol.results import Losses
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, name_of, numpy_dtype
from convserve_server.backend import Backend
from convserve_server.memory.aligned import aligned_empty
from convserve_server.observability.call_record import CallRecord
from convserve_server.open_inference.infer_tensors import (
    DATATYPES,
    Input,
    Place,
    dtype_of,
    read_inputs,
    read_output_place,
)
from convserve_server.open_inference.layer_models import (
    OUTPUT_DTYPE,
    STATELESS,
    LayerModel,
    LayerModels,
    stateless_layer,
)
from convserve_server.open_inference.model_descriptions import input_shape
from convserve_server.open_inference.model_statistics import Inference, ModelStatistics
from convserve_server.open_inference.system_memory import Region
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import InferRequest, InferResponse
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.scheduler import Result

# Fields that are the protocol's own; what else is wrong with a stateless layer is wrong with a parameter.
_OWN_FIELDS = {"inputs", "outputs", "parameters", "raw_input_contents", "layers"}
_FIELDS = {"input": "inputs.x", "input_dtype": "inputs.x.datatype", "output_dtype": "parameters.output_dtype"}
_STATELESS_FIELDS = _FIELDS | {"kernel": "inputs.kernel", "bias": "inputs.bias"}

FindRegion = Callable[[str, str], Region]
"""Finds a region of shared memory by its name; the second argument is what to call it in an error."""


class _Model(NamedTuple):
    """What is computed.

    Attributes:
        name: The model's name.
        version: The version.
        layers: The layers, in order.
        x: The input.
    """

    name: str
    version: str
    layers: list[Layer]
    x: Input


class Inferences:
    """Computes requests. Its methods may be called from any thread."""

    def __init__(self, backend: Backend, models: LayerModels, statistics: ModelStatistics) -> None:
        """Joins the parts."""
        self._backend = backend
        self._models = models
        self._statistics = statistics

    def infer(self, request: InferRequest, caller: Caller, find_region: FindRegion, call: CallRecord) -> InferResponse:
        """Returns a request's response.

        Args:
            request: The request.
            caller: Who waits for the response.
            find_region: Finds shared memory, or says that there is none for this caller.
            call: The record of the call that the request came by.

        Raises:
            ConvserveError: Any of the server's.
        """
        began_ns = time.monotonic_ns()
        found = self._models.find(request.message.model_name, request.message.model_version, "model_version")
        name, version, is_stored = found.name, found.version, found.name != STATELESS
        try:
            model = self._stored(request, found) if is_stored else self._stateless(request, version, find_region)
            response, inference = self._infer(request, model, caller, find_region, call, began_ns)
        except Exception as error:
            self._statistics.failed(name, version, time.monotonic_ns() - began_ns)
            if not isinstance(error, InvalidArgumentError):
                raise
            raise _renamed(error, _stored_field if is_stored else _stateless_field)  # noqa: B904 (as it has its cause)
        self._statistics.succeeded(name, version, inference)
        return response

    def _infer(
        self,
        request: InferRequest,
        model: _Model,
        caller: Caller,
        find_region: FindRegion,
        call: CallRecord,
        began_ns: int,
    ) -> tuple[InferResponse, Inference]:
        """Returns a request's response and the times that it took."""
        place, output_dtype = read_output_place(request, "y"), _output_dtype(request)
        asked_ns = time.monotonic_ns()
        permit = self._backend.admission.admit(
            model.layers,
            model.x.shape,
            model.x.dtype,
            output_dtype,
            caller,
            output_room=0 if place is None else math.inf,
        )
        try:
            region = None if place is None else _output_region(place, permit.plan.output_bytes, find_region)
            reading_ns = time.monotonic_ns()
            x = _array(model.x, find_region)
        except BaseException:
            permit.release()
            raise
        input_ns = asked_ns - began_ns + time.monotonic_ns() - reading_ns  # without the wait for admission
        result = self._backend.scheduler.convolve(permit, model.layers, x, caller)
        call.computed(result.computation)
        computed_ns, output = time.monotonic_ns(), result.output
        if place is not None and region is not None:
            region.write(place, output)
        response = InferResponse(_message(request, model, place, result), output if place is None else None)
        ended_ns = time.monotonic_ns()
        return response, Inference(
            samples=len(x),
            batch_size=result.computation.batch_size,
            success=ended_ns - began_ns,
            queue=result.computation.queue_us * 1000,
            compute_input=input_ns,
            compute_infer=result.computation.compute_us * 1000,
            compute_output=ended_ns - computed_ns,
        )

    def _stored(self, request: InferRequest, model: LayerModel) -> _Model:
        """Returns a model of stored layers."""
        layers, x = self._models.layers(model), read_inputs(request, ("x",))["x"]
        first = layers[0]
        assert first.kernel_shape is not None  # noqa: S101 (the store takes no layer without)
        _check_shape(x.shape, input_shape(first.config, first.kernel_shape))
        return _Model(model.name, model.version, layers, x)

    def _stateless(self, request: InferRequest, version: str, find_region: FindRegion) -> _Model:
        """Returns the model whose kernel comes with the request."""
        inputs = read_inputs(request, ("x", "kernel"), ("bias",))
        weights = {name: self._weight(inputs[name], name, find_region) for name in ("kernel", "bias") if name in inputs}
        layer = stateless_layer(request.message.parameters, weights["kernel"], weights.get("bias"))
        return _Model(STATELESS, version, [layer], inputs["x"])

    def _weight(self, given: Input, name: str, find_region: FindRegion) -> Array:
        """Returns a weight, which as one that travels with a call is no larger than a message."""
        most = self._backend.admission.limits.max_message_bytes
        if isinstance(given.elements, Place) and given.elements.size > most:
            text = f"Expected at most {most} bytes, the server's --max-message-bytes. Received {given.elements.size}."
            raise TooLargeError(FieldViolation(f"inputs.{name}", text))
        return _array(given, find_region)


def _check_shape(shape: Shape, expected: list[int]) -> None:
    if len(shape) != 4 or any(wanted not in (-1, size) for wanted, size in zip(expected, shape, strict=True)):
        text = f"Expected shape {expected}, -1 for any size. Received shape {list(shape)}."
        raise InvalidTensorError(FieldViolation("inputs.x.shape", text))


def _output_dtype(request: InferRequest) -> str | None:
    parameters = request.message.parameters
    if OUTPUT_DTYPE not in parameters:
        return None
    return dtype_of(parameters[OUTPUT_DTYPE].string_param, f"parameters.{OUTPUT_DTYPE}", FLOAT_DTYPES)


def _output_region(place: Place, size: int, find_region: FindRegion) -> Region:
    if place.size < size:
        text = f"Expected shared_memory_byte_size of at least {size}, as the output needs. Received {place.size}."
        raise InvalidRequestError(FieldViolation(place.field, text))
    return find_region(place.region, place.field)


def _array(given: Input, find_region: FindRegion) -> Array:
    """Returns an input's elements, those in shared memory as a copy, at which their caller cannot get any more."""
    if not isinstance(given.elements, Place):
        return given.elements
    region = find_region(given.elements.region, given.elements.field)
    array = aligned_empty(given.shape, numpy_dtype(given.dtype))
    region.read(given.elements, array)
    return array


def _message(request: InferRequest, model: _Model, place: Place | None, result: Result) -> messages.ModelInferResponse:
    """Returns a response's message without its output's elements."""
    output = result.output
    message = messages.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.message.id)
    tensor = message.outputs.add(name="y", datatype=DATATYPES[name_of(output)], shape=output.shape)
    if place is not None:
        tensor.parameters["shared_memory_region"].string_param = place.region
        tensor.parameters["shared_memory_byte_size"].int64_param = output.nbytes
        tensor.parameters["shared_memory_offset"].int64_param = place.offset
    for index, losses in enumerate(result.losses):
        if losses != _NO_LOSSES:
            for kind, loss in vars(losses).items():
                if loss is not None:
                    message.parameters[f"layers[{index}].losses.{kind}"].double_param = loss
    return message


_NO_LOSSES = Losses()


def _stored_field(field: str) -> str:
    """Returns what the protocol calls a field that the request path has named."""
    return _FIELDS.get(field, field)


def _stateless_field(field: str) -> str:
    """Returns the same for the stateless model."""
    return _STATELESS_FIELDS.get(field) or (field if field.partition(".")[0] in _OWN_FIELDS else f"parameters.{field}")


def _renamed(error: InvalidArgumentError, name: Callable[[str], str]) -> InvalidArgumentError:
    """Returns an error whose fields are called as the protocol does."""
    return type(error)(*(FieldViolation(name(wrong.field), wrong.description) for wrong in error.violations))
