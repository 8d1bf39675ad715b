"""The one path of an inference: which model, which tensors, and what comes of them. It knows no gRPC."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from convserve.errors import (
    FieldViolation,
    InvalidArgumentError,
    InvalidRequestError,
    InvalidTensorError,
    TooLargeError,
)
from convserve.layers.layer import Layer
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import FLOAT_DTYPES, Array, name_of, numpy_dtype
from convserve_server.backend import Backend
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


class Inferences:
    """Computes requests. Its methods may be called from any thread."""

    def __init__(self, backend: Backend, statistics: ModelStatistics) -> None:
        self._backend, self._statistics = backend, statistics
        self.models = LayerModels(backend.store)

    def infer(self, request: InferRequest, caller: Caller, find_region: FindRegion, call: CallRecord) -> InferResponse:
        """Returns the response to a request of a call, for which a caller waits; or raises any ConvserveError."""
        began_ns = time.monotonic_ns()
        model = self.models.find(request.message.model_name, request.message.model_version, "model_version")
        is_stored = model.name != STATELESS
        try:
            layers, x = self._stored(request, model) if is_stored else self._stateless(request, find_region)
            response, inference = self._infer(request, model, layers, x, caller, find_region, call, began_ns)
        except Exception as error:
            self._statistics.failed(model.name, model.version, time.monotonic_ns() - began_ns)
            if not isinstance(error, InvalidArgumentError):
                raise
            named = ((_protocol_field(wrong.field, is_stored), wrong.description) for wrong in error.violations)
            raise type(error)(*(FieldViolation(*parts) for parts in named))  # noqa: B904 (as it has its cause)
        self._statistics.succeeded(model.name, model.version, inference)
        return response

    def _infer(
        self,
        request: InferRequest,
        model: LayerModel,
        layers: list[Layer],
        sent: Input,
        caller: Caller,
        find_region: FindRegion,
        call: CallRecord,
        began_ns: int,
    ) -> tuple[InferResponse, Inference]:
        place, parameters, output_dtype = read_output_place(request, "y"), request.message.parameters, None
        if OUTPUT_DTYPE in parameters:
            output_dtype = dtype_of(parameters[OUTPUT_DTYPE].string_param, f"parameters.{OUTPUT_DTYPE}", FLOAT_DTYPES)
        asked_ns = time.monotonic_ns()
        room = 0 if place is None else math.inf
        permit = self._backend.admission.admit(layers, sent.shape, sent.dtype, output_dtype, caller, output_room=room)
        try:
            region = None
            if place is not None:
                if place.size < (size := permit.plan.output_bytes):
                    expected = f"shared_memory_byte_size of at least {size}, as the output needs"
                    raise InvalidRequestError.for_field(place.field, expected, place.size)
                region = find_region(place.region, place.field)
            reading_ns = time.monotonic_ns()
            x = _array(sent, find_region)
        except BaseException:
            permit.finish()
            raise
        input_ns = asked_ns - began_ns + time.monotonic_ns() - reading_ns  # without the wait for admission
        result = self._backend.scheduler.convolve(permit, layers, x, caller)
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

    def _stored(self, request: InferRequest, model: LayerModel) -> tuple[list[Layer], Input]:
        """Returns the layers of a stored model, in order, and what they are applied to."""
        self._backend.admission.check_layers(len(model.digests))
        layers, x = self.models.layers(model), read_inputs(request, ("x",))["x"]
        first = layers[0]
        assert first.kernel_shape is not None  # noqa: S101 (the store takes no layer without)
        expected = input_shape(first.config, first.kernel_shape)
        if len(x.shape) != 4 or any(wanted not in (-1, size) for wanted, size in zip(expected, x.shape, strict=True)):
            text = f"shape {expected}, -1 for any size"
            raise InvalidTensorError.for_field("inputs.x.shape", text, f"shape {list(x.shape)}")
        return layers, x

    def _stateless(self, request: InferRequest, find_region: FindRegion) -> tuple[list[Layer], Input]:
        """Returns the same of the model whose kernel comes with the request."""
        inputs = read_inputs(request, ("x", "kernel"), ("bias",))
        weights = {name: self._weight(inputs[name], name, find_region) for name in ("kernel", "bias") if name in inputs}
        layer = stateless_layer(request.message.parameters, weights["kernel"], weights.get("bias"))
        return [layer], inputs["x"]

    def _weight(self, given: Input, name: str, find_region: FindRegion) -> Array:
        """Returns a weight, which as one that travels with a call is no larger than a message."""
        most = self._backend.admission.limits.max_message_bytes
        if isinstance(given.elements, Place) and given.elements.size > most:
            expected = f"at most {most} bytes, the server's --max-message-bytes"
            raise TooLargeError.for_field(f"inputs.{name}", expected, given.elements.size)
        return _array(given, find_region)


def _array(given: Input, find_region: FindRegion) -> Array:
    """Returns an input's elements, those in shared memory as a copy, at which their caller cannot get any more."""
    if not isinstance(given.elements, Place):
        return given.elements
    region = find_region(given.elements.region, given.elements.field)
    array = aligned_empty(given.shape, numpy_dtype(given.dtype))
    region.read(given.elements, array)
    return array


def _message(
    request: InferRequest, model: LayerModel, place: Place | None, result: Result
) -> messages.ModelInferResponse:
    """Returns a response's message without its output's elements."""
    output = result.output
    message = messages.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.message.id)
    tensor = message.outputs.add(name="y", datatype=DATATYPES[name_of(output)], shape=output.shape)
    if place is not None:
        tensor.parameters["shared_memory_region"].string_param = place.region
        tensor.parameters["shared_memory_byte_size"].int64_param = output.nbytes
        tensor.parameters["shared_memory_offset"].int64_param = place.offset
    for index, losses in enumerate(result.losses):
        for kind, loss in vars(losses).items():
            if loss is not None:
                message.parameters[f"layers[{index}].losses.{kind}"].double_param = loss
    return message


def _protocol_field(field: str, is_stored: bool) -> str:
    """Returns what the protocol calls a field that the request path has named."""
    if is_stored:
        return _FIELDS.get(field, field)
    return _STATELESS_FIELDS.get(field) or (field if field.partition(".")[0] in _OWN_FIELDS else f"parameters.{field}")
