"""Losses of a call whose parts were computed one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convserve.layers.conv2d import Conv2D
from convserve.protocol.results import Losses
from convserve.tensors.codec import numpy_dtype


class LossSums:
    """Adds up the losses of a call's parts: those of weights are the same in each, those of activities are shares."""

    def __init__(self, configs: Sequence[Conv2D]) -> None:
        """Starts with nothing, for a chain of layers."""
        self._configs = configs
        self._found = [Losses()] * len(configs)
        self._activity = [0.0] * len(configs)

    def add(self, first: int, losses: Sequence[Losses], samples: int) -> None:
        """Takes the losses of a part.

        Args:
            first: The index of the first layer that the losses are of.
            losses: One per layer.
            samples: How many samples the part has, by which its activities' losses have been divided.
        """
        for index, each in enumerate(losses, start=first):
            self._found[index] = each
            if each.activity is not None:
                self._activity[index] += each.activity * samples

    def of(self, samples: int) -> tuple[Losses, ...]:
        """Returns the losses of a call of so many samples, one per layer."""
        return tuple(
            Losses(
                kernel=found.kernel,
                bias=found.bias,
                activity=None if found.activity is None else _divided(total, samples, config.compute_dtype),
            )
            for config, found, total in zip(self._configs, self._found, self._activity, strict=True)
        )


def _divided(total: float, samples: int, dtype: str) -> float:
    """Returns a loss as the whole call would have it, whose sum is one of the compute dtype and may be too large."""
    kind = numpy_dtype(dtype).type
    with np.errstate(over="ignore"):
        return float(kind(total) / kind(samples))
