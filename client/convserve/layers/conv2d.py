"""Conv2D: the configuration of a layer, validated and immutable. It takes what `keras.layers.Conv2D` takes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from convserve.constraints import Constraint
from convserve.display import html_tables
from convserve.errors import InvalidConfigurationError, short_repr
from convserve.initializers import Initializer, Orthogonal
from convserve.layers.arguments import FAMILIES, STANDARD, Arguments
from convserve.layers.plan import Geometry
from convserve.regularizers import Regularizer

BESIDE_OUTPUTS = tuple(FAMILIES)[1:]
# What Keras' configuration may say besides: LoRA is part of the effective kernel, and autocast is always on here.
_IGNORED = {"lora_rank", "lora_alpha", "autocast", "batch_input_shape", "batch_shape"}
_BOTH = {
    "valid": "With explicit padding both may be above 1, as in PyTorch and ONNX: padding=0 (--padding 0) is 'valid'.",
    "same": "With explicit padding, ((top, bottom), (left, right)), both may be above 1, as in PyTorch and ONNX.",
}


@dataclasses.dataclass(frozen=True, init=False)
class Conv2D(Geometry):
    """The configuration of a 2-D convolution layer: `keras.layers.Conv2D`'s parameters, order, defaults and refusals.

    Input shape:
        (batch, height, width, channels) with `data_format="channels_last"`, (batch, channels, height, width) with
        "channels_first".

    Output shape:
        (batch, new_height, new_width, filters), or (batch, filters, new_height, new_width).

    Examples:
        >>> Conv2D(filters=64, kernel_size=3, strides=2, padding="same").output_shape((4, 600, 600, 3))
        (4, 300, 300, 64)

    Attributes are the constructor's parameters, each in one form: sizes as (height, width), `padding` as "valid",
    "same" or ((top, bottom), (left, right)), `activation` and initializers as objects, regularizers and constraints as
    objects or None, and `dtype` as the policy's name.
    """

    kernel_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Regularizer | None
    bias_regularizer: Regularizer | None
    activity_regularizer: Regularizer | None
    kernel_constraint: Constraint | None
    bias_constraint: Constraint | None
    name: str | None
    trainable: bool

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str | int | Sequence[int] | Sequence[Sequence[int]] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        input_shape: Sequence[int | None] | None = None,
    ) -> None:
        """Validates Keras' arguments and brings them to one form.

        Args:
            filters: Integer greater than 0, divisible by `groups`.
            kernel_size: Integer greater than 0, or two of them (height, width).
            strides: Likewise. Together with a `dilation_rate` above 1 only with explicit padding, as Keras has none.
            padding: "valid", "same" (any case), or ((top, bottom), (left, right)) rows and columns of zeros; also as in
                PyTorch an integer or two (height, width), which is as many at both ends.
            data_format: "channels_last", "channels_first", or None for `image_data_format` of the caller's keras.json.
            dilation_rate: Integer greater than 0, or two of them.
            groups: Integer greater than 0 that divides `filters` and the input's channels.
            activation: None, a Keras name, one of `convserve.activations`, or a function of `keras.activations`.
            use_bias: Whether a bias is added.
            kernel_initializer: A Keras name, one of `convserve.initializers`, Keras' own object, or a dictionary
                with `class_name` and `config`. None is "glorot_uniform", as in Keras.
            bias_initializer: Likewise; None is "glorot_uniform" too, as in Keras.
            kernel_regularizer: None, or likewise of `convserve.regularizers`.
            bias_regularizer: Likewise.
            activity_regularizer: Likewise.
            kernel_constraint: None, or likewise of `convserve.constraints`; applied when weights are updated.
            bias_constraint: Likewise.
            name: A label without "/".
            dtype: A dtype policy: "float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"; or
                None for `floatx` of the caller's keras.json.
            trainable: A layer that is not trainable has no kernel or bias loss; nothing else changes.
            input_shape: The expected input without its batch axis, or None. Only `plan` reads it.

        Raises:
            InvalidConfigurationError: Names every parameter that is wrong, not only the first.
        """
        parameters = {name: value for name, value in locals().items() if name != "self"}
        arguments = Arguments()
        for field, value in parameters.items():
            object.__setattr__(self, field, arguments.take(STANDARD[field], value, field))
        wrong = {violation.field.partition(".")[0] for violation in arguments.violations}
        if not wrong & {"filters", "groups"} and self.filters % self.groups:
            arguments.refuse("filters", f"a number divisible by groups={self.groups}", f"filters={self.filters}")
        known = not wrong & {"strides", "dilation_rate", "padding"}
        if known and self.strides_and_dilates and isinstance(self.padding, str):
            expected = f"strides of 1 together with dilation_rate > 1 and padding={self.padding!r}, as in Keras"
            received = f"strides={self.strides} and dilation_rate={self.dilation_rate}"
            arguments.refuse("strides", expected, received, _BOTH[self.padding])
        arguments.finish()

    @classmethod
    def from_keras(cls, layer: Any, *, optional: Collection[str] = ()) -> Conv2D:
        """Returns the configuration of a `keras.layers.Conv2D`, or of the dictionary that its `get_config` gives.

        Keras is not imported for it. Weights are not part of a configuration: see `Layer.from_keras`.

        Outputs of a layer that is built depend on its weights, not on what drew, penalizes or constrains them. Such
        objects of the user's own are left out with a warning.

        Args:
            layer: The layer, of that class itself or `convserve.keras.RemoteConv2D`, or the dictionary.
            optional: Parameters that are left at their defaults, without a warning, where they have no counterpart.

        Raises:
            InvalidConfigurationError: If the layer is of a subclass, which may compute something else, or has something
                that has no counterpart, such as a function of the user's own as activation.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if isinstance(layer, dict):
            check_keras_config(layer, known, "Conv2D")
            return cls.from_parameters({key: layer[key] for key in layer if key in known}, optional=optional)
        check_keras_class(layer, ("Conv2D",))
        given = keras_attributes(layer, known - {"dtype", "input_shape"})
        beside_outputs = BESIDE_OUTPUTS if getattr(layer, "built", False) else ()
        return cls.from_parameters(given, optional=optional, dispensable=beside_outputs)

    @classmethod
    def from_parameters(
        cls, given: Mapping[str, Any], *, optional: Collection[str] = (), dispensable: Collection[str] = ()
    ) -> Conv2D:
        """Returns the configuration with these parameters, without those that have no counterpart and may be left out.

        Args:
            given: Parameters by name.
            optional: Those that are left at their defaults where they have no counterpart.
            dispensable: Likewise, with a warning.

        Raises:
            InvalidConfigurationError: If others are wrong.
        """
        try:
            return cls(**given)
        except InvalidConfigurationError as error:
            wrong = {violation.field.partition(".")[0] for violation in error.violations}
            if not wrong <= {*optional, *dispensable}:
                raise
        left_out = [name for name in BESIDE_OUTPUTS if name in wrong and name not in optional]
        if left_out:
            text = "left out, being none of Keras'. With the layer's own weights outputs are the same."
            warnings.warn(f"{', '.join(left_out)}: {text}", stacklevel=3)
        return cls(**{name: value for name, value in given.items() if name not in wrong})

    def to_keras_config(self) -> dict[str, Any]:
        """Returns what `keras.layers.Conv2D.from_config` takes.

        Raises InvalidConfigurationError for explicit padding or an activation that Keras has no serializable form of.
        """
        if not isinstance(self.padding, str):
            expected = "'valid' or 'same', which is all that Keras has"
            raise InvalidConfigurationError.for_field("padding", expected, f"padding={self.padding}")
        return {
            field: value.to_keras_config() if hasattr(value, "to_keras_config") else value
            for field, value in vars(self).items()
            if value is not None or field not in ("name", "input_shape")
        }

    def weight_penalty(self, weight: str) -> Regularizer | None:
        """Returns the regularizer that a loss of the kernel or the bias is computed with.

        As in Keras there is none for what is not trainable. Of an orthogonal one Keras raises when losses are read, and
        computes outputs all the same; here it has no loss.
        """
        regularizer: Regularizer | None = getattr(self, f"{weight}_regularizer")
        return regularizer if regularizer is not None and self.trainable and not regularizer.refusal else None

    def with_seed(self, seed: int) -> Conv2D:
        """Returns the same configuration with this seed in every random initializer that has none of its own."""
        return self.replace(
            kernel_initializer=self.kernel_initializer.with_seed(seed),
            bias_initializer=self.bias_initializer.with_seed(seed),
        )

    def replace(self, **changes: Any) -> Conv2D:
        """Returns the same configuration with some parameters changed, validated again."""
        return Conv2D(**vars(self) | changes)

    def check_initializers(self) -> None:
        """Raises InvalidConfigurationError for an initializer that cannot make its weight, as Keras does in `build`."""
        arguments = Arguments()
        weights = [("kernel", 4, self.kernel_initializer), ("bias", 1, self.bias_initializer)]
        for weight, rank, initializer in weights if self.use_bias else weights[:1]:
            refusal = initializer.refusal
            if isinstance(initializer, Orthogonal) and weight == "bias":
                refusal = "orthogonal makes matrices; a bias has rank 1"
            elif isinstance(initializer, Orthogonal) and self.variable_dtype == "bfloat16":
                refusal = "orthogonal has no bfloat16"
            field = f"{weight}_initializer"
            if refusal:
                arguments.refuse(field, f"one that suits a {weight}", f"{short_repr(initializer)}: {refusal}")
            lists = [(name, initializer.parameters.get(name)) for name in ("input_axes", "output_axes")]
            for name, axes in lists:
                # As in Keras, both lists are read or none.
                if axes and all(given for _, given in lists) and any(not -rank <= axis < rank for axis in axes):
                    arguments.refuse(f"{field}.{name}", f"axes of a weight of rank {rank}", f"{name}={axes}")
        arguments.finish()

    def given(self) -> dict[str, Any]:
        """Returns `filters`, `kernel_size`, and the parameters that are not the defaults."""
        defaults = vars(Conv2D(1, 1, data_format="channels_last", dtype="float32"))
        always = ("filters", "kernel_size")
        return {field: value for field, value in vars(self).items() if field in always or value != defaults[field]}

    def __repr__(self) -> str:
        """Returns the call that makes this configuration, without the defaults."""
        return f"Conv2D({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    def _repr_html_(self) -> str:
        """Returns a table for notebooks: the parameters, without the defaults."""
        return html_tables.table("Conv2D", self.given().items())


