"""RemoteConv2D: `keras.layers.Conv2D` in a Keras model, computed by a server. It needs Keras on TensorFlow.

>>> from convserve.keras import RemoteConv2D, to_local, to_remote
>>> model = to_remote(keras.applications.MobileNetV2(), server="localhost:50051")
>>> y = model.predict(images)
"""

from convserve.keras.remote_conv2d import RemoteConv2D
from convserve.keras.swap import to_local, to_remote

__all__ = ["RemoteConv2D", "to_local", "to_remote"]
