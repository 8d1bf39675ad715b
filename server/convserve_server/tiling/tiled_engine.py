"""Computes with an engine, in parts where a device has no memory for a call as a whole.

    all samples of all inputs ----> some samples ----> one sample: chunks of layers, one after the other
                                                          |
                       OutOfMemoryError <---- one row <---+-- some rows <---- all rows of a chunk's output

What does not fit is halved. What fits is known only from trying; what did not is remembered, so that calls alike are
divided before they are tried. What would keep a device for seconds is divided, too, at best between layers: before each
part it is asked whether the caller still waits.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from convserve.errors import DeadlineExceededError, OutOfMemoryError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import plan
from convserve.protocol.results import Losses
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import Array, Shape, name_of, numpy_dtype
from convserve_server.engine_api import Computed, Engine
from convserve_server.tiling.memory_bounds import MemoryBounds
from convserve_server.tiling.tiles import chunks, height_axis, row_slices, tile, tiling_blocker, with_configs
from convserve_server.tiling.work import work

_SizeOf = Callable[[int], tuple[int, int]]
"""Returns the bytes of a computation of so many samples or rows, by its plan, and its work."""

# Of a part: about a second of two cores of a CPU. Nothing that a GPU does in a second is as much.
_MAX_WORK = {"cpu": 2**36, "gpu": 2**43}


class TiledEngine:
    """Computes with an engine, in parts where need be. Any thread may call its method.

    The parts give what the whole would, but for the rounding of a framework that chooses an algorithm by size.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._bounds = engine, MemoryBounds()

    def convolve(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Array],
        output_dtype: str,
        device: int,
        is_active: Callable[[], bool] = lambda: True,
        call_work: int | None = None,
    ) -> Computed:
        """Applies layers to inputs as the engine does, in parts if need be; `call_work` is all inputs', if known.

        Several inputs are not divided here: the batcher, which put them together, then computes each by itself. Raises
        OutOfMemoryError if several inputs, or a part that cannot be divided further, did not fit, or
        DeadlineExceededError if nobody waited for the output any more before its last part was computed.
        """
        partition = _Partition(self._engine, self._bounds, tuple(layers), output_dtype, device, is_active)
        computed = partition.untiled(inputs, call_work)
        if computed is not None:
            return computed
        if len(inputs) > 1:
            raise OutOfMemoryError("Expected calls that fit the device's memory together. Received some that do not.")
        return partition.tiled(inputs[0])


