"""convserve: keras.layers.Conv2D on a server. Numpy in, numpy out; no TensorFlow on the caller's machine.

>>> import convserve
>>> with convserve.Client("localhost:50051") as client:
...     y = client.conv2d(x, filters=64, kernel_size=3, strides=2, padding="same", activation="relu", seed=0)
"""

from convserve import activations, constraints, errors, initializers, regularizers
from convserve._async import AsyncClient
from convserve._async_layer import AsyncStoredLayer
from convserve._rpc import RetryRule
from convserve._sync import Client
from convserve._sync_layer import StoredLayer
from convserve._version import __version__
from convserve.access import TLS
from convserve.conv2d import Conv2D
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
    OutOfMemoryError,
    OverloadedError,
    PermissionDeniedError,
    SharedMemoryLostError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from convserve.layer import Layer
from convserve.plan import LayerPlan, Plan
from convserve.result import Device, Losses, Result, ServerInfo, Timing, Usage

__all__ = [  # noqa: RUF022 (as sorted() has it; TLS is a class)
    "AsyncClient",
    "AsyncStoredLayer",
    "Client",
    "Conv2D",
    "ConvserveError",
    "DeadlineExceededError",
    "Device",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "InvalidConfigurationError",
    "InvalidRequestError",
    "InvalidTensorError",
    "InvalidWeightsError",
    "Layer",
    "LayerNotFoundError",
    "LayerPlan",
    "Losses",
    "MissingDependencyError",
    "OutOfMemoryError",
    "OverloadedError",
    "PermissionDeniedError",
    "Plan",
    "Result",
    "RetryRule",
    "ServerInfo",
    "SharedMemoryLostError",
    "StoredLayer",
    "TLS",
    "Timing",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "__version__",
    "activations",
    "constraints",
    "errors",
    "initializers",
    "regularizers",
]
