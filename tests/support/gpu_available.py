"""Whether this machine has what computing on an NVIDIA GPU needs, and if not, in words what it lacks."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import subprocess
import sys

_LOOK = """
import tensorflow as tf
print(tf.__version__, tf.test.is_built_with_cuda(), len(tf.config.list_physical_devices("GPU")))
"""
_SERVER_NEEDS = {
    "tensorflow": "tensorflow", "keras": "keras", "grpc": "grpcio", "grpc_status": "grpcio-status",
    "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection",
    "grpc_channelz": "grpcio-channelz", "prometheus_client": "prometheus-client", "safetensors": "safetensors",
    "pythonjsonlogger": "python-json-logger", "ml_dtypes": "ml_dtypes",
}  # fmt: skip
"""Packages by the module that they bring."""


def missing_packages() -> list[str]:
    """Returns the packages that a server needs and that are not installed here."""
    return [package for module, package in _SERVER_NEEDS.items() if importlib.util.find_spec(module) is None]


def lacking_driver() -> str | None:
    """Returns in words that no GPU can be here, which takes no time to know, or None."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "an NVIDIA driver (libcuda.so.1 cannot be loaded)"
    return None


@functools.cache
def lacking() -> str | None:
    """Returns what this machine lacks of a GPU that TensorFlow computes on, or None if it lacks nothing."""
    driver = lacking_driver()
    found = [] if driver is None else [driver]
    packages = missing_packages()
    if packages:
        found.append(f"Python packages ({', '.join(packages)})")
    if "tensorflow" not in packages:
        found += _tensorflow_lacks(has_driver=driver is None)
    return ", and ".join(found) or None


def _tensorflow_lacks(*, has_driver: bool) -> list[str]:
    """Asks TensorFlow in a process of its own, since to list a GPU is to begin to use it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _LOOK]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        return [f"a TensorFlow that can be imported ({reason})"]
    version, built, seen = answer.stdout.split()
    if built != "True":
        return [f"a TensorFlow for CUDA (tensorflow {version} here is the CPU build: pip install '.[server-gpu]')"]
    if seen == "0" and has_driver:
        text = "TensorFlow lists none: run once with TF_CPP_MIN_LOG_LEVEL=0 to see which CUDA library it does not find"
        return [f"a GPU that TensorFlow {version} sees ({text})"]
    return []
