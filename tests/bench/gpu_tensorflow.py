"""What `gpu` starts for TensorFlow: the same layers in a process of their own, without a server.

It reads commands as lines of JSON and answers each with one; `gpu_workers` is the other end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convserve import Conv2D, Layer
from convserve.bench import in_process
from convserve.bench.loops import Subject, closed_loop
from convserve.bench.workloads import Workload

Job = dict[str, Any]

_WARM_UP = 3
"""Calls before the first that counts: tracing, cuDNN's choice of an algorithm, memory."""
_AT_ONCE = 10


class Worker:
    """TensorFlow on one device."""

    def __init__(self, device: str, tf32: bool) -> None:
        """Takes the device, "cpu" or "gpu:0"."""
        os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        import tensorflow as tf

        self._tf = tf
        gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")[:1]
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)  # the server and PyTorch are there too
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        self._name = "gpu:0" if gpus else "cpu:0"
        self._x: Any = None
        self._whole: Callable[[Any], Any] = lambda x: x
        self._resident: Callable[[Any], Any] = self._whole

    def about(self, _: Job) -> Job:
        """Returns what computes."""
        build = self._tf.sysconfig.get_build_info()
        made_with = {name: build[f"{name}_version"] for name in ("cuda", "cudnn") if f"{name}_version" in build}
        return {"tensorflow": self._tf.__version__, **made_with}

    def reference(self, job: Job) -> Job:
        """Computes a layer in float64 on the CPU, from the very numbers that the others get."""
        tf, x, kernel, bias = self._tf, *_arrays(job)
        with tf.device("cpu:0"):
            y = tf.nn.conv2d(x.astype("f8"), kernel.astype("f8"), job["strides"], job["padding"].upper())
            y = y + bias.astype("f8")
            np.save(job["output"], (tf.nn.relu(y) if job["activation"] else y).numpy())
        return {}

    def prepare(self, job: Job) -> Job:
        """Makes a layer ready to be measured, and keeps its answer."""
        x, kernel, bias = _arrays(job)
        config = Conv2D(
            kernel.shape[3], kernel.shape[:2], job["strides"], job["padding"], "channels_last",
            activation=job["activation"], dtype=job["dtype"],
        )  # fmt: skip
        workload = Workload("", Layer(config, kernel, bias), x.shape, job["dtype"])
        with self._tf.device(self._name):
            self._resident = in_process.of_tensors(workload)
        self._x, self._whole = x, lambda given: self._resident(self._tf.constant(given)).numpy()
        for _ in range(_WARM_UP):
            y = self._whole(x)
        np.save(job["output"], y.view(np.int16) if job["dtype"] == "bfloat16" else y)
        return {}

    def measure(self, job: Job) -> Job:
        """Returns milliseconds of a call, numpy in and out, and of the layer alone with its input on the device."""
        with self._tf.device(self._name):
            block = closed_loop(Subject(lambda _: self._whole(self._x)), 1, job["seconds"])
            on_device = self._tf.constant(self._x)
            self._tf.test.experimental.sync_devices()
            end, took = time.perf_counter() + job["seconds"], []
            while not took or time.perf_counter() < end:
                begun = time.perf_counter()
                for _ in range(_AT_ONCE):
                    self._resident(on_device)
                self._tf.test.experimental.sync_devices()
                took.append((time.perf_counter() - begun) / _AT_ONCE)
        if block.failure:
            raise RuntimeError(block.failure)
        return {"whole_ms": statistics.median(block.latencies) * 1e3, "device_ms": statistics.median(took) * 1e3}


def _arrays(job: Job) -> list[Any]:
    """Returns input, kernel and bias; bfloat16 lies in files as integers."""
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if job["dtype"] == "bfloat16" else job["dtype"]
    return [np.load(Path(job["folder"]) / f"{name}.npy").view(dtype) for name in ("x", "kernel", "bias")]


def main() -> None:
    """Answers commands until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    worker = Worker(sys.argv[1], sys.argv[2] == "tf32")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(worker, job["do"])(job)
        except Exception as error:  # whatever TensorFlow says of a layer, the next one may do
            answer = {"failure": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
