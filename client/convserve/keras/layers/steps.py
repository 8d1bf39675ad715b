"""What Keras' layers compute, apart from their weights: a step for each layer, and the chain that a server computes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from convserve.activations import Activation
from convserve.errors import InvalidWeightsError
from convserve.layers.keras_layers import CONVOLUTIONS, convolutions, parameters
from convserve.layers.layer import Layer
from convserve.models.folding import Node, Operation, folded, joined
from convserve.models.operations import BatchNormalization, activation_of, weight_names, zero_padding_of
from convserve.tensors.codec import Array, Shape

_COMPUTED_WITH = {
    "filters", "groups", "depth_multiplier", "kernel_size", "strides", "padding", "data_format", "dilation_rate",
    "use_bias",
}  # fmt: skip
"""A convolution's parameters, but for its activation and those that are about its weights."""
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **{kind: tuple(name for name in parameters(kind) if name in _COMPUTED_WITH) for kind in CONVOLUTIONS},
    "BatchNormalization": ("axis", "epsilon", "center", "scale"),
    "ZeroPadding1D": ("padding", "data_format"),
    "ZeroPadding2D": ("padding", "data_format"),
    "Activation": ("activation",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "Identity": (),
}
KINDS: dict[Any, str] = {getattr(keras.layers, kind): kind for kind in _ATTRIBUTES}
"""Of each class of `keras.layers` that can be a step: its name."""

_MIXED = {("float16", "float32"): "mixed_float16", ("bfloat16", "float32"): "mixed_bfloat16"}
# These two leave their input on their output, where Keras' losses look for it.
_WITH_LOGITS = {"sigmoid", "softmax"}


