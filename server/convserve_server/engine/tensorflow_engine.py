"""TensorFlowEngine: computes on one device."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from convserve import Conv2D, Device, Layer, Losses, OutOfMemoryError
from convserve.plan import channel_axis, kernel_shape
from convserve.tensor import Array
from convserve_server.convolver import Computed
from convserve_server.engine.forward import traced
from convserve_server.engine.keras_objects import keras_constraint, keras_initializer, keras_regularizer
from convserve_server.settings import SettingsError

_MOST_TRACES = 1000
_MOST_SHAPES = 100_000
# What the trace of a layer does not depend on; initializers and constraints act elsewhere.
_UNTRACED: dict[str, Any] = {
    "name": None,
    "input_shape": None,
    "kernel_initializer": "zeros",
    "bias_initializer": "zeros",
    "kernel_constraint": None,
    "bias_constraint": None,
}


class TensorFlowEngine:
    """Computes with TensorFlow on a CPU or a GPU."""

    def __init__(self, device: str, tf32: bool) -> None:
        """Takes a device.

        Args:
            device: "auto" (the first GPU, else the CPU), "cpu" or "gpu:N".
            tf32: Whether float32 convolutions on a GPU may use TensorFloat-32.

        Raises:
            SettingsError: If there is no such GPU.
        """
        self._device = _claim(device)
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        self._lock = threading.Lock()
        self._traces: OrderedDict[Hashable, Any] = OrderedDict()
        self._shapes: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def devices(self) -> tuple[Device, ...]:
        """The one device."""
        return (self._device,)

    @property
    def versions(self) -> dict[str, str]:
        """TensorFlow's and Keras' versions."""
        return {"tensorflow": tf.__version__, "keras": keras.__version__}

    @property
    def tf32(self) -> bool:
        """TensorFlow's own word on TensorFloat-32."""
        return bool(tf.config.experimental.tensor_float_32_execution_enabled())

    @property
    def traces(self) -> int:
        """How many functions are kept, each of which is traced once."""
        return len(self._traces)

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns the layer with weights that Keras' initializers draw, and with every seed filled in."""
        seeded = config.with_seed(random.SystemRandom().randrange(2**31))
        with tf.device(self._device.name), _memory_errors():
            kernel = keras_initializer(seeded.kernel_initializer)(
                kernel_shape(seeded, input_channels), dtype=seeded.variable_dtype
            ).numpy()
            bias = None
            if seeded.use_bias:
                shape = (seeded.filters,)
                bias = keras_initializer(seeded.bias_initializer)(shape, dtype=seeded.variable_dtype).numpy()
        return Layer(seeded, kernel, bias)

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        """Returns the layer with its constraints applied to its weights, and the losses of these weights."""
        config, weights, losses = layer.config, {"kernel": layer.kernel, "bias": layer.bias}, {}
        with tf.device(self._device.name), _memory_errors():
            for name, weight in weights.items():
                if weight is None:
                    continue
                constraint, regularizer = (getattr(config, f"{name}_{kind}") for kind in ("constraint", "regularizer"))
                if constraint is not None:
                    weights[name] = keras_constraint(constraint)(tf.constant(weight)).numpy()
                if regularizer is not None and config.trainable:
                    losses[name] = float(keras_regularizer(regularizer)(tf.constant(weights[name])))
        return Layer(config, weights["kernel"], weights["bias"]), Losses(**losses)

    def convolve(self, layers: Sequence[Layer], x: Array, output_dtype: str) -> Computed:
        """Applies layers that all have weights, in order.

        Raises:
            OutOfMemoryError: If the device's memory did not suffice.
        """
        chain = tuple(layer.config.replace(**_UNTRACED) for layer in layers)
        channels = x.shape[channel_axis(chain[0])]
        key = (chain, channels, x.dtype.name, output_dtype)
        with self._lock:
            function = self._traces.get(key)
            if function is None:
                function = traced(chain, channels, x.dtype.name, output_dtype, self._device.kind == "gpu")
                self._traces[key] = function
            warm = (key, x.shape) in self._shapes
            self._shapes[key, x.shape] = None
            for entries, most in ((self._traces, _MOST_TRACES), (self._shapes, _MOST_SHAPES)):
                if len(entries) > most:
                    entries.popitem(last=False)
            self._traces.move_to_end(key)
        with tf.device(self._device.name), _memory_errors():
            given = [(each.kernel,) if each.bias is None else (each.kernel, each.bias) for each in layers]
            weights = [tuple(tf.constant(weight) for weight in of_layer) for of_layer in given]
            output, losses = function(tf.constant(x), weights)
            return Computed(
                output=output.numpy(),
                losses=tuple(Losses(**{name: float(value) for name, value in each.items()}) for each in losses),
                device=self._device.name,
                warm=warm,
            )


class _memory_errors:  # noqa: N801 (it reads as a phrase: with _memory_errors())
    """Turns what TensorFlow raises for want of memory into OutOfMemoryError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
            text = "Expected a call that fits the device's memory. This one did not: send smaller batches."
            raise OutOfMemoryError(text) from error


def _claim(device: str) -> Device:
    """Returns the device and makes it the only one that TensorFlow uses, growing its memory as needed."""
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu" or (device == "auto" and not gpus):
        tf.config.set_visible_devices([], "GPU")
        return Device("cpu:0", "cpu", "")
    number = 0 if device == "auto" else int(device.partition(":")[2])
    if number >= len(gpus):
        raise SettingsError(f"--device: Expected a GPU that TensorFlow sees; it sees {len(gpus)}. Received {device}.")
    tf.config.set_visible_devices([gpus[number]], "GPU")
    tf.config.experimental.set_memory_growth(gpus[number], True)
    description = tf.config.experimental.get_device_details(gpus[number]).get("device_name", "")
    return Device(f"gpu:{number}", "gpu", description)
