"""The one path of an inference: which model, which tensors, and what comes of them. It knows no gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
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
    check_stateless_version,
    stateless_layer,
)
from convserve_server.open_inference.model_descriptions import input_shape
from convserve_server.open_inference.model_statistics import Inference, ModelStatistics
from convserve_server.open_inference.system_memory import Region
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import InferRequest, InferResponse
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.scheduler import Computation, Result

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


class _Work(NamedTuple):
    """A request that is to be computed.

    Attributes:
        request: The request.
        model: What is computed.
        place: Where in shared memory the output goes; None for the response.
        output_region: The region of that place.
        x: The input.
        permit: The request's leave to be in the server.
        tell: Is told of the forward pass.
        began: When the request came, by the monotonic clock in nanoseconds.
        input_ns: What it took to read the input.
    """

    request: InferRequest
    model: _Model
    place: Place | None
    output_region: Region | None
    x: Array
    permit: Permit
    tell: Callable[[Computation], None]
    began: int
    input_ns: int


class Inferences:
    """Computes requests. Its methods may be called from any thread."""

    def __init__(self, backend: Backend, models: LayerModels, statistics: ModelStatistics) -> None:
        """Joins the parts."""
        self._backend = backend
        self._models = models
        self._statistics = statistics

    def infer(
        self, request: InferRequest, caller: Caller, region: FindRegion, tell: Callable[[Computation], None]
    ) -> InferResponse:
        """Returns a request's response.

        Args:
            request: The request.
            caller: Who waits for the response.
            region: Finds shared memory, or says that there is none for this caller.
            tell: Is told of the forward pass.

        Raises:
            ConvserveError: Any of the server's.
        """
        work = self._admitted(request, caller, region, tell)
        return self._computed(work, caller)

    def _admitted(
        self, request: InferRequest, caller: Caller, region: FindRegion, tell: Callable[[Computation], None]
    ) -> _Work:
        """Returns what is to be computed, once there is room for it."""
        began = time.monotonic_ns()
        name = request.message.model_name
        find: Callable[[], _Model]
        if name == STATELESS:
            version = check_stateless_version(request.message.model_version, "model_version")
            find = partial(self._stateless, request, version, region)
        else:
            found = self._models.find(name, request.message.model_version, "model_version")
            version = found.version
            find = partial(self._stored, request, found)
        try:
            model = find()
            place, output_dtype = read_output_place(request, "y"), _output_dtype(request)
            input_ns = time.monotonic_ns() - began
            permit, x, output_region, read_ns = self._received(model, place, output_dtype, caller, region)
        except Exception as error:
            raise self._failed(error, name, version, began)  # noqa: B904 (it may be the error itself, with its cause)
        return _Work(request, model, place, output_region, x, permit, tell, began, input_ns + read_ns)

    def _computed(self, work: _Work, caller: Caller) -> InferResponse:
        """Computes, and returns the response."""
        model, place = work.model, work.place
        try:
            result = self._backend.scheduler.convolve(work.permit, model.layers, work.x, caller)
            work.tell(result.computation)
            computed = time.monotonic_ns()
            output = result.output
            if place is not None and work.output_region is not None:
                work.output_region.write(place, output)
            response = InferResponse(_message(work.request, model, place, result), output if place is None else None)
        except Exception as error:
            raise self._failed(error, model.name, model.version, work.began)  # noqa: B904 (as above)
        ended = time.monotonic_ns()
        inference = Inference(
            samples=len(work.x),
            batch_size=result.computation.batch_size,
            success=ended - work.began,
            queue=result.computation.queue_us * 1000,
            compute_input=work.input_ns,
            compute_infer=result.computation.compute_us * 1000,
            compute_output=ended - computed,
        )
        self._statistics.succeeded(model.name, model.version, inference)
        return response

    def _failed(self, error: Exception, name: str, version: str, began: int) -> Exception:
        """Returns an error as the protocol has it, having counted it."""
        self._statistics.failed(name, version, time.monotonic_ns() - began)
        if not isinstance(error, InvalidArgumentError):
            return error
        return _named(error, _stateless_field if name == STATELESS else _stored_field)

    def _received(
        self, model: _Model, place: Place | None, output_dtype: str | None, caller: Caller, region: FindRegion
    ) -> tuple[Permit, Array, Region | None, int]:
        """Returns a call's permit, its input, where its output goes, and how long it took to read the input."""
        x = model.x
        in_one_message = place is None
        permit = self._backend.admission.admit(
            model.layers, x.shape, x.dtype, output_dtype, caller, in_one_message=in_one_message
        )
        try:
            output_region = None if place is None else _output_region(place, permit.plan.output_bytes, region)
            began = time.monotonic_ns()
            array = _array(x, region)
        except BaseException:
            permit.release()
            raise
        return permit, array, output_region, time.monotonic_ns() - began

    def _stored(self, request: InferRequest, model: LayerModel) -> _Model:
        """Returns a model of stored layers."""
        layers, x = self._models.layers(model), read_inputs(request, ("x",))["x"]
        first = layers[0]
        assert first.kernel_shape is not None  # noqa: S101 (the store takes no layer without)
        _check_shape(x.shape, input_shape(first.config, first.kernel_shape))
        return _Model(model.name, model.version, layers, x)

    def _stateless(self, request: InferRequest, version: str, region: FindRegion) -> _Model:
        """Returns the model whose kernel comes with the request."""
        inputs = read_inputs(request, ("x", "kernel"), ("bias",))
        weights = {name: self._weight(inputs[name], name, region) for name in ("kernel", "bias") if name in inputs}
        layer = stateless_layer(request.message.parameters, weights["kernel"], weights.get("bias"))
        return _Model(STATELESS, version, [layer], inputs["x"])

    def _weight(self, given: Input, name: str, region: FindRegion) -> Array:
        """Returns a weight, which as one that travels with a call is no larger than a message."""
        most = self._backend.admission.limits.max_message_bytes
        if isinstance(given.elements, Place) and given.elements.size > most:
            text = f"Expected at most {most} bytes, the server's --max-message-bytes. Received {given.elements.size}."
            raise TooLargeError(FieldViolation(f"inputs.{name}", text))
        return _array(given, region)


