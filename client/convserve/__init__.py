"""convserve: keras.layers.Conv2D on a server. Numpy in, numpy out; no TensorFlow on the caller's machine.

>>> import convserve
>>> with convserve.Client("localhost:50051") as client:
...     y = client.conv2d(x, filters=64, kernel_size=3, strides=2, padding="same", activation="relu", seed=0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convserve import activations, constraints, errors, initializers, regularizers
from convserve._version import __version__
from convserve.errors import (
    ConvserveError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    InvalidConfigurationError,
    InvalidRequestError,
    InvalidTensorError,
    InvalidWeightsError,
    LayerNotFoundError,
    MissingDependencyError,
    NameConflictError,
    OutOfMemoryError,
    OverloadedError,
    PermissionDeniedError,
    SharedMemoryLostError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import LayerPlan, Plan
from convserve.protocol.name_messages import NameVersion
from convserve.protocol.results import Losses, Result, Timing
from convserve.protocol.server_info import Device, ServerInfo, Usage

if TYPE_CHECKING:
    from convserve._async.client import AsyncClient
    from convserve._async.stored_layer import AsyncStoredLayer
    from convserve._rpc.credentials import TLS
    from convserve._rpc.retries import RetryRule
    from convserve._sync.client import Client
    from convserve._sync.stored_layer import StoredLayer

__all__ = [  # noqa: RUF022 (as sorted() has it; TLS is a class)
    "AsyncClient", "AsyncStoredLayer", "Client", "Conv2D", "ConvserveError", "DeadlineExceededError", "Device",
    "FieldViolation", "InternalError", "InvalidArgumentError", "InvalidConfigurationError", "InvalidRequestError",
    "InvalidTensorError", "InvalidWeightsError", "Layer", "LayerNotFoundError", "LayerPlan", "Losses",
    "MissingDependencyError", "NameConflictError", "NameVersion", "OutOfMemoryError", "OverloadedError",
    "PermissionDeniedError", "Plan", "Result", "RetryRule", "ServerInfo", "SharedMemoryLostError", "StoredLayer", "TLS",
    "Timing", "TooLargeError", "UnauthenticatedError", "UnavailableError", "UnimplementedError", "Usage", "__version__",
    "activations", "constraints", "errors", "initializers", "regularizers",
]  # fmt: skip

# Loaded when they are asked for (PEP 562): they bring gRPC, which whoever only needs layers and tensors does without.
_LAZY = {
    "AsyncClient": "convserve._async.client",
    "AsyncStoredLayer": "convserve._async.stored_layer",
    "Client": "convserve._sync.client",
    "RetryRule": "convserve._rpc.retries",
    "StoredLayer": "convserve._sync.stored_layer",
    "TLS": "convserve._rpc.credentials",
}
_MODULES = ("importing", "keras", "plot", "ray")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except MissingDependencyError as error:  # which `hasattr` and `inspect` would not take for "not there"
            raise AttributeError(str(error)) from error
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    value.__module__ = __name__
    return value


def __dir__() -> list[str]:
    # `help` and debuggers ask for all that is listed, and keras brings TensorFlow: it is listed once it is imported.
    return sorted({*__all__, *_MODULES} - ({"keras"} - globals().keys()))


# What pickles, tracebacks and help() show is the public name, wherever the class is defined.
for _value in (Conv2D, Device, Layer, LayerPlan, Losses, NameVersion, Plan, Result, ServerInfo, Timing, Usage):
    _value.__module__ = __name__
