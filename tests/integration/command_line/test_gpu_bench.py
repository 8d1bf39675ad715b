"""`python -m tests.bench.gpu`: on the CPU with small inputs it goes the whole way; without a GPU it says what lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.gpu_cases import MODES, RESNET, resnet
from tests.support import gpu_available
from tests.support.keras.truth import keras
from tests.support.repository import ROOT


def command(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.bench.gpu", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))


@pytest.mark.slow  # make slow
def test_without_a_gpu_it_says_what_is_missing() -> None:
    if gpu_available.lacking() is None:
        pytest.skip("this machine has a GPU")
    answer = command("--quick")
    assert answer.returncode == 3
    assert answer.stdout == ""
    assert answer.stderr.startswith(
        "Expected a machine with an NVIDIA GPU on which a server can compute. This one lacks "
    )
    assert answer.stderr.count("\n") == 1


@pytest.mark.slow  # make slow
def test_on_the_cpu_it_goes_the_whole_way(tmp_path: Path) -> None:
    written = tmp_path / "gpu.json"
    answer = command("--device", "cpu", "--quick", "--no-tests", "--layers", "^W[35]$|conv1$", "--json", str(written))
    assert answer.returncode == 0, answer.stderr
    result = json.loads(written.read_text())
    assert result["command"].startswith("python -m tests.bench.gpu --device cpu --quick")
    assert result["device"] == "cpu:0"
    assert result["quick"] is True
    assert result["shared_memory"] is True
    assert {(row["layer"], row["mode"]) for row in result["rows"]} == {
        (layer, mode) for layer in ("W3", "W5", f"{RESNET} conv1") for mode in MODES
    }
    for row in result["rows"]:
        assert not row["failures"], row
        measured = {"shared memory", "gRPC", "tensorflow"} | ({"torch"} - set(result["absent"]))
        assert set(row["subjects"]) == set(row["checks"]) == measured
        assert all(check["ok"] and check["difference"] <= row["limit"] for check in row["checks"].values()), row
        assert row["subjects"]["gRPC"]["whole_ms"] > row["subjects"]["gRPC"]["compute_ms"] > 0
        assert row["subjects"]["tensorflow"]["device_ms"] > 0
        assert row["over"]["shared memory compute_ms"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("# On a GPU\n")
    assert table.removeprefix("# On a GPU\n\n") in answer.stdout
    assert "A quick pass, not for quoting." in table


def test_resnets_layers_are_those_of_keras() -> None:
    model = keras.applications.ResNet50(weights=None)
    expected: dict[tuple[object, ...], int] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.use_bias
            padding = "valid" if layer.kernel_size == (1, 1) else layer.padding
            key = (
                layer.filters, layer.kernel_size[0], layer.strides[0], padding, layer.activation.__name__,
                tuple(layer.input.shape[1:]),
            )  # fmt: skip
            expected[key] = expected.get(key, 0) + 1
    found = {}
    for each in resnet():
        activation = each.activation or "linear"
        key = each.filters, each.kernel_size, each.strides, each.padding, activation, each.input_shape[1:]
        found[key] = each.count
    assert found == expected
