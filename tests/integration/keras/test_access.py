"""RemoteConv2D with a token and TLS: they hold for the server in this process, and are in no configuration or file."""

import copy
import os
import pickle

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf

from convserve import TLS, InternalError, InvalidRequestError, UnauthenticatedError
from convserve.keras import RemoteConv2D, to_remote
from convserve.keras.layers.remote_calls import KERAS_MARK
from tests.support.servers.certificates import Authority
from tests.support.servers.server_process import numpy_server

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf.config.set_visible_devices([], "GPU")

ADMIN, COMPUTE, UNKNOWN = (f"s3cret-{name}-0123456789" for name in ("admin", "compute", "unknown"))
X = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Gives the target of a server with TLS and tokens, and its CA."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder)
    pair = authority.issue("server")
    (folder / "tokens.txt").write_text(f"admin {ADMIN} read,compute,change\ncomputer {COMPUTE} compute\n")
    arguments = ("--tls-certificate", pair.certificate, "--tls-key", pair.key, "--tokens-file", folder / "tokens.txt")
    with numpy_server(*map(str, arguments)) as running:
        yield running.target, TLS(ca=authority.ca.read_bytes())


@pytest.fixture
def model():
    layers = [keras.Input((16, 16, 4)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(4, 1)]
    return keras.Sequential(layers, name="local")


def test_a_model_computes_with_them_and_neither_keeps_nor_saves_them(guarded, model, tmp_path):
    target, tls = guarded
    remote = to_remote(model, target, token=ADMIN, tls=tls)
    expected = model.predict(X, verbose=0)
    assert np.allclose(remote.predict(X, verbose=0), expected, atol=1e-5)
    again = copy.deepcopy(remote.layers[0])
    remote.save(tmp_path / "remote.keras")
    loaded = keras.saving.load_model(tmp_path / "remote.keras")
    assert np.allclose(loaded.predict(X, verbose=0), expected, atol=1e-5)  # this process knows them
    kept = (
        (tmp_path / "remote.keras").read_bytes(),
        str(remote.layers[0].get_config()).encode(),
        pickle.dumps(remote.layers[0]._remote),
        repr(vars(again)).encode(),
    )
    for each in kept:
        assert b"s3cret" not in each
        assert b"BEGIN CERTIFICATE" not in each
    assert "token" not in remote.layers[0].get_config()


def test_a_token_that_is_given_later_holds_for_all_layers_of_the_server(guarded, model):
    target, tls = guarded
    remote = to_remote(model, target, token=UNKNOWN, tls=tls)
    with pytest.raises(UnauthenticatedError):
        remote(X)
    RemoteConv2D(1, 1, server=target, token=ADMIN, tls=tls)
    assert np.allclose(remote(X), model.predict(X, verbose=0), atol=1e-5)
    # Who may not store layers computes with them all the same.
    RemoteConv2D(1, 1, server=target, token=COMPUTE, tls=tls)
    model.set_weights([2 * each for each in model.get_weights()])
    remote.set_weights(model.get_weights())
    assert np.allclose(remote(X), model.predict(X, verbose=0), atol=1e-5)


def test_a_token_that_others_could_read_is_refused_when_the_layer_is_made():
    with pytest.raises(InvalidRequestError, match="encrypted connection") as caught:
        RemoteConv2D(1, 1, server="gpu-host.invalid:1", token=ADMIN)
    assert ADMIN not in str(caught.value)


def test_keras_leaves_an_exception_with_its_mark_as_it_is():
    """If this fails, Keras has changed what it marks the exceptions of layers with: see KERAS_MARK."""

    class Failing(keras.layers.Layer):
        def call(self, _):
            error = InternalError("a text", error_id="7")
            setattr(error, KERAS_MARK, True)
            raise error

    with pytest.raises(InternalError, match=r"^a text$") as caught:
        Failing()(np.zeros((1, 2), "f4"))
    assert caught.value.error_id == "7"


@pytest.mark.parametrize("target", ["http://localhost:1", "gpu-host", "localhost:0", "unix:1", ""])
def test_what_is_no_server_is_refused_when_the_layer_is_made(target):
    for make in (lambda: RemoteConv2D(1, 1, server=target), lambda: to_remote(keras.Sequential(), target)):
        with pytest.raises(InvalidRequestError, match="target: Expected"):
            make()


def test_who_names_no_server_has_that_of_the_environment(monkeypatch):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 1)])
    assert RemoteConv2D(1, 1).server == "localhost:50051"
    monkeypatch.setenv("CONVSERVE_TARGET", "gpu-host:7")
    layers = [RemoteConv2D(1, 1), to_remote(model).layers[0]]
    monkeypatch.delenv("CONVSERVE_TARGET")
    for layer in layers:
        for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
            assert each.server == "gpu-host:7"


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("protocol", [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)])  # Keras' own from 2
def test_a_layer_can_be_copied_and_pickled(is_built, protocol):
    layer = RemoteConv2D(4, 3, activation="tanh", server="gpu-host:7", timeout=9, name="a")
    if is_built:
        layer.build((None, 8, 8, 3))
    # Protocol None stands for copies.
    made = [copy.copy(layer), copy.deepcopy(layer)]
    made = made if protocol is None else [pickle.loads(pickle.dumps(layer, protocol))]  # noqa: S301
    for each in made:
        assert type(each) is RemoteConv2D
        assert (each.server, each.timeout, each.name, each.built) == ("gpu-host:7", 9, "a", is_built)
        for own, copied in zip(layer.get_weights(), each.get_weights(), strict=True):
            np.testing.assert_array_equal(own, copied)
