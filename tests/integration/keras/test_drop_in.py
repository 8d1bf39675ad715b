"""RemoteConv2D stands in for `keras.layers.Conv2D`: the same numbers, losses, shapes and files; no training."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf

import convserve
import convserve.keras
from convserve.keras import RemoteConv2D
from tests.support.keras.models import apart
from tests.support.keras.twins import built_twins
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel("ERROR")  # of a model for each case, TensorFlow says that it traces often

X = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


twins = functools.partial(built_twins, size=16)


class Puts:
    """Counts the layers that clients put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digests: list[bytes] = []
        put = convserve.Client.put

        def counting(client: convserve.Client, layer: Any, *args: Any, **parameters: Any) -> Any:
            self.digests.append(layer.digest)
            return put(client, layer, *args, **parameters)

        monkeypatch.setattr(convserve.Client, "put", counting)


CASES: list[dict[str, Any]] = [
    {},
    {"strides": 2, "padding": "same", "activation": "relu"},
    {"dilation_rate": (2, 1), "groups": 2, "use_bias": False},
    {"activation": "glu"},  # halves the channels
    {"activation": "softmax"},
    {"activation": lambda x: x * 2 + 1},
    {"activation": keras.ops.gelu},  # approximate, other than keras.activations.gelu
    {"activation": keras.layers.ReLU(max_value=0.5)},
    {"activation": "gelu", "dtype": "mixed_float16"},
    {"dtype": "bfloat16"},
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float64"},
    {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": keras.regularizers.L2(0.1)},
    {"kernel_regularizer": "l2", "trainable": False, "kernel_constraint": "non_neg"},
]


@pytest.mark.parametrize("parameters", CASES, ids=lambda each: "-".join(each) or "defaults")
def test_it_computes_what_keras_computes(server: RunningServer, parameters: dict[str, Any]) -> None:
    original, remote = twins(server.target, 6, 3, **parameters)
    expected, found = original(X), remote(X)
    assert found.dtype == expected.dtype
    assert apart(found, expected) < TOLERANCE[original.compute_dtype]
    assert np.allclose([float(each) for each in remote.losses], [float(each) for each in original.losses], rtol=1e-5)
    assert len(remote.losses) == len(original.losses)
    assert remote.count_params() == original.count_params()

    in_graph = tf.function(remote, input_signature=[tf.TensorSpec((None, 16, 16, 4), remote.compute_dtype)])
    assert apart(in_graph(tf.cast(X, remote.compute_dtype)), expected) < TOLERANCE[original.compute_dtype]
    in_keras = tf.function(original, input_signature=in_graph.input_signature).get_concrete_function()
    assert in_graph.get_concrete_function().output_shapes.as_list() == in_keras.output_shapes.as_list()


def test_channels_first_works_where_tensorflow_has_no_kernel_for_it(server: RunningServer) -> None:
    _, remote = twins(server.target, 6, 3, data_format="channels_first")
    last, _ = twins(server.target, 6, 3)
    last.set_weights(remote.get_weights())
    model = keras.Sequential([keras.Input((4, 16, 16)), remote])
    assert model.output_shape == (None, 6, 14, 14)
    assert apart(model.predict(X.transpose(0, 3, 1, 2), verbose=0), np.transpose(last(X), (0, 3, 1, 2))) < 1e-5


def test_arguments_go_by_position_as_in_keras_and_keras_refuses_them(server: RunningServer) -> None:
    remote = RemoteConv2D(6, 3, (2, 2), "same", "channels_last", 1, 2, "relu", False, server=server.target)
    assert (remote.filters, remote.groups, remote.use_bias, remote.name[:13]) == (6, 2, False, "remote_conv2d")
    with pytest.raises(ValueError, match="evenly divisible"):
        RemoteConv2D(6, 3, groups=4)
    with pytest.raises(convserve.InvalidRequestError, match="target"):
        RemoteConv2D(6, 3, server="")
    with pytest.raises(convserve.InvalidRequestError, match="timeout"):
        RemoteConv2D(6, 3, timeout=0)


def test_an_empty_batch_gives_an_empty_batch(server: RunningServer) -> None:
    original, remote = twins(server.target, 6, 3)  # which with oneDNN's kernels computes no empty batch
    assert remote(X[:0]).shape == original.compute_output_shape((0, *X.shape[1:])) == (0, 14, 14, 6)
    assert tf.function(remote)(X[:0]).shape == (0, 14, 14, 6)


def test_inside_a_data_set(server: RunningServer) -> None:
    original, remote = twins(server.target, 6, 3, padding="same", strides=2)
    images = np.random.default_rng(2).random((12, 16, 16, 4), np.float32)
    mapped = tf.data.Dataset.from_tensor_slices(images).batch(4).map(remote, num_parallel_calls=3)
    assert mapped.element_spec.shape.as_list() == [None, 8, 8, 6]
    assert apart(np.concatenate(list(mapped)), original(images)) < 1e-5


def test_weights_are_put_once_and_again_when_they_changed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = Puts(monkeypatch)
    original, remote = twins(server.target, 6, 3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((16, 16, 4)), remote])
    in_graph = tf.function(remote)

    def check(expected_puts: int) -> None:
        expected = original(X)
        for found in (remote(X), in_graph(X), model.predict(X, verbose=0)):
            assert apart(found, expected) < 2e-3
        assert len(puts.digests) == expected_puts

    check(1)
    for layer in (original, remote):
        layer.set_weights([2 * each for each in layer.get_weights()])
    check(2)
    for layer in (original, remote):
        layer.kernel.assign(-layer.kernel)
    check(3)
    for layer in (original, remote):  # past Keras, in place
        layer.bias.value.scatter_nd_update([[0]], [9.0])
    check(4)
    # The digest is that of the weights as they are, not as they were cast for computing.
    assert puts.digests[-1] == convserve.Layer.from_keras(original).digest


