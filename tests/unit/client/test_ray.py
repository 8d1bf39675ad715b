"""The stage of Ray Data's, with an engine of its own process, and what it refuses. Ray need not be there."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest

from convserve import (
    AsyncClient,
    AsyncStoredLayer,
    Client,
    Conv2D,
    ConvserveError,
    InvalidArgumentError,
    Layer,
    StoredLayer,
)
from convserve.errors import InvalidRequestError, InvalidTensorError, InvalidWeightsError
from convserve.ray import Convolve

pytest.importorskip("convserve_server.local", reason="the server's packages are not here", exc_type=ImportError)
import convserve_server.local
from convserve_server.local import Engine, parts
from tests.support.engines.numpy_engine import NumpyEngine, convolved

LAYER = Layer(Conv2D(2, 3, data_format="channels_last"), np.arange(54).reshape(3, 3, 3, 2) / 54, np.ones(2))
HEAD = Conv2D(4, 1, kernel_initializer="ones", data_format="channels_last")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)


COPIES = [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))]  # noqa: S301


@pytest.fixture(autouse=True)
def numpys(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Engines of numpy's, which stand in for TensorFlow's: those that were made."""
    made: list[Engine] = []

    def engine(*arguments: Any, **settings: Any) -> Engine:
        made.append(Engine(*arguments, load_engine=lambda *_, **__: NumpyEngine(), **settings))
        return made[-1]

    monkeypatch.setattr(convserve_server.local, "Engine", engine)
    monkeypatch.setattr(parts, "flops_per_s", lambda _: math.inf)  # measuring NumPy takes longer than anything here
    return made


def test_a_batch_keeps_its_other_columns_and_gets_the_output() -> None:
    IMAGES.flags.writeable = False  # as Ray's are
    batch = {"image": IMAGES, "path": np.array(list("abcd"))}
    made = Convolve(LAYER, device="cpu")(batch)
    assert list(made) == ["path", "features"]
    np.testing.assert_allclose(made["features"], convolved(LAYER, IMAGES), rtol=1e-6)
    assert list(batch) == ["image", "path"]
    named = Convolve(LAYER, device="cpu", column="image", output="y", keep=True, output_dtype="float64")(batch)
    assert list(named) == ["image", "path", "y"]
    assert named["y"].dtype == "float64"
    assert list(Convolve(LAYER, device="cpu", output="image")({"image": IMAGES})) == ["image"]


