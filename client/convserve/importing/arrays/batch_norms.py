"""BatchNorms among arrays by name: which arrays make one, and a layer that one is folded into.

PyTorch's (and MLX') arrays are `NAME.weight`, `NAME.bias`, `NAME.running_mean` and `NAME.running_var`; Flax' are
`scale`, `bias`, `mean` and `var`, the last two below `batch_stats` instead of `params`; Keras' and TensorFlow's
`gamma`, `beta`, `moving_mean` and `moving_variance`. Without the first two there is no scaling or shift.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from convserve.errors import InvalidConfigurationError, short_repr
from convserve.importing.arrays.named_array import NamedArray, beside, listing, split
from convserve.importing.imported import NOT_NAMED, Skipped
from convserve.layers.layer import Layer
from convserve.models.folding import Node, folded
from convserve.models.operations import BatchNormalization
from convserve.tensors.codec import FLOAT_DTYPES

_PARTS = {
    "weight": "gamma", "scale": "gamma", "gamma": "gamma", "bias": "beta", "beta": "beta", "running_mean": "mean",
    "moving_mean": "mean", "mean": "mean", "running_var": "variance", "moving_variance": "variance", "var": "variance",
    "num_batches_tracked": "count",
}  # fmt: skip
"""What an array is of a BatchNorm, by the last part of its name."""
_COLLECTIONS = ("params", "batch_stats")  # of Flax, as the first part of a name
_KERAS_EPSILON, _EPSILON = 1e-3, 1e-5


Parts = dict[str, NamedArray]
"""The arrays of a BatchNorm, by "gamma", "beta", "mean", "variance" and "count"."""


@dataclass
class BatchNorms:
    """The BatchNorms of a file, and which of them were folded."""

    by_name: dict[str, Parts]
    _folded_into: dict[str, str] = field(default_factory=dict)  # by BatchNorm, the layer

    @classmethod
    def among(cls, arrays: Iterable[NamedArray]) -> BatchNorms:
        """Returns those that a file's arrays make."""
        groups: dict[str, Parts | None] = {}
        for array in arrays:
            name, kind = split(array.name)
            if part := _PARTS.get(kind):
                parts = groups.setdefault(_without_collection(name), {})
                if parts is not None and parts.setdefault(part, array) is not array:  # such as a weight and a scale
                    groups[_without_collection(name)] = None
        return cls({_name(parts): parts for parts in groups.values() if parts and _is_batch_norm(parts)})

    @property
    def array_names(self) -> set[str]:
        """The names of all their arrays."""
        return {array.name for parts in self.by_name.values() for array in parts.values()}

    def fold(self, layer: Layer, name: str, batch_norm: str, epsilon: float | None) -> Layer:
        """Returns a layer of this name in the file with a BatchNorm between its bias and its activation.

        `batch_norm` names one beside the layer, or any in the file; no `epsilon` stands for its framework's. Raises
        InvalidConfigurationError if there is no such BatchNorm, another layer has it, or it does not fit.
        """
        known, where = self.by_name, f"{name}.batch_norm"
        found = next((each for each in (beside(name, batch_norm), batch_norm) if each in known), None)
        if found is None:
            near = difflib.get_close_matches(batch_norm, known, n=1)
            expected = f"the name of a BatchNorm beside the layer or in the file ({listing(list(known))})"
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise InvalidConfigurationError.for_field(where, expected, short_repr(batch_norm), hint)
        if self._folded_into.setdefault(found, name) != name:
            received = f"{short_repr(found)}, which follows {short_repr(self._folded_into[found])}"
            raise InvalidConfigurationError.for_field(where, "a BatchNorm of this layer alone", received)
        activation = layer.config.activation
        nodes = [
            Node("conv2d", (), (Layer(layer.config.replace(activation=None), *layer.arrays.values()),), "Conv2D"),
            Node("batch_norm", ("conv2d",), _operation(known[found], epsilon), "BatchNorm"),
            Node("activation", ("batch_norm",), activation, "Activation"),
        ]
        (run,), left = folded(nodes, {"activation"})
        if left:
            received = f"{short_repr(found)}: {left[0].reason}"
            raise InvalidConfigurationError.for_field(where, "a BatchNorm that can be folded into it", received)
        return run.layers[0]

    def skipped(self) -> list[Skipped]:
        """Returns those that were not folded."""
        return [Skipped(name, "BatchNorm", NOT_NAMED) for name in self.by_name if name not in self._folded_into]


def _operation(parts: Parts, epsilon: float | None) -> BatchNormalization:
    read = {part: array.read() for part, array in parts.items() if part != "count"}
    if epsilon is None:  # that of the framework that names arrays like this
        epsilon = _KERAS_EPSILON if split(parts["mean"].name)[1] == "moving_mean" else _EPSILON
    return BatchNormalization(read.get("gamma"), read.get("beta"), read["mean"], read["variance"], float(epsilon))


def _is_batch_norm(parts: Parts) -> bool:
    if not {"mean", "variance"} <= parts.keys():  # such as a LayerNorm
        return False
    arrays = [array for part, array in parts.items() if part != "count"]
    return {array.shape for array in arrays} == {parts["mean"].shape} and all(
        len(array.shape) == 1 and array.shape[0] > 0 and array.dtype in FLOAT_DTYPES for array in arrays
    )


def _name(parts: Parts) -> str:
    """Returns the name of its parameters; without any, that of its statistics."""
    array = next(parts[part] for part in ("gamma", "beta", "mean") if part in parts)
    return split(array.name)[0]


def _without_collection(name: str) -> str:
    for separator in "./":
        first, _, rest = name.partition(separator)
        if first in _COLLECTIONS:
            return rest
    return name
