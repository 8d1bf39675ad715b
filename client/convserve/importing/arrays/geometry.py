"""What a file of arrays does not say of its layers, in the caller's words: Keras' or PyTorch's."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.importing.arrays.named_array import listing
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array, Shape

_FROM_WEIGHTS = ("filters", "kernel_size", "use_bias")
_PARAMETERS = (
    *(name for name in inspect.signature(Conv2D).parameters if name not in _FROM_WEIGHTS),
    *("stride", "dilation", "padding_mode", "batch_norm", "epsilon", "eps"),
)
_KERAS_NAMES = {"stride": "strides", "dilation": "dilation_rate", "eps": "epsilon"}
_SAYING = ("strides", "padding", "dilation_rate")  # of which one shows that the caller thought of them
_HOW = (
    "Give them by layer in config (--config), for all as strides= and padding= (--strides, --padding), or take "
    "Conv2D's defaults with assume_defaults=True (--assume-defaults)."
)


@dataclass(frozen=True)
class Given:
    """What the caller says of a layer."""

    parameters: dict[str, Any]  # Conv2D's, but for those that the weights say
    batch_norm: str | None  # the name of the BatchNorm behind it, in the file or beside it
    epsilon: float | None  # the BatchNorm's; None for its framework's default
    is_said: bool  # whether strides or padding are among it, or that they are the defaults

    def layer(self, name: str, kernel: Array, bias: Array | None) -> Layer:
        """Returns the layer with these weights, the kernel in Keras' order of axes.

        Raises InvalidConfigurationError for what the caller says, and InvalidWeightsError, as Conv2D and Layer do; the
        field begins with the layer's name.
        """
        given = {"padding": 0, **self.parameters}
        try:
            config = Conv2D(int(kernel.shape[3]), kernel.shape[:2], use_bias=bias is not None, **given)
            # Keras' word where it has one: the same layer from another file has it too, and so the same digest.
            if config.padding == ((0, 0), (0, 0)) and not config.strides_and_dilates:
                config = config.replace(padding="valid")
            return Layer(config, kernel, bias)
        except InvalidArgumentError as error:
            raise error.under(f"{name}.") from None

    def assumed(self) -> str:
        """Returns what is assumed of the layer, as the caller did not say it; nothing if that is nothing."""
        if self.is_said:
            return ""
        return "strides 1, padding 'valid', dilation 1" + ("" if "groups" in self.parameters else ", groups 1")


@dataclass(frozen=True)
class Geometry:
    """What a file of arrays does not say of its layers: parameters of Conv2D, or of torch.nn.Conv2d in its wording."""

    parameters: Mapping[str, Any]  # for every layer
    by_layer: Mapping[str, Mapping[str, Any] | None]  # by pattern of names, a later one wins; None leaves a layer out
    assume_defaults: bool = False  # whether layers have Conv2D's where nothing says their strides and padding

    def check_none(self) -> None:
        """Raises InvalidRequestError if there is anything, for a file that has its layers' configurations."""
        if self.parameters or self.by_layer:
            given = ", ".join((*self.parameters, *self.by_layer))
            expected = "no parameters, as the file has the configuration of its layers"
            raise InvalidRequestError.for_field("config", expected, f"{given:.200}")

    def of(self, name: str) -> Given | None:
        """Returns what is said of a layer, or None if it is left out."""
        parameters: dict[str, Any] | None = _conv2d_parameters(self.parameters, "")
        is_default = False
        for pattern, given in self.by_layer.items():
            if fnmatch.fnmatchcase(name, pattern):
                changed = None if given is None else _conv2d_parameters(given, f"{pattern}.")
                parameters = None if changed is None else (parameters or {}) | changed
                is_default = is_default or changed == {}
        if parameters is None:
            return None
        batch_norm, epsilon = (parameters.pop(each, None) for each in ("batch_norm", "epsilon"))
        if epsilon is not None and batch_norm is None and not self._names_batch_norms:
            expected = "batch_norm beside it, the name of the BatchNorm that it is of"
            received = f"epsilon={short_repr(epsilon)} alone"
            raise InvalidConfigurationError.for_field(f"{name}.epsilon", expected, received)
        return Given(parameters, batch_norm, epsilon, is_default or any(each in parameters for each in _SAYING))

    @property
    def _names_batch_norms(self) -> bool:
        """Whether a BatchNorm is named for some layer, so that an epsilon for all is not without any."""
        of_all = any(name in self.parameters for name in ("epsilon", "eps"))
        return of_all and any(given and given.get("batch_norm") for given in self.by_layer.values())

    def unsaid(self, name: str, given: Given, kernel_shape: Shape) -> InvalidConfigurationError | None:
        """Returns the error of a layer whose strides and padding nobody says, and that are not to be assumed.

        With a kernel of 1x1 there is no padding, and almost always no stride.
        """
        if given.is_said or self.assume_defaults or kernel_shape[:2] == (1, 1):
            return None
        expected = "strides and padding, which the file does not say"
        received = f"none for a kernel of {kernel_shape[0]}x{kernel_shape[1]}"
        return InvalidConfigurationError.for_field(f"{name}.strides", expected, received, _HOW)

    def check_all_used(self, names: Sequence[str]) -> None:
        """Raises InvalidConfigurationError if a pattern matches no name, as one with a typing error does."""
        for pattern in self.by_layer:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                expected = f"the name of a layer, or a pattern, out of {listing(names)}"
                raise InvalidConfigurationError.for_field("config", expected, short_repr(pattern))


def all_unsaid(names: Sequence[str]) -> InvalidConfigurationError:
    """Returns the error of a file of which no layer is left, as nobody says the strides and padding of these."""
    listed = ", ".join(map(short_repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    expected = "strides and padding of each layer, which the file does not say"
    return InvalidConfigurationError.for_field("config", expected, f"none for {listed}", _HOW)


def _conv2d_parameters(given: Any, where: str) -> dict[str, Any]:
    """Returns torch.nn.Conv2d's parameters as Conv2D's, and those of Conv2D as they are.

    Raises InvalidConfigurationError, for `where` and the name, for one that is unknown, is given in both wordings, or
    pads with something else than zeros.
    """
    if not isinstance(given, Mapping):
        field = where.rstrip(".") or "config"
        raise InvalidConfigurationError.for_field(field, "parameters by name, or null", short_repr(given))
    parameters: dict[str, Any] = {}
    for name, value in given.items():
        keras_name, field = _KERAS_NAMES.get(str(name), str(name)), f"{where}{name}"
        if name not in _PARAMETERS:
            expected = f"one of {', '.join(_PARAMETERS)}"
            raise InvalidConfigurationError.for_field(field, expected, short_repr(name))
        if keras_name in parameters:
            received = "it in PyTorch's wording too"
            raise InvalidConfigurationError.for_field(f"{where}{keras_name}", f"{keras_name} once", received)
        if name == "padding_mode":
            if value != "zeros":
                expected, received = "'zeros', which is what a Conv2D pads with", f"padding_mode={short_repr(value)}"
                raise InvalidConfigurationError.for_field(field, expected, received)
            continue
        if name == "batch_norm" and not (value is None or (isinstance(value, str) and value)):
            expected = "the name of a BatchNorm in the file, or of one beside the layer"
            raise InvalidConfigurationError.for_field(field, expected, short_repr(value))
        if keras_name == "epsilon" and not _is_epsilon(value):
            raise InvalidConfigurationError.for_field(field, "a finite number of at least 0", short_repr(value))
        parameters[keras_name] = value
    return parameters


def _is_epsilon(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes | bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError, OverflowError):
        return False
