"""Keras models for tests: with weights of which none is trivial, what they hold, and how far outputs lie apart."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def with_random_statistics(model: Any, seed: int = 0) -> Any:
    """Returns the model, with normalizations and biases drawn, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for name, (low, high) in _STATISTICS.items():
                if (variable := getattr(layer, name)) is not None:
                    variable.assign(rng.uniform(low, high, variable.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.uniform(-0.2, 0.2, layer.bias.shape))
    return model


_STATISTICS = {"gamma": (0.6, 1.4), "beta": (-0.3, 0.3), "moving_mean": (-0.3, 0.3), "moving_variance": (0.5, 1.5)}


def apart(found: Any, expected: Any) -> float:
    """Returns the largest difference, relative to the largest number."""
    found, expected = np.asarray(found).astype(np.float64), np.asarray(expected).astype(np.float64)
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.01 * np.abs(expected).max(), "numbers that are all the same show nothing"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def kinds(model: Any) -> list[str]:
    """Returns the names of a model's layers' classes, nested ones after their model."""
    found = []
    for layer in model.layers:
        found += [type(layer).__name__, *(kinds(layer) if hasattr(layer, "layers") else [])]
    return found


def same_weights(one: Any, other: Any) -> bool:
    """Returns whether two models have the same weights in the same order."""
    return len(one.weights) == len(other.weights) and all(map(np.array_equal, one.get_weights(), other.get_weights()))


class CountedCalls:
    """Counts what remote layers send and receive, from when it is made to the end of a test."""

    def __init__(self, monkeypatch: Any) -> None:
        from convserve.keras.layers.remote_calls import Remote

        self.calls = self.input_bytes = self.output_bytes = 0
        convolve = Remote.convolve

        def counted(remote: Any, layer: str, steps: Any, x: np.ndarray, *weights: np.ndarray) -> np.ndarray:
            output = convolve(remote, layer, steps, x, *weights)
            self.calls += 1
            self.input_bytes += x.nbytes
            self.output_bytes += output.nbytes
            return output

        monkeypatch.setattr(Remote, "convolve", counted)
