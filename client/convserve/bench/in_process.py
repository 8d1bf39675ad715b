"""The same layer in this process: one `tf.function` around Keras' own layer.

TensorFlow is imported where it is to be used, and only if `is_possible()`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from convserve.bench.workloads import Workload
from convserve.tensors.codec import Array


def is_possible() -> bool:
    """Returns whether TensorFlow and Keras are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "keras"))


def function(workload: Workload) -> Callable[[Array], Array]:
    """Returns the layer as a function of numpy arrays; Keras and TensorFlow say why they cannot compute one here."""
    compiled = of_tensors(workload)
    import tensorflow as tf

    return lambda x: compiled(tf.constant(x)).numpy()


def of_tensors(workload: Workload) -> Callable[[Any], Any]:
    """Returns the layer as a function of TensorFlow's tensors, which stay on the device where they are."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(gpu, True)  # a server may share it
    layer, config = workload.layer.to_keras(), workload.layer.config
    output_dtype = workload.plan().output_dtype

    @tf.function(input_signature=[tf.TensorSpec((None, *workload.input_shape[1:]), workload.input_dtype)])
    def forward(x):  # type: ignore[no-untyped-def]
        return tf.cast(layer(tf.cast(x, config.compute_dtype)), output_dtype)

    return forward.get_concrete_function()  # type: ignore[no-any-return]
