"""The engine: the only files that know TensorFlow and Keras."""