@dataclass
class _Partition:
    """One call, what is known of its parts that were computed, and those that did not fit."""

    engine: Engine
    bounds: MemoryBounds
    layers: tuple[Layer, ...]
    output_dtype: str
    device: int
    is_active: Callable[[], bool]
    misses: list[str] = field(default_factory=list)
    warm: bool = True
    batch_size: int = 0
    memory_bytes: int = 0  # by the call's plan, which only `tiled` needs

    def __post_init__(self) -> None:
        self.chain = _configs(self.layers)
        self.key = self.device, self.chain
        self.max_work = _MAX_WORK[self.engine.devices[self.device].kind]
        # By layer: the losses of any part, and the sum of all parts' activities over their samples.
        self.losses, self.activities = [Losses()] * len(self.chain), [0.0] * len(self.chain)

    def untiled(self, inputs: Sequence[Array], call_work: int | None) -> Computed | None:
        """Computes all inputs together; returns None if they do not fit, are not likely to, or are one long work."""
        samples, size = sum(map(len, inputs)), self._samples_size(inputs[0])
        bound = self.bounds.get(self.key)
        if bound is not None and size(samples)[0] > bound:
            return None
        if len(inputs) == 1 and (size(samples)[1] if call_work is None else call_work) > self.max_work:
            return None  # several are bounded by the batcher
        computed = self._attempt(self.layers, inputs, self.output_dtype)
        if computed is None:
            self._halve(samples, "sample", size)
        return computed

    def tiled(self, x: Array) -> Computed:
        """Computes one input in parts; raises what `convolve` does."""
        self.memory_bytes, _ = self._samples_size(x)(len(x))
        try:
            output = aligned_empty(plan(self.chain, x.shape).output_shape, numpy_dtype(self.output_dtype))
            self._by_samples(x, output)
        except MemoryError as error:
            raise self._refusal("the machine has no memory to put its parts together") from error
        if not self.misses:
            self.bounds.widen(self.key)
        for index, config in enumerate(self.chain):
            if self.losses[index].activity is not None:
                dtype = numpy_dtype(config.compute_dtype).type
                with np.errstate(over="ignore"):  # as a whole call's sum, it may be too large for the compute dtype
                    activity = float(dtype(self.activities[index]) / dtype(len(x)))
                self.losses[index] = dataclasses.replace(self.losses[index], activity=activity)
        device = self.engine.devices[self.device].name
        return Computed(output, tuple(self.losses), device, self.warm, self.batch_size)

    def _by_samples(self, x: Array, output: Array) -> None:
        """Computes as many samples at a time as fit, and by rows those that do not fit alone."""
        first, most, size = 0, len(x) // 2 if self.misses else len(x), self._samples_size(x)
        while first < len(x):
            count = self._fitting(min(most, len(x) - first), size)
            if not count:
                break
            rows = slice(first, first + count)
            computed = self._compute(self.layers, 0, x[rows], self.output_dtype)
            if computed is None:
                most = self._halve(count, "sample", size)
            else:
                output[rows] = computed.output
                first += count
        for sample in range(first, len(x)):
            self._by_chunks(x[sample : sample + 1], output[sample : sample + 1], tried=not most)

    def _by_chunks(self, x: Array, output: Array, tried: bool) -> None:
        """Computes one sample, one chunk of layers after the other, each by rows if need be."""
        fits = not self.misses and self.bounds.get(self.key) is None
        # Where there is memory for what is between them, work is divided between layers.
        steps = ((index, index + 1) for index in range(len(self.layers))) if fits else chunks(self.chain)
        for first, end in steps:
            chunk, chain = self.layers[first:end], self.chain[first:end]
            dtype = output.dtype if end == len(self.layers) else numpy_dtype(chunk[-1].config.compute_dtype)
            if fits and end < len(self.layers) and self._fits(_measured(chain, x.shape, name_of(x), dtype.name)):
                computed = self._compute(chunk, first, x, dtype.name)
                if computed is not None:
                    x = computed.output
                    continue
                fits = False
            shape = plan(chain, x.shape).output_shape
            chunk_output = output if end == len(self.layers) else aligned_empty(shape, dtype)
            self._by_rows(first, chunk, x, chunk_output, tried and len(chunk) == len(self.layers))
            x = chunk_output

    def _by_rows(self, first_layer: int, chunk: tuple[Layer, ...], x: Array, output: Array, tried: bool) -> None:
        """Computes one sample of a chunk of layers by as many rows as fit: at most half if all `tried` did not."""
        chain = _configs(chunk)
        shapes = [x.shape, *(step.output_shape for step in plan(chain, x.shape).layers)]
        axis = height_axis(chain[0])
        height = output.shape[axis]
        blocker = tiling_blocker(chain)
        min_rows = height if blocker else 1

        def size(rows: int) -> tuple[int, int]:
            # Tiles at the edges are smaller, by their padding.
            middle = tile(chain, shapes, ((height - rows) // 2, (height - rows) // 2 + rows))
            shape = (*x.shape[:axis], middle.input_rows[1] - middle.input_rows[0], *x.shape[axis + 1 :])
            return _measured(middle.chain, shape, name_of(x), name_of(output))

        # Tiles with the same padding share layers, whose weights an engine keeps on the device.
        layers_of = functools.cache(functools.partial(with_configs, chunk))
        first, most = 0, height // 2 if tried else height
        while first < height:
            if most < min_rows:
                row_text = f"{_counted(min_rows, 'row')} of a sample's output"
                why = f"its smallest part, {row_text}, takes about {size(min_rows)[0]} of them"
                raise self._refusal(f"{why} ({blocker} does not let it be divided)" if blocker else why)
            count = height if blocker else max(1, self._fitting(min(most, height - first), size))
            part = tile(chain, shapes, (first, first + count))
            begin = first - part.output_rows[0]
            kept, target = row_slices(axis, begin, begin + count), output[row_slices(axis, first, first + count)]
            rows = x[row_slices(axis, *part.input_rows)]
            computed = self._compute(layers_of(part.chain), first_layer, rows, name_of(output))
            if computed is None:
                most = self._halve(count, "row", size, min_rows)
            else:
                target[...] = computed.output[kept]
                first += count

    def _compute(self, layers: tuple[Layer, ...], first_layer: int, x: Array, output_dtype: str) -> Computed | None:
        """Computes a part and adds up its losses; returns None if there was no memory for it."""
        if not self.is_active():  # all parts may take minutes
            text = "Expected a caller to wait until all parts are computed. Received none: the others are not computed."
            raise DeadlineExceededError(text)
        computed = self._attempt(layers, [x], output_dtype)
        if computed is None:
            return None
        self.warm, self.batch_size = self.warm and computed.warm, max(self.batch_size, computed.batch_size)
        for index, losses in enumerate(computed.losses, first_layer):
            self.losses[index] = losses
            self.activities[index] += (losses.activity or 0.0) * len(x)  # an engine divides it by the samples
        return computed

    def _attempt(self, layers: tuple[Layer, ...], inputs: Sequence[Array], output_dtype: str) -> Computed | None:
        """Returns what the engine computes; None if it has no memory for it."""
        try:
            contiguous = [np.ascontiguousarray(x) for x in inputs]
            return self.engine.convolve(layers, contiguous, output_dtype, self.device)
        except (OutOfMemoryError, MemoryError):
            return None  # the error goes, and with it all that its traceback holds

    def _samples_size(self, x: Array) -> _SizeOf:
        return lambda samples: _measured(self.chain, (samples, *x.shape[1:]), name_of(x), self.output_dtype)

    def _fits(self, size_and_work: tuple[int, int]) -> bool:
        """Returns whether bytes are within the bound, as far as it is known, and work is no more than a part's."""
        bound = self.bounds.get(self.key)
        size, amount = size_and_work
        return (bound is None or size <= bound) and amount <= self.max_work

    def _fitting(self, most: int, size: _SizeOf) -> int:
        """Returns the largest number up to `most` that `_fits`, perhaps 0."""
        return bisect.bisect_left(range(1, most + 1), True, key=lambda count: not self._fits(size(count)))

    def _halve(self, count: int, unit: str, size: _SizeOf, least: int = 1) -> int:
        """Notes that so many samples or rows did not fit, bounds what is tried next time, and returns half of them."""
        self.misses.append(_counted(count, unit))
        half = count // 2
        self.bounds.lower(self.key, size(half)[0] if half >= least else size(least)[0] // 2)
        return half

    def _refusal(self, why: str) -> OutOfMemoryError:
        device = self.engine.devices[self.device].name
        tried = f"None of these fitted: {', '.join(self.misses)}." if self.misses else "It was not tried."
        return OutOfMemoryError(
            f"Expected a call that fits the memory of {device}, at least in parts. Received one that takes "
            f"{self.memory_bytes} bytes by its plan, and {why}. {tried} Send smaller images or fewer "
            "filters at once, or try again when the device has less to do."
        )


def _configs(layers: Sequence[Layer]) -> tuple[Conv2D, ...]:
    return tuple(layer.config for layer in layers)


def _measured(chain: Sequence[Conv2D], shape: Shape, dtype: str, output_dtype: str) -> tuple[int, int]:
    """Returns the bytes that a computation takes by its plan, and its work."""
    drawn = [False] * len(chain)  # any more
    planned = plan(chain, shape, input_dtype=dtype, output_dtype=output_dtype, drawn=drawn)
    return planned.memory_bytes, work(chain, planned)


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"