@pytest.mark.parametrize("server", ["10.0.0.1:1", Client("10.0.0.1:1")])
def test_what_a_client_may_not_do_in_a_workers_process_the_first_batch_says(
    server: str | Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pickle.dumps(Convolve(LAYER, server=server))
    monkeypatch.setenv("CONVSERVE_TOKEN", "that-of-the-worker")
    stage = pickle.loads(written)  # noqa: S301
    with pytest.raises(InvalidRequestError, match="tls: Expected an encrypted connection"):
        stage({"image": IMAGES})


def test_several_layers_one_of_them_drawn_with_seeds() -> None:
    made = Convolve([LAYER, HEAD], device="cpu")({"image": IMAGES})["features"]
    np.testing.assert_allclose(made, convolved(LAYER, IMAGES).sum(-1, keepdims=True).repeat(4, -1), rtol=1e-6)
    drawn = [Convolve(Conv2D(2, 3).with_seed(7), device="cpu")({"image": IMAGES})["features"] for _ in range(2)]
    np.testing.assert_array_equal(*drawn)


def test_images_of_several_sizes() -> None:
    images = np.empty(3, object)
    images[:] = [IMAGES[0], IMAGES[1, :5], IMAGES[2, :, :4]]
    made = Convolve(LAYER, device="cpu")({"image": images})["features"]
    assert made.dtype == object
    for image, features in zip(images, made, strict=True):
        np.testing.assert_allclose(features, convolved(LAYER, image[np.newaxis])[0], rtol=1e-6)
    assert Convolve(LAYER, device="cpu")({"image": images[:0]})["features"].shape == (0,)


@pytest.mark.parametrize("copied", COPIES)
def test_it_is_a_value_that_begins_where_it_is_called(copied: Any, numpys: list[Engine]) -> None:
    made = Convolve(LAYER, device="cpu", settings={"max_call_bytes": "1MB"}, output="y")
    expected = made({"image": IMAGES})["y"]
    again = copied(made)
    assert len(numpys) == 1
    np.testing.assert_array_equal(again({"image": IMAGES})["y"], expected)
    assert len(numpys) == 2
    again({"image": IMAGES})
    assert len(numpys) == 2


class Counting(Convolve):
    """A stage with attributes and arguments of its own."""

    def __init__(self, step: int) -> None:
        super().__init__(LAYER, device="cpu")
        self.step = step


@pytest.mark.parametrize("copied", COPIES)
def test_what_a_subclass_has_is_copied_too(copied: Any) -> None:
    made = Counting(3)
    made({"image": IMAGES})
    again = copied(made)
    assert (type(again), again.step) == (Counting, 3)
    assert again({"image": IMAGES})["features"].shape == (4, 6, 7, 2)


def test_stored_layers_of_either_client_are_computed_where_their_weights_are_known() -> None:
    expected = Convolve(LAYER, device="cpu")({"image": IMAGES})["features"]
    parts = {"digest": LAYER.digest, "config": LAYER.config, "kernel_shape": LAYER.kernel_shape}
    for kind, client in ((StoredLayer, Client("localhost:1")), (AsyncStoredLayer, AsyncClient("localhost:1"))):
        stored = pickle.loads(pickle.dumps(kind(client, **parts, local=LAYER)))  # noqa: S301
        np.testing.assert_array_equal(Convolve(stored, device="cpu")({"image": IMAGES})["features"], expected)
    with pytest.raises(InvalidWeightsError, match="only servers have"):
        Convolve(kind(client, **parts), device="cpu")({"image": IMAGES})


@pytest.mark.parametrize(
    ("layers", "options", "text"),
    [
        (LAYER, {}, "server: Expected either server= or device=. Received neither"),
        (LAYER, {"server": "localhost:1", "device": "cpu"}, "Received both"),
        (LAYER, {"server": "localhost:1", "settings": {}}, "settings: Expected none beside server="),
        (LAYER, {"server": "no port"}, "target"),
        (LAYER, {"server": "localhost:1", "timeout": -1}, "timeout"),
        (LAYER, {"server": "localhost:1", "output_dtype": "int8"}, "output_dtype"),
        ([], {"device": "cpu"}, "layers: Expected at least one layer"),
        ("stem", {"device": "cpu"}, "names are a server's"),
        ([LAYER, 5], {"server": "localhost:1"}, r"layers\[1\]\."),
        ([LAYER, Conv2D(2, 3)], {"server": "localhost:1"}, r"layers\[1\]\.layer: .*each actor would draw others"),
    ],
)
def test_arguments_that_make_no_sense(layers: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        Convolve(layers, **options)


@pytest.mark.parametrize(
    ("batch", "error", "text"),
    [
        ({"img": IMAGES}, InvalidRequestError, "column: Expected one of the batch's columns, 'img'. Received 'image'"),
        (IMAGES, InvalidRequestError, "batch: Expected a dict of arrays, Ray's batch_format='numpy'. Received ndarray"),
        ({"image": IMAGES[0]}, InvalidTensorError, "input: "),
        ({"image": IMAGES[..., :2]}, InvalidWeightsError, "Received 2 "),
        ({"image": IMAGES.astype("i8")}, InvalidTensorError, "input: "),
    ],
)
def test_batches_that_make_no_sense(batch: Any, error: type[ConvserveError], text: str) -> None:
    with pytest.raises(error, match=text):
        Convolve(LAYER, device="cpu")(batch)


def test_what_is_wrong_with_the_engine_is_said_by_the_first_batch() -> None:
    made = Convolve(LAYER, device="cpu", settings={"max_call_bites": 1})
    with pytest.raises(InvalidRequestError, match="max_call_bites: Expected a setting out of"):
        made({"image": IMAGES})


def test_no_ray_is_imported() -> None:
    assert "ray" not in sys.modules
    assert repr(Convolve(LAYER, device="cpu")) == "<convserve.ray.Convolve cpu 'image' to 'features'>"