def _check_shape(shape: Shape, expected: list[int]) -> None:
    if len(shape) != 4 or any(size not in (-1, found) for size, found in zip(expected, shape, strict=True)):
        text = f"Expected shape {expected}, -1 for any size. Received shape {list(shape)}."
        raise InvalidTensorError(FieldViolation("inputs.x.shape", text))


def _output_dtype(request: InferRequest) -> str | None:
    parameters = request.message.parameters
    if OUTPUT_DTYPE not in parameters:
        return None
    return dtype_of(parameters[OUTPUT_DTYPE].string_param, f"parameters.{OUTPUT_DTYPE}", FLOAT_DTYPES)


def _output_region(place: Place, size: int, region: FindRegion) -> Region:
    if place.size < size:
        text = f"Expected shared_memory_byte_size of at least {size}, as the output needs. Received {place.size}."
        raise InvalidRequestError(FieldViolation(place.field, text))
    return region(place.region, place.field)


def _array(given: Input, region: FindRegion) -> Array:
    """Returns an input's elements, those in shared memory as a copy, at which their caller cannot get any more."""
    if not isinstance(given.elements, Place):
        return given.elements
    found = region(given.elements.region, given.elements.field)
    array = aligned_empty(given.shape, numpy_dtype(given.dtype))
    found.read(given.elements, array)
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


def _named(error: InvalidArgumentError, name: Callable[[str], str]) -> InvalidArgumentError:
    """Returns an error whose fields are called as the protocol does."""
    return type(error)(*(FieldViolation(name(each.field), each.description) for each in error.violations))
