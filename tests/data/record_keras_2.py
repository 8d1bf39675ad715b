"""Writes a model as TensorFlow 2.12 to 2.15 saved it, which `tests/unit/client/importing/test_old_archives.py` reads.

    python tests/data/record_keras_2.py tests/data/keras_2.zip    # once in an environment of each version

A `.keras` archive and an `.h5` file of the same model are added under the version's name.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

keras = tf.keras
layers = keras.layers


def conv2d(name, **options):
    """Returns a layer that takes and gives four channels."""
    return layers.Conv2D(4, 1, name=name, **options)


def model():
    """Returns a model of all that numbers depend on: shared layers, models in models, one of them without weights."""
    shared = conv2d("shared")
    x = keras.Input((8, 8, 4))
    inner = keras.Model(x, conv2d("a")(shared(x)), name="inner")
    empty = keras.Sequential([keras.Input((8, 8, 4)), layers.ReLU()], name="empty")
    sequence = keras.Sequential([keras.Input((8, 8, 4)), conv2d("a"), conv2d("b", use_bias=False)], name="sequence")
    x = keras.Input((8, 8, 4))
    y = sequence(empty(inner(shared(conv2d("a", activation="relu")(x)))))
    y = layers.DepthwiseConv2D(1)(layers.BatchNormalization()(y)) + 1.0
    y = conv2d("last", groups=2, dtype="mixed_float16", activation=layers.LeakyReLU(0.1), kernel_regularizer="l2")(y)
    return keras.Model(x, y, name="outer")


def main(path):
    """Adds this version's two files."""
    made, rng = model(), np.random.default_rng(0)
    made.set_weights([rng.normal(size=each.shape) for each in made.get_weights()])
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for suffix, save_format in (("keras", "keras_v3"), ("h5", "h5")):
            name = f"{tf.__version__}.{suffix}"
            made.save(Path(folder, name), save_format=save_format)
            archive.write(Path(folder, name), name)


if __name__ == "__main__":
    main(sys.argv[1])
