"""Starts TensorFlow without its noise. It is imported by `load_engine`, not with this module."""

from __future__ import annotations

import logging
import os

from convserve_server.engine_api import Engine


def load_engine(
    device: str,
    tf32: bool,
    *,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    keep_memory: bool = True,
    memory_bytes: int = 0,
    verbose: bool,
) -> Engine:
    """Returns the TensorFlow engine; the settings of these names say what they mean. Raises SettingsError.

    Args:
        device: As `devices.claim` takes it.
        tf32: Whether TensorFloat-32 may be used.
        intra_op_threads: 0 is TensorFlow's choice.
        inter_op_threads: The same.
        keep_memory: Otherwise touching fresh pages for results takes several times as long as computing.
        memory_bytes: The most of the CPU's memory that it takes then; 0 is all. What does not fit is an
            OutOfMemoryError, where the system would end the process.
        verbose: Whether TensorFlow may log as it likes. What its C++ side writes before is for `logs.held_stderr`.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # TensorFlow turns oneDNN's kernels on by itself where a CPU has AVX-512 VNNI or the like. They give wrong numbers
    # for some geometries (one channel, strides, and a kernel as wide as the image), end the process at others and where
    # memory does not suffice, and heed no limit of memory.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = str(keep_memory).lower()
    if memory_bytes:
        os.environ["TF_CPU_BFC_MEM_LIMIT_IN_MB"] = str(max(1, memory_bytes // 2**20))
    if not verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from convserve_server.engine.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(device, tf32, intra_op_threads=intra_op_threads, inter_op_threads=inter_op_threads)
