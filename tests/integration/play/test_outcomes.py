"""What the page says of settings, against a real server: numbers, sums, refusals, and the code to take home."""

import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import convserve
from convserve.play import layout, view
from convserve.play.convolution.calls import outcome
from convserve.play.convolution.code import command_line, keras_code, python_code
from convserve.play.convolution.settings import Settings

GRID = Settings(picture="numbers", kernel="numbers", filters=2)
SMALL = Settings(size=16)
VARIED = {
    "drawn": SMALL,
    "strided, in Keras' padding": Settings(
        size=16, strides=(2, 3), padding="same", kernel_size=(3, 5), activation="relu"
    ),
    "groups without a bias": Settings(
        size=16, groups=3, filters=6, use_bias=False, kernel_initializer="he_normal(seed=4)"
    ),
    "channels first": Settings(size=16, data_format="channels_first", dilation_rate=(2, 1), bias_initializer="ones"),
    "numbers": dataclasses.replace(GRID, bias_initializer="random_normal", padding="same"),
    "numbers for three channels": Settings(size=16, kernel="numbers", filters=3, kernel_size=(2, 3)),
    "a classic": Settings(picture="digit", size=24, kernel="gaussian"),
    "a classic for each channel": Settings(size=16, kernel="sobel-x", strides=(2, 2), bias_initializer="ones"),
    "explicit padding": dataclasses.replace(GRID, padding="1,0,2,1"),
    "what Keras refuses": dataclasses.replace(GRID, padding="2,2,2,2", strides=(2, 2), dilation_rate=(2, 2)),
    "with parameters": Settings(
        size=12,
        activation="leaky_relu(negative_slope=0.3)",
        kernel_regularizer="l2(l2=0.1)",
        activity_regularizer="l1",
        kernel_constraint="max_norm(max_value=0.1)",
        name="edges",
        trainable=False,
        input_shape="60,60,3",
    ),
    "in other numbers": Settings(picture="checkerboard", size=12, dtype="mixed_float16", activation="sigmoid"),
    "halved by glu": Settings(size=12, activation="glu", filters=4),
}


@pytest.mark.parametrize("name", VARIED)
def test_every_pixel_that_can_be_chosen_has_a_sum(client, name):
    made = outcome(VARIED[name], client)
    assert made.refusals == {}
    assert made.maps.shape[:2] == made.result.output.shape[1:3] or made.settings.data_format == "channels_first"
    linear = made.conv2d.activation.keras_name == "linear"
    for wanted in ((0, 0, 0), (10**6, 10**6, 10**6), (1, 2, 1)):
        chosen = dataclasses.replace(made.settings, **dict(zip(("row", "column", "filter"), wanted, strict=True)))
        shown = dataclasses.replace(made, settings=chosen)
        value = float(made.maps[view.pixel_of(shown)])
        if linear:
            assert view.pixel_sum(shown).total == pytest.approx(value, abs=2e-3)
        assert f"{value:.6g}" in view.sum_of_pixel(shown)
    assert view.facts(made).count('class="card') >= 5
    assert view.pictures(made).count('class="map"') == min(16, made.maps.shape[-1])


@pytest.mark.parametrize("name", VARIED)
def test_the_python_gives_the_same_numbers(server, client, name):
    made = outcome(VARIED[name], client)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(python_code(made, server.target), names)  # noqa: S102 (code of ours)
    np.testing.assert_array_equal(names["y"], made.result.output)


def run_command(text, folder):
    """Runs the text in a shell in which `python` and `convserve` are those of this environment."""
    (folder / "bin").mkdir()
    for name, words in (("python", ""), ("convserve", " -m convserve")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "y.npy")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "with parameters")) for name in VARIED]
)
def test_the_command_line_gives_the_same_numbers(server, client, tmp_path, name):
    made = outcome(VARIED[name], client)
    np.testing.assert_array_equal(run_command(command_line(made, server.target), tmp_path), made.result.output)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
def test_keras_gives_the_same_numbers(client, name):
    made = outcome(VARIED[name], client)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(keras_code(made), names)  # noqa: S102 (code of ours)
    loose = 2e-3 if made.settings.dtype != "float32" else 2e-5
    np.testing.assert_allclose(names["y"].astype(float), made.result.output.astype(float), rtol=loose, atol=loose * 100)


@pytest.mark.parametrize(
    ("changes", "control"),
    [
        ({"strides": (2, 1), "dilation_rate": (1, 2)}, "strides"),
        ({"groups": 2}, "groups"),
        ({"groups": 3}, "filters"),
        ({"kernel_size": (9, 9), "size": 8}, "picture"),
        ({"activation": "glu", "filters": 3}, "activation"),
        ({"activation": "leaky_relu(slope=2)"}, "activation"),
        ({"kernel_initializer": "orthogonal(gain=x)"}, "kernel_initializer"),
        ({"kernel_initializer": "identity"}, "kernel_initializer"),
        ({"bias_initializer": "orthogonal"}, "bias_initializer"),
        ({"kernel_regularizer": "l2(l2=-1)"}, "kernel_regularizer"),
        ({"activity_regularizer": "orthogonal_regularizer"}, "activity_regularizer"),
        ({"kernel_constraint": "max_norm(axis=9)"}, "kernel_constraint"),
        ({"padding": "-1,0,0,0"}, "padding"),
        ({"name": "a/b"}, "name"),
        ({"input_shape": "600"}, "input_shape"),
        ({"input_shape": "wide"}, "input_shape"),
        ({"picture": "upload"}, "picture"),
    ],
)
def test_a_refusal_stands_at_its_control(client, changes, control):
    made = outcome(dataclasses.replace(SMALL, **changes), client)
    assert list(made.refusals) == [control]
    assert "Expected" in made.refusals[control][0]
    assert made.result is None or control == "input_shape"


def test_a_server_that_does_not_answer_is_told_of():
    with convserve.Client("127.0.0.1:1", timeout=0.2) as nobody:
        made = outcome(SMALL, nobody)
    assert list(made.refusals) == [""]
    assert made.plan is not None


def test_a_constraint_is_shown_by_what_an_update_makes_of_the_kernel(client):
    made = outcome(dataclasses.replace(GRID, kernel_constraint="non_neg"), client)
    assert made.kernel.min() < 0
    np.testing.assert_array_equal(made.constrained, np.maximum(made.kernel, 0))
    assert "non_neg" in view.kernels(made)


def test_losses_and_the_later_shape_are_shown(client):
    text = view.facts(outcome(VARIED["with parameters"], client))
    assert re.search(r"activity \d", text)
    assert "(None, 58, 58, 4)" in text


def test_two_outcomes_stand_side_by_side(client):
    held, now = outcome(GRID, client), outcome(dataclasses.replace(GRID, padding="same", groups=3), client)
    text = view.comparison(held, now)
    assert "(1, 3, 3, 2)" in text
    assert "<td>valid</td><td>same</td>" in text
    assert "groups" in text
    assert "Both are the same" in view.comparison(held, held)


def test_what_people_type_is_escaped(client):
    made = outcome(dataclasses.replace(SMALL, name="<b>a/b", input_shape="<script>"), client)
    text = layout.refusal(made, "name", "input_shape") + layout.plain_refusal("<script>")
    assert "&lt;script" in text
    assert "<script" not in text
    named = outcome(dataclasses.replace(SMALL, name="<script>"), client)
    assert "<script" not in "".join(view.code(named, "localhost", "<script>.png").values()) + view.facts(named)
