"""Keras' convolutions in a Keras model, computed by a server. It needs Keras on TensorFlow.

>>> from convserve.keras import plan, to_local, to_remote
>>> model = to_remote(keras.applications.MobileNetV2(), server="localhost:50051", fuse=True)
>>> y = model.predict(images)
"""

from convserve.errors import needing

with needing(
    "convserve.keras needs Keras on TensorFlow: pip install 'convserve[server]' brings both, and "
    "KERAS_BACKEND=tensorflow chooses it."
):
    import tensorflow as _  # noqa: I001 (what the modules below need; first, as Keras without it is no broken one)
    import keras as _  # noqa: F401, F811

from convserve.keras.layers.remote_chain import RemoteChain
from convserve.keras.layers.remote_convolutions import (
    RemoteConv1D,
    RemoteConv2D,
    RemoteDepthwiseConv1D,
    RemoteDepthwiseConv2D,
    RemoteSeparableConv1D,
    RemoteSeparableConv2D,
)
from convserve.keras.planning import ModelPlan, PlannedCall, plan
from convserve.keras.swap import Report, report, to_local, to_remote

__all__ = [
    "ModelPlan", "PlannedCall", "RemoteChain", "RemoteConv1D", "RemoteConv2D", "RemoteDepthwiseConv1D",
    "RemoteDepthwiseConv2D", "RemoteSeparableConv1D", "RemoteSeparableConv2D", "Report", "plan", "report", "to_local",
    "to_remote",
]  # fmt: skip
