"""Remote models in files: what cannot be written there says so, and what can says how it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from convserve.keras import to_local, to_remote
from tests.support.keras.truth import keras

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers
X = np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)


def model_of() -> Any:
    return keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(2, 3), layers.BatchNormalization()])


def archive(model: Any, path: Path) -> None:
    made = keras.export.ExportArchive()
    made.track(model)
    made.add_endpoint("serve", model.call, [keras.InputSpec(shape=(None, 6, 6, 3), dtype="float32")])
    made.write_out(path, verbose=False)


EXPORTS: list[Callable[[Any, Path], Any]] = [
    lambda model, path: model.export(path, verbose=False),
    lambda model, path: model.export(f"{path}.tflite", format="litert", verbose=False),
    tf.saved_model.save,
    archive,
]


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("fuse", [False, True])
def test_an_export_says_what_to_do(tmp_path: Path, export: Any, fuse: bool) -> None:
    remote = to_remote(model_of(), "127.0.0.1:1", fuse=fuse)
    # TensorFlow's own export makes an error of its own of it.
    with pytest.raises(Exception, match=r"(?s)export: .*Export the model that convserve\.keras\.to_local"):
        export(remote, tmp_path / "model")


def test_what_to_local_returns_can_be_exported(tmp_path: Path) -> None:
    model = model_of()
    to_local(to_remote(model, "127.0.0.1:1", fuse=True)).export(tmp_path / "model", verbose=False)
    assert np.allclose(tf.saved_model.load(str(tmp_path / "model")).serve(X), model(X), atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
def test_who_loads_without_the_import_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fuse: bool
) -> None:
    to_remote(model_of(), "127.0.0.1:1", fuse=fuse).save(tmp_path / "remote.keras")
    registered = keras.saving.get_custom_objects()
    for name in [name for name in registered if name.startswith("convserve>")]:
        monkeypatch.delitem(registered, name)  # as where convserve.keras was not imported
    with pytest.raises(TypeError, match=r"'load_with': 'import convserve\.keras'"):
        keras.models.load_model(tmp_path / "remote.keras")


def own_loss(truth: Any, found: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(truth - found))


class OwnLoss(keras.losses.Loss):
    """A loss that Keras cannot find by its name."""

    def call(self, truth: Any, found: Any) -> Any:
        return own_loss(truth, found) * 2


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that Keras cannot find by its name."""

    def __call__(self, step: Any) -> Any:
        return keras.ops.where(step < 0, 1.0, 0.5)

    def get_config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("loss", [own_loss, OwnLoss(), lambda truth, found: 3 * own_loss(truth, found)])
def test_what_a_model_was_compiled_with_is_handed_on(loss: Any) -> None:
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(2, 3)])
    metric = keras.metrics.MeanAbsoluteError(name="mae")
    model.compile(keras.optimizers.SGD(Halving()), loss, metrics=[metric, own_loss])
    local = to_local(to_remote(model, "127.0.0.1:1"))
    assert local.loss is loss
    assert local.optimizer is not model.optimizer
    labels = np.ones((2, 4, 4, 2), np.float32)
    assert np.allclose(local.evaluate(X, labels, verbose=0), model.evaluate(X, labels, verbose=0))
    assert metric not in local._compile_metrics.metrics
    local.fit(X, labels, verbose=0)
    assert np.isclose(float(local.optimizer.learning_rate), 0.5)
