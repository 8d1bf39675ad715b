"""Layer: a Conv2D with its weights, or without, in which case a server draws them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from convserve.display import html_tables
from convserve.errors import (
    InvalidConfigurationError,
    InvalidTensorError,
    InvalidWeightsError,
    naming_layer,
    short_repr,
)
from convserve.layers import messages
from convserve.layers.arguments import standard_data_format, standard_input_shape
from convserve.layers.classic_kernels import classic_kernel
from convserve.layers.conv2d import Conv2D
from convserve.layers.digest import digest
from convserve.layers.keras_layers import of_keras_layer, to_keras
from convserve.layers.plan import Plan, plan
from convserve.layers.weight_shapes import (
    WEIGHT_DTYPES,
    cast_weight,
    check_bias_shape,
    check_kernel_channels,
    check_weight_shapes,
    weight_rows,
)
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, decode, encode, standard_array
from convserve.v1 import layer_pb2

_PARAMETERS = inspect.signature(Conv2D).parameters


def given_parameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those arguments of `Client.conv2d` that `Layer.from_arguments` takes as parameters.

    Args:
        arguments: All of them by name; "unknown" holds those that are no parameters.
    """
    left_open = {name for name in ("groups", "use_bias") if arguments[name] is _PARAMETERS[name].default}
    given = {name: arguments[name] for name in _PARAMETERS if name not in left_open | {"filters", "kernel_size"}}
    return {**given, **arguments["unknown"]}


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Layer:
    """A Conv2D with given weights, or with weights that the server draws with the configuration's initializers.

    Attributes:
        config: The configuration.
        kernel: (kernel height, kernel width, input channels / groups, filters) in the policy's weight dtype, or None.
        bias: (filters,), likewise, or None.
    """

    config: Conv2D
    kernel: Array | None
    bias: Array | None

    def __init__(self, config: Conv2D, kernel: Any = None, bias: Any = None) -> None:
        """Casts weights to the policy's dtype: of any floating-point dtype, and integers that it has exactly.

        A kernel needs a bias if `config.use_bias`. It may be the name of a classic one, such as "sobel-x", where
        filters and groups are both the input's channels. Raises InvalidWeightsError if weights are missing or don't
        fit, or InvalidConfigurationError for a name that is none, or what is no Conv2D.
        """
        if not isinstance(config, Conv2D):
            raise InvalidConfigurationError.for_field("config", "a Conv2D", short_repr(config))
        object.__setattr__(self, "config", config)
        if isinstance(kernel, str):
            kernel = _classic(config, kernel)
        if kernel is None and bias is not None:
            raise InvalidWeightsError.for_field("kernel", "a kernel together with the bias", "a bias alone")
        arrays = {"kernel": kernel, "bias": bias}
        for field, value in arrays.items():
            if value is not None:
                with _as_weights_error():
                    arrays[field] = standard_array(value, field, WEIGHT_DTYPES)
        if kernel is not None:
            check_weight_shapes(config, arrays["kernel"].shape, bias is not None)
        if bias is not None:
            check_bias_shape(config, arrays["bias"].shape)
        for field, array in arrays.items():
            object.__setattr__(self, field, None if array is None else cast_weight(array, field, config.variable_dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again; what was computed of the weights is left behind."""
        return type(self), (self.config, self.kernel, self.bias)

    def __repr__(self) -> str:
        """Returns configuration and shapes; the weights themselves would fill a screen."""
        weights = "" if self.kernel is None else f", kernel {self.kernel.shape}"
        return f"<Layer {self.config!r}{weights}{'' if self.bias is None else f', bias {self.bias.shape}'}>"

    def _repr_html_(self) -> str:
        return html_tables.table("Layer", [*self.config.given().items(), *weight_rows(self.config, self.kernel_shape)])

    @property
    def digest(self) -> bytes:
        """The 32 bytes that identify configuration and weights on every server.

        It is computed anew each time unless the weights are read-only, as a caller may change its array. Raises
        InvalidWeightsError if the weights are still to be drawn.
        """
        if self.kernel is None:
            expected = "weights, over which a digest is computed"
            raise InvalidWeightsError.for_field("kernel", expected, "a layer whose weights a server draws")
        if any(array.flags.writeable for array in self.arrays.values()):
            return digest(self.config, self.kernel, self.bias)
        return self._lasting_digest

    @cached_property
    def _lasting_digest(self) -> bytes:
        assert self.kernel is not None  # noqa: S101 (`digest` saw it)
        return digest(self.config, self.kernel, self.bias)

    @property
    def arrays(self) -> dict[str, Array]:
        """The weights that there are, by "kernel" and "bias"."""
        return {name: array for name, array in (("kernel", self.kernel), ("bias", self.bias)) if array is not None}

    @property
    def kernel_shape(self) -> Shape | None:
        """The kernel's shape; None without one."""
        return None if self.kernel is None else self.kernel.shape

    @property
    def input_channels(self) -> int | None:
        """The channels that the kernel is made for; None without one."""
        return None if self.kernel is None else int(self.kernel.shape[2]) * self.config.groups

    def check_input_channels(self, channels: int) -> None:
        """Raises InvalidArgumentError unless the layer has, or can be given, weights for so many input channels."""
        if self.kernel is None:
            self.config.check_initializers()
        else:
            check_kernel_channels(self.config, self.kernel.shape, channels)

    @classmethod
    def from_keras(cls, layer: Any) -> Layer | list[Layer]:
        """Returns one of Keras' convolutions as a Layer: with its weights if it is built, without if it is not.

        What drew the weights of a built layer does not matter. Regularizers and constraints of the user's own are left
        out of it with a warning: its outputs are the same, but a server does not compute them.

        Args:
            layer: A `keras.layers.Conv2D`, or one of the others in `keras_layers.CONVOLUTIONS`. A DepthwiseConv2D
                becomes a Conv2D with as many groups as its input has channels, and so has to be built. Conv1D,
                DepthwiseConv1D and SeparableConv1D become Conv2Ds over a height of 1: pass `x[:, None]` and take
                `y[:, 0]` of the output, or `x[:, :, None]` and `y[:, :, 0]` with data_format="channels_first".

        Returns:
            The layer; or for SeparableConv2D and SeparableConv1D a list of two, which is a chain for
            `client.convolve`.

        Raises:
            InvalidConfigurationError: If the layer is of another class, or a subclass, which may compute something
                else; or has something that has no counterpart, such as a function of the user's own as activation.
        """
        chain = [cls(*convolution) for convolution in of_keras_layer(layer)]
        return chain[0] if len(chain) == 1 else chain

    @classmethod
    def from_arguments(
        cls,
        filters: int | None,
        kernel_size: Any,
        kernel: Any,
        bias: Any,
        seed: int | None,
        parameters: Mapping[str, Any],
        x: Any = None,
    ) -> Layer:
        """Returns the layer that the arguments of `Client.conv2d` describe; raises as Conv2D and Layer do.

        With a kernel, `filters` and `kernel_size` may be left out, and `use_bias` means whether there is a bias. With
        the name of a classic one `filters` and `groups` are the channels of the input `x`, or of an `input_shape`.
        """
        known = list(_PARAMETERS)
        for name in parameters:
            if name not in known:
                words = [*known, "kernel", "bias", "seed", "output_dtype", "out", "timeout"]
                near = difflib.get_close_matches(name, words, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"They are {', '.join(known)}."
                expected = "a parameter of keras.layers.Conv2D"
                raise InvalidConfigurationError.for_field(name, expected, short_repr(name), hint)
        if kernel is not None:
            if isinstance(kernel, str):
                channels = _channels(kernel, x, parameters)
                shape, parameters = classic_kernel(kernel, channels).shape, {"groups": channels, **parameters}
            else:
                with _as_weights_error():
                    kernel = standard_array(kernel, "kernel", WEIGHT_DTYPES)
                shape = kernel.shape
            if len(shape) == 4:
                filters = int(shape[3]) if filters is None else filters
                kernel_size = shape[:2] if kernel_size is None else kernel_size
            parameters = {"use_bias": bias is not None, **parameters}
        for name, value in (("filters", filters), ("kernel_size", kernel_size)):
            if value is None:
                expected = f"{name}, or a kernel of shape kernel_size + (input channels / groups, filters)"
                received = "neither" if kernel is None else f"a kernel of shape {shape}"
                raise InvalidConfigurationError.for_field(name, expected, received)
        config = Conv2D(filters, kernel_size, **parameters)  # type: ignore[arg-type]
        return cls(config if seed is None else config.with_seed(seed), kernel, bias)

    def to_keras(self) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights; see `keras_layers.to_keras`."""
        return to_keras(self.config, self.kernel, self.bias, self.input_channels)

    def to_message(self) -> layer_pb2.InlineLayer:
        """Returns the message of a layer that travels with a call."""
        message = layer_pb2.InlineLayer(conv2d=messages.to_message(self.config))
        for name, array in self.arrays.items():
            getattr(message.weights, name).CopyFrom(encode(array))
        return message

    def to_reference(self) -> layer_pb2.LayerReference:
        """Returns the message that a call names its layer with."""
        return layer_pb2.LayerReference(inline=self.to_message())

    @classmethod
    def from_message(cls, message: layer_pb2.InlineLayer) -> Layer:
        """Returns the layer that a message means.

        Raises as `messages.from_message`, and InvalidWeightsError if weights contradict themselves, are missing, or
        don't fit.
        """
        config = messages.from_message(message.conv2d)
        if not message.HasField("weights"):
            return cls(config)
        with _as_weights_error():
            weights = {
                tensor.name: decode(value, tensor.name, FLOAT_DTYPES) for tensor, value in message.weights.ListFields()
            }
        if "kernel" not in weights:
            raise InvalidWeightsError.for_field("kernel", "a kernel where weights are given", "none")
        return cls(config, **weights)


def _classic(config: Conv2D, name: str) -> Array:
    """Returns a classic kernel for a configuration that filters each channel by itself."""
    kernel = classic_kernel(name, config.groups)
    if (config.kernel_size, config.filters) != (kernel.shape[:2], config.groups):
        expected = f"filters and groups both the input's channels, and kernel_size={kernel.shape[:2]}, for {name!r}"
        received = f"filters={config.filters}, groups={config.groups} and kernel_size={config.kernel_size}"
        raise InvalidWeightsError.for_field("kernel", expected, received)
    return kernel


def _channels(name: str, x: Any, parameters: Mapping[str, Any]) -> int:
    """Returns how many channels a classic kernel is to filter."""
    shape = standard_input_shape(parameters.get("input_shape"))
    if x is not None:
        with suppress(ValueError):  # of a ragged list
            shape = np.shape(x)[1:]
        if len(shape or ()) != 3:
            return 1  # which no call takes, and says so
    axis = 0 if standard_data_format(parameters.get("data_format")) == "channels_first" else 2
    channels = shape[axis] if shape else None
    if channels is None:
        expected = "an array, or the name of a classic kernel and an input_shape with the channels"
        raise InvalidConfigurationError.for_field("kernel", expected, f"{short_repr(name)} alone")
    return channels


@contextmanager
def _as_weights_error() -> Iterator[None]:
    """Turns what is wrong with a tensor into an error about weights."""
    try:
        yield
    except InvalidTensorError as error:
        raise InvalidWeightsError(*error.violations) from None


class Planned(Protocol):
    """What a plan needs of a layer: an inline one or a stored one, which has weights."""

    @property
    def config(self) -> Conv2D: ...  # noqa: D102

    @property
    def kernel_shape(self) -> Shape | None: ...  # noqa: D102


def planned(
    layers: Sequence[Planned],
    input_shape: Sequence[int] | None,
    input_dtype: Any,
    output_dtype: Any,
    given: Collection[int] = (),
) -> Plan:
    """Returns the plan of a call, having checked all that can be checked without computing.

    Client and server both call it, so both refuse in the same words, with fields that begin with "layers[i].". `given`
    are the numbers of layers whose weights are not known here, and need not be drawn.
    """
    return _planned(_chain(layers), input_shape, input_dtype, output_dtype, given)


def planned_call(layers: Sequence[Planned], shape: Shape, input_dtype: str, output_dtype: str | None) -> Plan:
    """Returns what `planned` does, for an input that there is: worked out once for calls that come again."""
    return _planned_once(_chain(layers), shape, input_dtype, output_dtype)


_Chain = tuple[tuple[Conv2D, Shape | None], ...]
"""All that a plan depends on of a chain of layers."""


def _chain(layers: Sequence[Planned]) -> _Chain:
    return tuple((layer.config, layer.kernel_shape) for layer in layers)


def _planned(
    chain: _Chain, input_shape: Sequence[int] | None, input_dtype: Any, output_dtype: Any, given: Collection[int] = ()
) -> Plan:
    configs = [config for config, _ in chain]
    drawn = [shape is None and index not in given for index, (_, shape) in enumerate(chain)]
    channels = [None if shape is None else shape[2] * config.groups for config, shape in chain]
    whole = plan(
        configs, input_shape, input_dtype=input_dtype, output_dtype=output_dtype, drawn=drawn, channels=channels
    )
    for index, config in enumerate(configs):
        if drawn[index]:
            with naming_layer(index, len(chain)):
                config.check_initializers()
    return whole


_planned_once = lru_cache(maxsize=1000)(_planned)
