"""Computes admitted calls: initializes missing weights, and has the engine compute what batcher.py decides on next."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from convserve.errors import DeadlineExceededError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array, Shape
from convserve_server.engine_api import Engine
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.batcher import Batcher, Batching, Job
from convserve_server.scheduling.caller import ANYBODY, Caller
from convserve_server.scheduling.initialized_layers import InitializedLayerCache
from convserve_server.tiling.tiled_engine import TiledEngine


class Computation(NamedTuple):
    """How a call was computed, without its tensors: for metrics, logs and traces."""

    began_ns: int  # `queue_us` before it was computed, since 1970
    queue_us: int  # that it waited for memory and for a device, between which a stream's input arrives
    compute_us: int  # that its batch took on the device
    batch_size: int  # this and the next two: of its batch, as in `Computed`
    device: str
    warm: bool
    input_shape: Shape
    output_shape: Shape
    input_bytes: int  # of the elements, whichever way they travel
    output_bytes: int


class Result(NamedTuple):
    """What a call is answered with."""

    output: Array  # in the dtype asked for
    losses: tuple[Losses, ...]  # one per layer
    layers: tuple[Conv2D | None, ...]  # one per layer: with its seeds if the server initialized the weights, else None
    computation: Computation


@dataclass(eq=False, slots=True, kw_only=True)
class _Convolution(Job):
    """An admitted call."""

    permit: Permit
    layers: Sequence[Layer]  # as they came
    known: tuple[Layer, ...]  # the same, with weights if the server has them already
    x: Array
    received: float = field(default_factory=time.monotonic)  # when the whole input had arrived
    began_ns: int = field(default_factory=time.time_ns)  # the same, since 1970


class Scheduler:
    """Computes admitted calls, together where they may be. Any thread may call its methods."""

    def __init__(self, engine: Engine, batching: Batching) -> None:
        self._engine = TiledEngine(engine)
        self._cache = InitializedLayerCache(engine.initialize)
        self._batcher: Batcher[_Convolution] = Batcher(self._compute, len(engine.devices), batching)

    def convolve(
        self, permit: Permit, layers: Sequence[Layer], x: Array, caller: Caller = ANYBODY, *, unbatched: bool = False
    ) -> Result:
        """Computes a call, alone if it is `unbatched`, and releases its permit. Initializes missing weights."""
        with permit:
            known = _with_weights(layers, permit.plan, self._cache.get)
            group = None if unbatched else _group(known, x, permit.plan)
            job = _Convolution(group, len(x), permit.burden, caller, permit=permit, layers=layers, known=known, x=x)
            result: Result = self._batcher.run(job)
            return result

    def _compute(self, device: int, jobs: Sequence[_Convolution]) -> list[Result]:
        """Computes jobs of one group together, and returns one result per job."""
        started, samples = time.monotonic(), sum(job.samples for job in jobs)
        plan, computed = jobs[0].permit.plan, None
        for job in jobs:
            job.permit.started()

        def is_active() -> bool:
            return any(job.caller.is_active() for job in jobs)

        def drawn(config: Conv2D, input_channels: int) -> Layer:
            if not is_active():  # all layers' may take minutes
                raise DeadlineExceededError(
                    "Expected a caller that waits for the result. It is gone: no more is drawn."
                )
            return self._cache.initialize(config, input_channels)

        try:
            layers = _with_weights(jobs[0].known, plan, drawn)
            inputs, all_work = [job.x for job in jobs], sum(job.permit.work for job in jobs)
            computed = self._engine.convolve(layers, inputs, plan.output_dtype, device, is_active, all_work)
        finally:
            seconds = time.monotonic() - started
            for job in jobs:
                share, warm = (job.samples / samples, computed.warm) if computed else (0.0, False)
                job.permit.computed(seconds, share, warm)
        results, first = [], 0
        for job in jobs:
            output = computed.output if len(jobs) == 1 else computed.output[first : first + job.samples]
            first += job.samples
            computation = Computation(
                began_ns=job.began_ns - round(job.permit.waited_s * 1e9),
                queue_us=round((started - job.received + job.permit.waited_s) * 1e6),
                compute_us=round(seconds * 1e6),
                batch_size=computed.batch_size,
                device=computed.device,
                warm=computed.warm,
                input_shape=job.x.shape,
                output_shape=output.shape,
                input_bytes=job.x.nbytes,
                output_bytes=output.nbytes,
            )
            configs = tuple(
                layer.config if sent.kernel is None else None for sent, layer in zip(job.layers, layers, strict=True)
            )
            results.append(Result(output, computed.losses, configs, computation))
        return results


def _with_weights(
    layers: Sequence[Layer], plan: Plan, weighted: Callable[[Conv2D, int], Layer | None]
) -> tuple[Layer, ...]:
    """Returns layers; for each without weights calls `weighted` with its configuration and input channels."""
    return tuple(
        layer
        if layer.kernel is not None
        else weighted(layer.config, step.kernel_shape[2] * layer.config.groups) or layer
        for layer, step in zip(layers, plan.layers, strict=True)
    )


def _group(layers: tuple[Layer, ...], x: Array, plan: Plan) -> Hashable | None:
    """Returns what calls that may be computed together have in common; None for a call that must be computed alone.

    Layers are equal only to themselves, so calls share stored and cached ones. The activity regularizer's loss is of
    one caller's samples alone.
    """
    if any(layer.kernel is None or layer.config.activity_regularizer is not None for layer in layers):
        return None
    return layers, x.dtype, plan.output_dtype, x.shape[1:]
