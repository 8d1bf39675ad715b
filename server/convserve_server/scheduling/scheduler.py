"""What becomes of an admitted call: its weights are filled in, it is batched, and it is computed."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array, Shape
from convserve_server.engine_api import Computed, Engine
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.batcher import Batcher, Job
from convserve_server.scheduling.caller import ANYBODY, Caller
from convserve_server.scheduling.initialized_layers import InitializedLayerCache
from convserve_server.tiling.tiled_engine import TiledEngine


@dataclass(frozen=True)
class Batching:
    """How calls share the devices; the fields are named as the settings.

    Attributes:
        concurrent_calls: Computations that a device has at once: of calls up to `max_batch_bytes`, and of larger ones.
        max_batch_samples: Samples of several calls that are computed together.
        max_batch_bytes: Likewise, of their inputs, outputs and what is between.
    """

    concurrent_calls: int
    max_batch_samples: int
    max_batch_bytes: int


class Computation(NamedTuple):
    """How a call was computed, for whoever observes calls: no tensors.

    Attributes:
        began_ns: When the call asked to be admitted, in nanoseconds since 1970.
        queue_us: Microseconds that it waited.
        compute_us: Microseconds that its batch took on the device.
        batch_size: Samples of that batch; of what was computed in parts, those of the largest.
        device: The device's name.
        warm: Whether the device had computed this geometry and shape before.
        input_shape: The input's shape.
        output_shape: The output's shape.
        input_bytes: Bytes of the input's elements, whichever way they came.
        output_bytes: Bytes of the output's elements, whichever way they go.
    """

    began_ns: int
    queue_us: int
    compute_us: int
    batch_size: int
    device: str
    warm: bool
    input_shape: Shape
    output_shape: Shape
    input_bytes: int
    output_bytes: int


class Result(NamedTuple):
    """What came of a call.

    Attributes:
        output: The output in the dtype asked for.
        losses: One per layer.
        layers: One per layer: the configuration with its seeds where the server drew the weights, else None.
        computation: How it was computed.
    """

    output: Array
    losses: tuple[Losses, ...]
    layers: tuple[Conv2D | None, ...]
    computation: Computation


class _Convolution(Job):
    """An admitted call: `given` are its layers as they came, `layers` those with weights where the server has them."""

    __slots__ = ("given", "layers", "permit", "x")

    def __init__(
        self,
        permit: Permit,
        given: Sequence[Layer],
        layers: tuple[Layer, ...],
        x: Array,
        caller: Caller,
        group: Hashable,
    ) -> None:
        super().__init__(group, len(x), permit.size, caller)
        self.permit, self.given, self.layers, self.x = permit, given, layers, x


class Scheduler:
    """Computes admitted calls, together where they may be. Any thread may call its methods."""

    def __init__(self, engine: Engine, batching: Batching) -> None:
        """Prepares to serve with an engine."""
        self._engine = TiledEngine(engine)
        self._cache = InitializedLayerCache(engine.initialize)
        self._batcher: Batcher[_Convolution] = Batcher(
            self._compute,
            devices=len(engine.devices),
            concurrent=batching.concurrent_calls,
            max_samples=batching.max_batch_samples,
            max_bytes=batching.max_batch_bytes,
        )

    def convolve(
        self,
        permit: Permit,
        layers: Sequence[Layer],
        x: Array,
        caller: Caller = ANYBODY,
        *,
        unbatched: bool = False,
    ) -> Result:
        """Returns what comes of a call, and releases its permit.

        Args:
            permit: What admission gave for this call, all of whose input is there now.
            layers: At least one; weights are drawn for those that have none.
            x: The input.
            caller: Who waits for the result.
            unbatched: Whether it must not be computed together with other calls.

        Raises:
            ConvserveError: Any of the server's.
        """
        with permit:
            permit.received()
            known = tuple(
                layer
                if layer.kernel is not None
                else self._cache.known(layer.config, _channels(layer, permit.plan, index)) or layer
                for index, layer in enumerate(layers)
            )
            group = None if unbatched else _group(known, x, permit.plan)
            result: Result = self._batcher.run(_Convolution(permit, layers, known, x, caller, group))
            return result

    def _compute(self, device: int, jobs: Sequence[_Convolution]) -> list[Result]:
        """Returns for each job its part of what was computed."""
        started, whole = time.monotonic(), sum(job.samples for job in jobs)
        for job in jobs:
            job.permit.started()
        computed: Computed | None = None
        try:
            layers, computed = self._computed(device, jobs)
        finally:
            seconds = time.monotonic() - started
            for job in jobs:
                share, warm = (job.samples / whole, computed.warm) if computed else (0.0, False)
                job.permit.computed(seconds, share, warm)
        results, begin = [], 0
        for job in jobs:
            output = computed.output if len(jobs) == 1 else computed.output[begin : begin + job.samples]
            begin += job.samples
            configs = tuple(
                after.config if before.kernel is None else None for before, after in zip(job.given, layers, strict=True)
            )
            computation = Computation(
                began_ns=job.permit.began_ns,
                queue_us=round((started - job.permit.arrived) * 1e6),
                compute_us=round(seconds * 1e6),
                batch_size=computed.batch_size,
                device=computed.device,
                warm=computed.warm,
                input_shape=job.x.shape,
                output_shape=output.shape,
                input_bytes=job.x.nbytes,
                output_bytes=output.nbytes,
            )
            results.append(Result(output, computed.losses, configs, computation))
        return results

    def _computed(self, device: int, jobs: Sequence[_Convolution]) -> tuple[tuple[Layer, ...], Computed]:
        first = jobs[0]
        layers = tuple(
            layer
            if layer.kernel is not None
            else self._cache.initialize(layer.config, _channels(layer, first.permit.plan, index))
            for index, layer in enumerate(first.layers)
        )

        def is_active() -> bool:
            return any(job.caller.is_active() for job in jobs)

        output_dtype = first.permit.plan.output_dtype
        return layers, self._engine.convolve(layers, [job.x for job in jobs], output_dtype, device, is_active)


def _channels(layer: Layer, plan: Plan, index: int) -> int:
    return plan.layers[index].kernel_shape[2] * layer.config.groups


def _group(layers: tuple[Layer, ...], x: Array, plan: Plan) -> Hashable | None:
    """Returns what calls that may be computed together have in common, or None.

    Layers are equal only to themselves, so it is stored and cached ones that calls can have in common. The activity
    regularizer's loss is of one caller's samples alone.
    """
    if any(layer.kernel is None or layer.config.activity_regularizer is not None for layer in layers):
        return None
    return layers, x.dtype, plan.output_dtype, x.shape[1:]
