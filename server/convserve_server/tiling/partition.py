"""The parts of one call that a device has no memory for as a whole.

What does not fit is halved: all samples, some, one; all rows of its output, some, one. Only then it is refused.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from convserve.errors import DeadlineExceededError, OutOfMemoryError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import plan
from convserve.tensors.codec import Array, Shape, name_of, numpy_dtype
from convserve_server.engine_api import Computed, Engine
from convserve_server.memory.aligned import aligned_empty
from convserve_server.tiling.loss_sums import LossSums
from convserve_server.tiling.memory_bounds import MemoryBounds
from convserve_server.tiling.tiles import chunks, height_axis, tile, tiling_blocker


class Partition:
    """The parts of one call, and what became of them."""

    def __init__(
        self,
        engine: Engine,
        bounds: MemoryBounds,
        layers: Sequence[Layer],
        output_dtype: str,
        device: int,
        is_active: Callable[[], bool],
    ) -> None:
        """Prepares; nothing is computed.

        Args:
            engine: What computes.
            bounds: What did not fit before; it learns from this call.
            layers: The layers, with weights.
            output_dtype: The output's dtype's name.
            device: The device's index.
            is_active: Whether anybody still waits for the output.
        """
        self._engine, self._bounds = engine, bounds
        self._layers, self._output_dtype, self._device = layers, output_dtype, device
        self._is_waiting = is_active
        self._tried: list[str] = []  # what did not fit
        self._warm, self._batch_size = True, 0

    @cached_property
    def _chain(self) -> tuple[Conv2D, ...]:
        return tuple(each.config for each in self._layers)

    @cached_property
    def _losses(self) -> LossSums:
        return LossSums(self._chain)

    @property
    def _bound(self) -> int | None:
        """The bytes that a computation should not exceed; None if it may have any number."""
        return self._bounds.find((self._device, self._chain)) if self._bounds else None

    def untiled(self, inputs: Sequence[Array]) -> Computed | None:
        """Returns what all inputs together give; None if they do not fit, or are not likely to."""
        samples, size = sum(len(each) for each in inputs), self._size_of(inputs[0])
        bound = self._bound
        if bound is not None and size(samples) > bound:
            return None
        found = self._attempt(self._layers, inputs, self._output_dtype, _counted(samples, "sample"))
        if found is None:
            self._halve(samples, size)
        return found

    def tiled(self, x: Array) -> Computed:
        """Returns what parts of one input give.

        Raises:
            OutOfMemoryError: If a part that cannot be divided further did not fit.
            DeadlineExceededError: If nobody waited any more before the last part was computed.
        """
        self._plan = plan(self._chain, x.shape, input_dtype=name_of(x), output_dtype=self._output_dtype)
        try:
            output = aligned_empty(self._plan.output_shape, numpy_dtype(self._output_dtype))
            self._by_samples(x, output)
        except MemoryError as error:
            raise self._refusal("the machine has no memory to put its parts together") from error
        if not self._tried:
            self._bounds.widen((self._device, self._chain))
        device = self._engine.devices[self._device].name
        return Computed(output, self._losses.of(len(x)), device, self._warm, self._batch_size)

    def _by_samples(self, x: Array, output: Array) -> None:
        """Computes as many samples at a time as fit, and by tiles those that do not fit alone."""
        first, most, size = 0, len(x) // 2 if self._tried else len(x), self._size_of(x)
        while first < len(x):
            count = self._fitting(min(most, len(x) - first), size)
            if not count:
                break
            rows = slice(first, first + count)
            what = _counted(count, "sample")
            if self._part(self._layers, 0, x[rows], (...,), self._output_dtype, output[rows], what):
                first += count
            else:
                most = self._halve(count, size)
        for each in range(first, len(x)):
            self._by_chunks(x[each : each + 1], output[each : each + 1], tried=not most)

    def _by_chunks(self, x: Array, output: Array, tried: bool) -> None:
        """Computes one sample, one chunk of layers after the other, each by tiles."""
        for first, end in chunks(self._chain):
            chunk = self._layers[first:end]
            if end == len(self._layers):
                target, dtype = output, self._output_dtype
            else:
                dtype = chunk[-1].config.compute_dtype
                target = aligned_empty(plan(self._chain[first:end], x.shape).output_shape, numpy_dtype(dtype))
            self._by_tiles(first, chunk, x, target, dtype, tried and len(chunk) == len(self._layers))
            x = target

    def _by_tiles(
        self, index: int, chunk: Sequence[Layer], x: Array, output: Array, output_dtype: str, tried: bool
    ) -> None:
        """Computes one sample of a chunk of layers, of which the first has this index, by as many rows as fit.

        Args:
            index: The first layer's.
            chunk: The layers.
            x: One sample.
            output: What is to have the result.
            output_dtype: Its dtype's name.
            tried: Whether all rows together are known not to fit.
        """
        chain = [each.config for each in chunk]
        shapes = [x.shape, *(each.output_shape for each in plan(chain, x.shape).layers)]
        axis = height_axis(chain[0])
        height = output.shape[axis]
        why_whole = tiling_blocker(chain)
        least = height if why_whole else 1

        def size(rows: int) -> int:
            # Tiles at the edges are smaller, by their padding.
            found = tile(chain, shapes, ((height - rows) // 2, (height - rows) // 2 + rows))
            read = found.input_rows[1] - found.input_rows[0]
            shape = (*x.shape[:axis], read, *x.shape[axis + 1 :])
            return _bytes(found.chain, shape, name_of(x), output_dtype)

        def refusal() -> OutOfMemoryError:
            why = f"its smallest part, {_counted(least, 'row')} of a sample's output, takes about {size(least)} of them"
            if why_whole:
                why += f" ({why_whole} does not let it be divided)"
            return self._refusal(why)

        if tried and height == least:
            raise refusal()
        first, most = 0, height // 2 if tried else height
        layers = tuple(chunk)
        while first < height:
            count = least if why_whole else max(1, self._fitting(min(most, height - first), size))
            found = tile(chain, shapes, (first, first + count))
            layers = _with_configs(chunk, found.chain, layers)
            read, begin = x[_rows(axis, *found.input_rows)], first - found.output_rows[0]
            kept, target = _rows(axis, begin, begin + count), output[_rows(axis, first, first + count)]
            if self._part(layers, index, read, kept, output_dtype, target, _counted(count, "row")):
                first += count
            else:
                most = self._halve(count, size, least)
                if most < least:
                    raise refusal()

    def _part(
        self,
        layers: Sequence[Layer],
        index: int,
        x: Array,
        kept: tuple[Any, ...],
        output_dtype: str,
        output: Array,
        what: str,
    ) -> bool:
        """Computes a part into `output`, and returns whether there was memory for it. Nothing of it is held after.

        Args:
            layers: A chunk of layers.
            index: The first one's.
            x: Their input.
            kept: The slices of the result that are wanted.
            output_dtype: The result's dtype's name.
            output: What is to have it.
            what: The part, for people.
        """
        if not self._is_waiting():  # it may take minutes
            text = "Expected a caller to wait until all parts are computed. Received none: the others are not computed."
            raise DeadlineExceededError(text)
        found = self._attempt(layers, [x], output_dtype, what)
        if found is None:
            return False
        output[...] = found.output[kept]
        self._losses.add(index, found.losses, len(x))
        self._warm = self._warm and found.warm
        self._batch_size = max(self._batch_size, found.batch_size)
        return True

    def _attempt(
        self, layers: Sequence[Layer], inputs: Sequence[Array], output_dtype: str, what: str
    ) -> Computed | None:
        """Returns what the engine computes; None if it has no memory for it, which is noted."""
        try:
            contiguous = [np.ascontiguousarray(each) for each in inputs]
            return self._engine.convolve(layers, contiguous, output_dtype, self._device)
        except (OutOfMemoryError, MemoryError):
            pass  # and with the error goes all that its traceback holds
        self._tried.append(what)
        return None

    def _size_of(self, x: Array) -> Callable[[int], int]:
        """Returns what gives the bytes of a computation of so many samples like an input's."""
        return lambda samples: _bytes(self._chain, (samples, *x.shape[1:]), name_of(x), self._output_dtype)

    def _halve(self, count: int, size: Callable[[int], int], least: int = 1) -> int:
        """Returns half of what did not fit, having noted that no more than that is to be tried next time."""
        half = count // 2
        self._bounds.lower((self._device, self._chain), size(half) if half >= least else size(least) // 2)
        return half

    def _fitting(self, most: int, size: Callable[[int], int]) -> int:
        """Returns the largest number up to `most` whose size is within the bound, perhaps 0."""
        bound = self._bound
        return most if bound is None else bisect.bisect_right(range(1, most + 1), bound, key=size)

    def _refusal(self, why: str) -> OutOfMemoryError:
        device = self._engine.devices[self._device].name
        tried = f"None of these fitted: {', '.join(self._tried)}." if self._tried else "It was not tried."
        return OutOfMemoryError(
            f"Expected a call that fits the memory of {device}, at least in parts. Received one that takes "
            f"{self._plan.memory_bytes} bytes by its plan, and {why}. {tried} Send smaller images or fewer filters at "
            "once, or try again when the device has less to do."
        )


def _bytes(chain: Sequence[Conv2D], shape: Shape, dtype: str, output_dtype: str) -> int:
    """Returns what a computation takes by its plan."""
    return plan(chain, shape, input_dtype=dtype, output_dtype=output_dtype).memory_bytes


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _rows(axis: int, first: int, end: int) -> tuple[slice, ...]:
    """Returns the slices of rows, where the height is this axis."""
    return (*(slice(None) for _ in range(axis)), slice(first, end))


def _with_configs(chunk: Sequence[Layer], chain: Sequence[Conv2D], before: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Returns a chunk's layers with a tile's configurations; those of the tile before if they are alike.

    An engine keeps a layer's weights on the device as long as the layer lives.
    """
    if all(layer.config == config for layer, config in zip(before, chain, strict=True)):
        return before
    return tuple(
        layer if layer.config == config else Layer(config, layer.kernel, layer.bias)
        for layer, config in zip(chunk, chain, strict=True)
    )