def test_equal_weights_share_a_digest_and_a_layer_that_was_lost_is_given_again(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, client: convserve.Client
) -> None:
    puts = Puts(monkeypatch)
    (_, one), (_, other) = twins(server.target, 5, 3, name="one"), twins(server.target, 5, 3, name="other")
    before = one(X)
    assert np.array_equal(before, other(X))
    assert len(puts.digests) == 2
    assert len(set(puts.digests)) == 1
    stored = next(each for each in client.layers() if each.digest == puts.digests[0])
    client.delete(stored)
    assert np.array_equal(one(X), before)
    assert len(puts.digests) == 2


def test_threads_share_a_layer(server: RunningServer) -> None:
    original, remote = twins(server.target, 6, 3)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(remote(X))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(apart(each, original(X)) for each in found) < 1e-5
    assert len(found) == 8


def test_training_is_refused_in_words(server: RunningServer) -> None:
    _, remote = twins(server.target, 6, 3, name="stem")
    with pytest.raises(convserve.InvalidRequestError, match=r"training=True: .*to_local") as failure:
        remote(X, training=True)
    assert failure.value.__notes__ == ["In the RemoteConv2D 'stem'."]

    model = keras.Sequential([keras.Input((16, 16, 4)), remote, keras.layers.GlobalMaxPooling2D()])
    for eagerly in (False, True):
        model.compile("sgd", "mse", run_eagerly=eagerly)
        with pytest.raises(convserve.InvalidRequestError, match=r"training=True: .*to_local"):
            model.fit(X, np.zeros((2, 6)), verbose=0)

    @tf.autograph.experimental.do_not_convert
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(remote(X))
        return tape.gradient(loss, remote.trainable_variables)

    for compute in (gradients, tf.function(gradients)):
        with pytest.raises(convserve.InvalidRequestError, match="no gradient through a layer"):
            compute()


def test_a_head_learns_on_frozen_remote_layers(server: RunningServer) -> None:
    original, remote = twins(server.target, 6, 3, trainable=False)
    before = remote.get_weights()
    head = [keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(1, kernel_initializer="ones")]
    histories = []
    for layer in (original, remote):
        model = keras.Sequential(
            [keras.Input((16, 16, 4)), layer, *(type(each).from_config(each.get_config()) for each in head)]
        )
        model.compile(keras.optimizers.SGD(0.01), "mse")
        histories.append(model.fit(X, np.ones((2, 1)), epochs=3, verbose=0).history["loss"])
    assert np.allclose(*histories, rtol=1e-4)
    assert all(map(np.array_equal, remote.get_weights(), before))


