"""Starts TensorFlow without its noise. It is imported by `load_engine`, not with this module."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from convserve_server.engine_api import Engine
from convserve_server.memory.machine import is_limited, machine_memory_bytes

_PROCESSORS = Path("/proc/cpuinfo")


def load_engine(
    device: str,
    tf32: bool,
    *,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    keep_memory: bool = True,
    verbose: bool,
) -> Engine:
    """Returns the TensorFlow engine; the settings of these names say what they mean. Raises SettingsError.

    Args:
        device: As `devices.claim` takes it.
        tf32: Whether TensorFloat-32 may be used.
        intra_op_threads: 0 is TensorFlow's choice.
        inter_op_threads: The same.
        keep_memory: Otherwise touching fresh pages for results takes several times as long as computing.
            It takes three quarters of the memory at most, and half where the process has a limit of its own: the rest
            is for what gRPC and this process hold. What does not fit is an OutOfMemoryError.
        verbose: Whether TensorFlow may log as it likes. What its C++ side writes before is for `logs.held_stderr`.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if is_limited():
        # Where TensorFlow has no memory for what one of oneDNN's operations asks for, that ends the process.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if b" amx_tile" in _PROCESSORS.read_bytes():
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # for AMX see `layers.on_cpu`
    # oneDNN's work is shared by the call's own thread, instead of one more that is woken for it.
    os.environ.setdefault("TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD", "1")
    if not verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from convserve_server.engine.tensorflow_engine import TensorFlowEngine

    # What TensorFlow itself maps is mapped now, and its allocator is made later.
    memory_bytes = machine_memory_bytes()
    if is_limited():
        # Else tensors would take all, and whatever else does not get what it asks for ends the process.
        keep_memory, memory_bytes = True, memory_bytes // 2
    else:
        memory_bytes = memory_bytes * 3 // 4
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = str(keep_memory).lower()
    os.environ["TF_CPU_BFC_MEM_LIMIT_IN_MB"] = str(max(1, memory_bytes // 2**20))
    os.environ["TF_MKL_ALLOC_MAX_BYTES"] = str(memory_bytes)  # the same with oneDNN, where memory is not to be kept
    return TensorFlowEngine(device, tf32, intra_op_threads=intra_op_threads, inter_op_threads=inter_op_threads)
