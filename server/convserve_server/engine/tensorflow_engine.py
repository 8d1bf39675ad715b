"""TensorFlowEngine: computes on one or more devices of one kind."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from convserve.errors import OutOfMemoryError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.on_cpu import onednn_computes
from convserve.layers.plan import kernel_shape
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array, name_of
from convserve_server.engine.devices import claim
from convserve_server.engine.keras_objects import keras_object
from convserve_server.engine.tensors import to_array, to_tensor, weight_to_tensor
from convserve_server.engine.traces import Traces
from convserve_server.engine_api import Computed
from convserve_server.memory.aligned import aligned, joined


class TensorFlowEngine:
    """Computes with TensorFlow on a CPU or on GPUs. Its methods may be called from any thread."""

    def __init__(self, device: str, tf32: bool, *, intra_op_threads: int = 0, inter_op_threads: int = 0) -> None:
        """Takes devices, as `load_engine` and `devices.claim` say."""
        tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
        tf.config.threading.set_inter_op_parallelism_threads(inter_op_threads)
        self.devices = claim(device)
        self.versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        self.tf32 = bool(tf.config.experimental.tensor_float_32_execution_enabled())
        self._on_gpu = self.devices[0].kind == "gpu"
        self.onednn = not self._on_gpu and onednn_computes()
        # TensorFlow numbers the devices that it was left with from 0.
        self._names = tuple(f"{device.kind}:{index}" for index, device in enumerate(self.devices))
        self._traces = Traces(self._on_gpu)
        self._lock = threading.Lock()
        # A layer's weights on each device. On a CPU they are the layer's own memory.
        self._weights: WeakKeyDictionary[Layer, dict[int, tuple[Any, ...]]] = WeakKeyDictionary()

    @property
    def traces(self) -> int:
        """How many functions are kept, each of which is traced once."""
        return len(self._traces.traces)

    @property
    def warm_shapes(self) -> int:
        """How many shapes of inputs they were asked for."""
        return len(self._traces.shapes)

    def device_memory(self) -> dict[str, int]:
        """Returns the bytes in use on each GPU by its name; nothing on a CPU, where TensorFlow does not count them."""
        if not self._on_gpu:
            return {}
        return {
            device.name: tf.config.experimental.get_memory_info(name.upper())["current"]
            for device, name in zip(self.devices, self._names, strict=True)
        }

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns the layer with weights of Keras' initializers, and with every seed filled in."""
        seeded, dtype = config.with_seed(random.SystemRandom().randrange(2**31)), config.variable_dtype
        with tf.device(self._names[0]), _memory_errors():
            weights = [keras_object(seeded.kernel_initializer)(kernel_shape(seeded, input_channels), dtype)]
            if seeded.use_bias:
                weights.append(keras_object(seeded.bias_initializer)((seeded.filters,), dtype))
            return Layer(seeded, *(aligned(weight.numpy()) for weight in weights))

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        """Returns the layer with its constraints applied to its weights, and the losses of these weights."""
        config, weights, losses = layer.config, {"kernel": layer.kernel, "bias": layer.bias}, {}
        with tf.device(self._names[0]), _memory_errors():
            for name, weight in weights.items():
                if weight is None:
                    continue
                constraint, regularizer = getattr(config, f"{name}_constraint"), config.weight_penalty(name)
                if constraint is not None:
                    weights[name] = keras_object(constraint)(tf.constant(weight)).numpy()
                if regularizer is not None:
                    losses[name] = float(keras_object(regularizer)(tf.constant(weights[name])))
        return Layer(config, weights["kernel"], weights["bias"]), Losses(**losses)

    def convolve(self, layers: Sequence[Layer], inputs: Sequence[Array], output_dtype: str, device: int) -> Computed:
        """Applies layers that all have weights, in order, to inputs that are computed together.

        On a CPU one input that `aligned` would not copy is read where it is, and the output is TensorFlow's memory.
        Raises OutOfMemoryError if the device's memory did not suffice.
        """
        try:
            return self._convolve(layers, inputs, output_dtype, device)
        except OutOfMemoryError:
            if not self._on_gpu:  # elsewhere weights take no memory of their own
                raise
        with self._lock:
            self._weights.clear()  # other layers' may have taken the room
        return self._convolve(layers, inputs, output_dtype, device)

    def _convolve(self, layers: Sequence[Layer], inputs: Sequence[Array], output_dtype: str, device: int) -> Computed:
        with _memory_errors():
            x = inputs[0] if len(inputs) == 1 else joined(inputs)
            forward, warm = self._traces.find(layers, x.shape, name_of(x), output_dtype)
            # Entering the scope of the only CPU, which is the default, would take longer than anything else here.
            with nullcontext() if self._names == ("cpu:0",) else tf.device(self._names[device]):
                weights = [tensor for layer in layers for tensor in self._on_device(layer, device)]
                output, *losses = forward.call([to_tensor(x, self._on_gpu), *weights])
                values = iter(losses)
                return Computed(
                    output=to_array(output, output_dtype, self._on_gpu),
                    losses=tuple(
                        Losses(**{name: float(next(values)) for name in names}) for names in forward.loss_names
                    ),
                    device=self.devices[device].name,
                    warm=warm,
                    batch_size=len(x),
                )

    def _on_device(self, layer: Layer, device: int) -> tuple[Any, ...]:
        """Returns a layer's weights as tensors, which are kept as long as the layer is."""
        with self._lock:
            tensors = self._weights.get(layer, {}).get(device)
        if tensors is None:
            weights = (layer.kernel, layer.bias)
            tensors = tuple(weight_to_tensor(weight, self._on_gpu) for weight in weights if weight is not None)
            with self._lock:
                self._weights.setdefault(layer, {})[device] = tensors
        return tensors


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns what TensorFlow raises for want of memory into OutOfMemoryError."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        text = "Expected a call that fits the device's memory. This one did not: send smaller batches."
        raise OutOfMemoryError(text) from error
