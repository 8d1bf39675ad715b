"""Admission and scheduler, joined as a service joins them, and an engine of a few lines for them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from convserve import Conv2D, Device, Layer, Losses, OutOfMemoryError
from convserve_server.engine_api import Computed
from convserve_server.scheduling.admission import Admission, Limits
from convserve_server.scheduling.batcher import Batching
from convserve_server.scheduling.caller import ANYBODY, Caller
from convserve_server.scheduling.scheduler import Result, Scheduler

CONFIG = Conv2D(1, 1, data_format="channels_last", dtype="float32", use_bias=False)
LIMITS = Limits(
    max_message_bytes=2**20,
    max_call_bytes=2**20,
    max_admitted_bytes=2**22,
    max_waiting_calls=100,
    max_layers_per_call=4,
)


class Engine:
    """Multiplies by each layer's only weight. It waits while it is held."""

    versions: dict[str, str] = {}  # noqa: RUF012 (a protocol's)
    tf32 = onednn = False
    traces = 0

    def __init__(self, devices: int = 1) -> None:
        self.devices = tuple(Device(f"cpu:{number}", "cpu", "") for number in range(devices))
        self.calls: list[tuple[tuple[Layer, ...], list[int], int]] = []
        self.initialized: list[Conv2D] = []
        self.go = threading.Event()
        self.go.set()
        self.max_samples = 10**6

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        self.initialized.append(config)
        kernel = np.full((*config.kernel_size, input_channels, config.filters), len(self.initialized), "f4")
        return Layer(config.with_seed(len(self.initialized)), kernel)

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        raise NotImplementedError

    def convolve(
        self, layers: Sequence[Layer], inputs: Sequence[Any], output_dtype: str, device: int, *_: Any
    ) -> Computed:
        self.calls.append((tuple(layers), [len(x) for x in inputs], device))
        assert self.go.wait(30)
        x = np.concatenate(inputs)
        if len(x) > self.max_samples:
            raise OutOfMemoryError("too many")
        for layer in layers:
            assert layer.kernel is not None
            x = x * layer.kernel.flat[0]
        losses = tuple(
            Losses(activity=None if layer.config.activity_regularizer is None else float(x.sum()) / len(x))
            for layer in layers
        )
        return Computed(x.astype(output_dtype), losses, self.devices[device].name, warm=True, batch_size=len(x))


class Served:
    """Admission and scheduler, as a service joins them."""

    def __init__(self, engine: Any, *, limits: Limits = LIMITS, samples: int = 64, size: int = 2**20) -> None:
        size = min(size, limits.max_call_bytes)
        self.admission = Admission(limits, (len(engine.devices),) * 2, size)
        self.scheduler = Scheduler(engine, Batching(1, samples, size))

    def convolve(
        self,
        layers: Sequence[Layer],
        x: Any,
        output_dtype: str | None = None,
        caller: Caller = ANYBODY,
        *,
        unbatched: bool = False,
        output_room: float = 0,
    ) -> Result:
        permit = self.admission.admit(layers, x.shape, x.dtype.name, output_dtype, caller, output_room=output_room)
        return self.scheduler.convolve(permit, layers, x, caller, unbatched=unbatched)


def weighing(weight: float, **changes: Any) -> Layer:
    return Layer(CONFIG.replace(**changes), np.full((1, 1, 1, 1), weight, "f4"))


def batch(*values: float, dtype: str = "f4", shape: tuple[int, int] = (1, 1)) -> Any:
    return np.repeat(np.array(values, dtype), shape[0] * shape[1]).reshape(len(values), *shape, 1)