def check_keras_class(layer: object, kinds: Sequence[str], hint: str = "") -> str:
    """Returns which of some classes of `keras.layers` a layer is, or computes remotely what that computes.

    Raises InvalidConfigurationError if it may compute something else.
    """
    kind = type(layer)
    package = (kind.__module__ or "").partition(".")[0]
    is_remote = kind.__module__ == "convserve.keras" and kind.__name__.startswith("Remote")
    name = kind.__name__.removeprefix("Remote") if is_remote else kind.__name__
    is_own = name in kinds and (is_remote or package in ("keras", "tf_keras", "tensorflow"))
    if not is_own or vars(layer).keys() & {"call", "convolution_op"}:
        own = "One that computes nothing else goes by its configuration: Conv2D(**parameters) and its weights."
        received = f"{kind.__module__}.{kind.__qualname__}, which may compute something else"
        expected = f"a keras.layers.{', '.join(kinds)} itself"
        raise InvalidConfigurationError.for_field("layer", expected, received, hint or own)
    return name


def check_keras_config(config: Mapping[str, Any], known: Collection[str], kind: str) -> None:
    """Raises InvalidConfigurationError for what a configuration has that is no parameter of a class, or lacks."""
    strange = set(config) - {*known} - _IGNORED
    if strange:
        received = f"{', '.join(sorted(map(str, strange)))} too"
        raise InvalidConfigurationError.for_field("config", f"the configuration of a keras.layers.{kind}", received)
    for name in ("filters", "kernel_size"):
        if name in known and name not in config:
            raise InvalidConfigurationError.for_field(name, name, "a layer without it")


def keras_attributes(layer: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns parameters of a layer of Keras' and its dtype policy.

    They are attributes rather than what `get_config` returns, which objects of the user's own need not have.
    """
    given = {name: getattr(layer, name, None) for name in names}
    return {**given, "dtype": getattr(layer, "dtype_policy", None) or layer.get_config()["dtype"]}