@dataclass(frozen=True)
class Step:
    """What one layer computes."""

    kind: str  # the class of `keras.layers`
    attributes: tuple[tuple[str, Any], ...]  # what it computes with, by Keras' names
    policy: str  # the name of the dtype policy
    compute_dtype: str
    weights: tuple[str, ...]  # the attributes that are its weights, in the order of `get_weights`

    @property
    def given(self) -> dict[str, Any]:
        """What it computes with, by name."""
        return dict(self.attributes)

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution."""
        return self.kind in CONVOLUTIONS

    def operation(self, weights: Sequence[Array]) -> Operation:
        """Returns what is folded, with the weights in the order of `weights_of`.

        Raises InvalidArgumentError for what a server does not compute.
        """
        given = self.given
        if self.convolves:
            return tuple(Layer(*each) for each in convolutions(self.kind, given | {"dtype": self.policy}, weights))
        if self.kind == "BatchNormalization":
            named = dict(zip(self.weights, weights, strict=True))
            parts = named.get("gamma"), named.get("beta"), named["moving_mean"], named["moving_variance"]
            return BatchNormalization(*parts, given["epsilon"], given["axis"])
        if self.kind.startswith("ZeroPadding"):
            padding = zero_padding_of(self.kind, given)
            assert padding is not None  # noqa: S101 (Keras has checked it)
            return padding
        return _activation(self.kind, self.attributes)

    def node(self, name: str, inputs: tuple[str, ...], weights: Sequence[Array]) -> Node:
        """Returns the step as a node of a graph; raises as `operation`."""
        return Node(name, inputs, self.operation(weights), self.kind, self.compute_dtype)


@functools.lru_cache(1000)
def _activation(kind: str, attributes: tuple[tuple[str, Any], ...]) -> Activation:
    found = activation_of(kind, dict(attributes))
    assert isinstance(found, Activation)  # noqa: S101 (`step_of` saw it)
    return found


Steps = tuple[Step, ...]


def convolution_kind(layer: Any) -> str:
    """Returns the name of Keras' convolution that a layer is, or is derived from, or nothing for any other layer."""
    names = (kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
    return next((name for name in names if "Conv" in name and not name.startswith("Base")), "")


def convolution_step(layer: Any, kind: str) -> Step:
    """Returns the step of a convolution of a class or derived from it, with the activation that a server applies."""
    return _step(layer, kind, (("activation", served(layer.activation)),))


def step_of(layer: Any) -> Step | None:
    """Returns the step of one of Keras' own layers, or None where a server computes nothing such.

    A convolution whose activation a server does not apply is one with none: it is to be the last.
    """
    kind = KINDS.get(type(layer))
    if kind is None or vars(layer).keys() & {"call", "convolution_op"} or _policy(layer) is None:
        return None
    if kind in CONVOLUTIONS:
        return convolution_step(layer, kind)
    step = _step(layer, kind)
    return step if layer.activity_regularizer is None and _is_served_beside(layer, step) else None


def _is_served_beside(layer: Any, step: Step) -> bool:
    """Returns whether a server computes what stands beside convolutions."""
    if step.kind == "BatchNormalization":
        return not getattr(layer, "renorm", False)
    if step.kind == "Activation":
        return served(layer.activation) is not None
    return step.kind.startswith("ZeroPadding") or activation_of(step.kind, step.given) is not None


def _step(layer: Any, kind: str, further: tuple[tuple[str, Any], ...] = ()) -> Step:
    attributes = tuple((name, getattr(layer, name)) for name in _ATTRIBUTES[kind]) + further
    policy = _policy(layer) or layer.compute_dtype  # which a server then refuses by its name
    is_weighted = kind in CONVOLUTIONS or kind == "BatchNormalization"
    weights = weight_names(kind, dict(attributes)) if is_weighted else ()
    return Step(kind, attributes, policy, layer.compute_dtype, weights)


def _policy(layer: Any) -> str | None:
    """Returns the name of a layer's dtype policy, or None for one that is more than two dtypes."""
    if type(layer.dtype_policy) is not keras.DTypePolicy:
        return None
    compute_dtype: str = layer.compute_dtype
    return _MIXED.get((compute_dtype, layer.variable_dtype), compute_dtype)


def served(activation: Any) -> str | None:
    """Returns the name of an activation if a server is to apply it, or None."""
    if activation is None:
        return "linear"
    name = getattr(activation, "__name__", "")
    if getattr(Activation.members.get(name), "changes_shape", True) or name in _WITH_LOGITS:
        return None  # of what changes the shape, TensorFlow infers the shape by itself
    # A function of the same name from elsewhere may have other defaults, as keras.ops.gelu has.
    return name if activation is keras.activations.get(name) else None


def weights_of(layer: Any, step: Step) -> list[Any]:
    """Returns a built layer's weights as Keras computes with them: with LoRA the kernel is a sum."""
    return [getattr(layer, name) for name in step.weights]


def by_step(steps: Steps, weights: Sequence[Any]) -> Iterator[tuple[Step, list[Any]]]:
    """Yields each step with its own weights."""
    left = iter(weights)
    for step in steps:
        yield step, list(itertools.islice(left, len(step.weights)))


def layers_of(steps: Steps, weights: Sequence[Array]) -> tuple[Layer, ...]:
    """Returns the chain that computes what steps compute one after the other, with these weights.

    Raises InvalidArgumentError for what a server does not compute, or where weights do not become one convolution's.
    """
    chain = _chain(steps, weights)
    if isinstance(chain, str):
        hint = "Make it remote without fuse=True."
        raise InvalidWeightsError.for_field("weights", "weights that convolutions can take over", chain, hint)
    return chain


def why_no_chain(steps: Sequence[Step]) -> str:
    """Returns why no weights whatever make steps one chain of convolutions, or nothing where some do.

    Raises InvalidArgumentError for what a server does not compute.
    """
    weights: list[Array] = []
    channels = 1
    for step in steps:
        given = step.given
        if step.convolves:
            size, depth = given["kernel_size"], given.get("depth_multiplier", 1)
            channels = given.get("filters", depth)
            kernels = [(*size, 1, depth), (*(1 for _ in size), depth, channels)]
            kernels = kernels if step.kind.startswith("Separable") else [(*size, 1, channels)]
            weights += [np.zeros(shape) for shape in (*kernels, (channels,))[: len(step.weights)]]
        else:
            weights += [np.ones(channels) for _ in step.weights]
    chain = _chain(tuple(steps), weights)
    return chain if isinstance(chain, str) else ""


def _chain(steps: Steps, weights: Sequence[Array]) -> tuple[Layer, ...] | str:
    """Returns the chain that steps become, or why they do not."""
    nodes: list[Node] = []
    for step, own in by_step(steps, weights):
        above = (nodes[-1].name,) if nodes else ()
        nodes.append(step.node(f"layers[{len(nodes)}]", above, own))
    last = (nodes[-1].name,)
    runs, left = folded(nodes, last)
    whole = joined(runs, nodes, last)
    if left or len(whole) != 1:
        return f"{left[0].name}, {left[0].kind}: {left[0].reason}" if left else "layers that do not follow each other"
    return whole[0].layers


def at_height(steps: Steps, shape: Sequence[int]) -> Shape:
    """Returns the shape of an input, or an output, as the chain's Conv2Ds have it: of rank 4."""
    axis = height_axis(steps)
    return tuple(shape) if axis is None else (*shape[:axis], 1, *shape[axis:])


def height_axis(steps: Steps) -> int | None:
    """Returns where inputs and outputs of rank 3 get their height of 1, or None for those of rank 4."""
    first = next(step for step in steps if step.convolves)
    if not first.kind.endswith("1D"):
        return None
    return 1 if first.given["data_format"] == "channels_last" else 2