def test_evaluate_agrees_where_keras_looks_for_logits(server: RunningServer) -> None:
    original, remote = twins(server.target, 6, 3, activation="softmax")
    labels = np.random.default_rng(3).integers(0, 6, (2, 14, 14))
    losses = []
    for layer in (original, remote):
        layer.set_weights([40 * each for each in layer.get_weights()])  # so that probabilities round to 0
        model = keras.Sequential([keras.Input((16, 16, 4)), layer])
        model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
        losses.append(model.evaluate(X, labels, verbose=0))
    assert np.allclose(*losses, rtol=1e-5)


def test_a_mask_is_refused_where_keras_drops_it(server: RunningServer) -> None:
    _, remote = twins(server.target, 2, 3)
    masked = np.ma.masked_less(X, 0)
    with pytest.raises(convserve.InvalidTensorError, match=r"such as by \.filled\(0\)"):
        remote(masked)
    kernel, bias = remote.get_weights()
    with pytest.raises(convserve.InvalidTensorError, match="weights: "):
        remote.set_weights([np.ma.masked_less(kernel, 0), bias])
    np.testing.assert_array_equal(remote.get_weights()[0], kernel)
    assert remote(masked.filled(0)).shape == remote(np.ma.masked_array(X)).shape == (2, 14, 14, 2)


def test_errors_are_ours_and_name_the_layer(server: RunningServer) -> None:
    nobody = RemoteConv2D(6, 3, server="127.0.0.1:1", timeout=30, name="stem")
    model = keras.Sequential([keras.Input((16, 16, 4)), nobody])
    for call in (nobody, model):
        with pytest.raises(convserve.UnavailableError) as failure:
            call(X)
        assert failure.value.__notes__ == ["In the RemoteConv2D 'stem' on 127.0.0.1:1."]
    with pytest.raises(tf.errors.UnknownError, match=r"(?s)UnavailableError: .*'stem' on 127\.0\.0\.1:1"):
        model.predict(X, verbose=0)
    _, remote = twins(server.target, 6, 3)
    with pytest.raises(convserve.InvalidTensorError, match="int32") as refusal:
        remote(X.astype(np.int32))
    assert refusal.value.violations[0].field == "input"


def test_it_is_saved_loaded_copied_and_cloned_like_any_layer(server: RunningServer, tmp_path: Path) -> None:
    _, remote = twins(server.target, 6, 3, activation="relu", name="stem")
    model = keras.Sequential([keras.Input((16, 16, 4)), remote, RemoteConv2D(2, 1, server=[server.target], timeout=90)])
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    for same in (keras.models.load_model(tmp_path / "model.keras"), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert [type(each) for each in same.layers] == [RemoteConv2D, RemoteConv2D]
        assert [(each.server, each.timeout) for each in same.layers] == [
            (server.target, None), ((server.target,), 90)
        ]  # fmt: skip
        assert np.array_equal(same.predict(X, verbose=0), expected)
    clone = keras.models.clone_model(model)
    assert clone.get_config() == model.get_config()
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(clone.predict(X, verbose=0), expected)
    assert np.array_equal(copy.deepcopy(remote)(X), remote(X))
    assert RemoteConv2D.from_config(remote.get_config()).get_config() == remote.get_config()


def test_it_asks_for_keras_on_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert convserve.keras.swap.keras is keras  # and not itself
    with monkeypatch.context() as patched:
        patched.setattr(keras.backend, "backend", lambda: "jax")
        with pytest.raises(convserve.InvalidRequestError, match="KERAS_BACKEND=tensorflow"):
            RemoteConv2D(6, 3)
    code = "import sys; sys.modules['keras'] = None; import convserve.keras"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError: convserve.keras needs Keras on TensorFlow: pip install" in answer.stderr


@pytest.mark.parametrize("shared", [False, True], ids=["gRPC", "shared memory"])
def test_tensorflow_takes_a_large_output_where_the_client_has_put_it(
    server: RunningServer, sharing_server: RunningServer, shared: bool
) -> None:
    layer = RemoteConv2D(2, 1, bias_initializer="ones", server=(sharing_server if shared else server).target)
    x = np.random.default_rng(1).random((1, 600, 600, 1), "f4")
    expected = layer.compute_output_shape(x.shape)
    outputs = []
    convolve = layer._remote.convolve
    layer._remote.convolve = lambda *arguments: outputs.append(convolve(*arguments)) or outputs[-1]
    y = layer(x)
    assert y.shape == expected
    assert apart(y, x * layer.kernel.numpy()[0] + 1) < 1e-6
    outputs[0][...] = 7
    assert float(tf.reduce_min(y)) == 7
