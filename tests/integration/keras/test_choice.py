"""`to_remote(only=)`: which convolutions a server computes, and what is said of those that stay local."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import convserve
from convserve.keras import report, to_local, to_remote
from tests.support.keras.models import apart, kinds
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers
X = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)


@keras.saving.register_keras_serializable(package="test_choice")
class OwnConv2D(layers.Conv2D):
    """A subclass, whose computation nobody but its author knows."""


class Block(layers.Layer):
    """A layer with one of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inside = layers.Conv2D(3, 1, name="inside")

    def call(self, x: Any) -> Any:
        return self.inside(x)


def model_of() -> Any:
    inner = keras.Sequential([keras.Input((12, 12, 8)), layers.Conv2D(8, 3, name="large")], name="inner")
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)), layers.Conv2D(8, 1, name="small"), inner,
            layers.TimeDistributed(layers.Conv1D(4, 3, name="wrapped")), layers.DepthwiseConv2D(2, name="depthwise"),
        ]
    )  # fmt: skip


SMALL, LARGE = 2 * 12 * 12 * 3 * 8 + 12 * 12 * 8, 10 * 10 * 8 * (2 * 9 * 8 + 1)


@pytest.mark.parametrize(
    ("only", "remote", "reason"),
    [
        (None, {"small", "large", "wrapped", "depthwise"}, ""),
        (["large", "wrapped"], {"large", "wrapped"}, "only= does not choose it"),
        ({"depthwise": 1}.keys(), {"depthwise"}, "only= does not choose it"),
        ((), set(), "only= does not choose it"),
        (lambda layer: layer.name.startswith("s"), {"small"}, "only= does not choose it"),
        (lambda layer: isinstance(layer, layers.Conv2D), {"small", "large"}, "only= does not choose it"),
        (SMALL, {"small", "large"}, "FLOP for one sample"),
        (LARGE, {"large"}, "FLOP for one sample"),
        (LARGE + 1, set(), "FLOP for one sample"),
    ],
)
def test_only_those_that_are_chosen_become_remote(only: Any, remote: set[str], reason: str) -> None:
    made = to_remote(model_of(), only=only, fuse=True)
    assert {name for call in report(made).remote for name in call} == remote
    left = {each.name: each.reason for each in report(made).local}
    assert set(left) == {"small", "large", "wrapped", "depthwise"} - remote
    assert all(reason in text for text in left.values())


def test_what_is_not_chosen_is_keras_own(server: RunningServer) -> None:
    model = model_of()
    made = to_remote(model, server.target, only=["small", "wrapped"])
    assert kinds(made) == ["RemoteConv2D", *kinds(model)[1:]]
    assert apart(made(X), model(X)) < 1e-5
    assert kinds(to_remote(made, server.target, only=[])) == kinds(model)


@pytest.mark.parametrize(
    ("only", "text"),
    [
        (["smal"], "Did you mean 'small'"),
        (["block"], r"They are depthwise, large, small, wrapped\.$"),
        ("small", "names of layers, a function"),
        (True, "above 0"),
        (0, "above 0"),
        (-5, "above 0"),
        (2.5, "names of layers"),
        (layers.Conv2D, "a function of a layer"),
    ],
)
def test_what_chooses_nothing_is_refused(only: Any, text: str) -> None:
    with pytest.raises(convserve.InvalidRequestError, match=text) as refused:
        to_remote(model_of(), only=only)
    assert refused.value.violations[0].field == "only"


def test_it_is_said_why_others_stay_local(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)), OwnConv2D(3, 3, name="own"), layers.Conv2DTranspose(3, 2, name="transposed"),
            Block(name="block"), layers.Dense(3), layers.Conv2D(2, 1, name="plain"),
        ]
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "convserve"):
        remote = to_remote(model, server.target)
    assert report(remote).remote == (("plain",),)
    said = {each.name: (each.kind, each.reason) for each in report(remote).local}
    assert said["own"] == ("OwnConv2D", said["own"][1])
    assert "may compute something else than Conv2D" in said["own"][1]
    assert "transposed convolution" in said["transposed"][1]
    assert "within block (Block)" in said["inside"][1]
    assert len(said) == 3
    assert "layers computed remotely: 1, calls: 1, left local: 3" in caplog.text
    assert "transposed (Conv2DTranspose): " in caplog.text
    assert apart(remote(X), model(X)) < 1e-5
    for other in (model, None, to_local(remote)):
        with pytest.raises(convserve.InvalidRequestError, match="what to_remote returned"):
            report(other)


def test_what_a_server_refuses_stays_local(server: RunningServer) -> None:
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(3, 1, name="open")])
    (left,) = report(to_remote(model, server.target, only=1)).local
    assert "size of its input is open" in left.reason
    unbuilt = keras.Sequential([layers.Conv2D(3, 1, name="unbuilt")])
    (left,) = report(to_remote(unbuilt, server.target, only=1)).local
    assert "not known" in left.reason
