"""An engine around another that has no memory for inputs and outputs of more than some bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convserve import Layer, OutOfMemoryError
from convserve.layers.plan import plan
from convserve_server.engine_api import Computed, Engine


@dataclass(frozen=True)
class Attempt:
    """A computation that was asked for.

    Attributes:
        layers: The layers that were applied.
        shape: The input's, of all samples.
        size: Bytes of input and output.
        fitted: Whether it was computed.
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    size: int
    fitted: bool


class LimitedEngine:
    """Fails on cue and keeps every attempt."""

    def __init__(self, engine: Engine, max_bytes: int, error: type[Exception] = OutOfMemoryError) -> None:
        self._engine, self.max_bytes, self._error = engine, max_bytes, error
        self.attempts: list[Attempt] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def convolve(
        self, layers: Sequence[Layer], inputs: Sequence[Any], output_dtype: str, device: int, *_: Any
    ) -> Computed:
        shape = (sum(map(len, inputs)), *inputs[0].shape[1:])
        planned = plan([layer.config for layer in layers], shape, output_dtype=output_dtype)
        size = sum(x.nbytes for x in inputs) + planned.output_bytes
        self.attempts.append(Attempt(tuple(layers), shape, size, size <= self.max_bytes))
        if size > self.max_bytes:
            raise self._error("no memory, on cue")
        return self._engine.convolve(layers, inputs, output_dtype, device)
