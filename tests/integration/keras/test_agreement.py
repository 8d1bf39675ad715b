"""Layers of well-known models on the service and in Keras. `python tests/agreement.py` takes every one of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from tests import agreement
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer


def kind(case: agreement.Case) -> tuple[Any, ...]:
    """Returns what tells layers apart, apart from their sizes."""
    layer = case.layer
    return layer.kernel_size, layer.strides, layer.padding, layer.use_bias, layer.activation.__name__


def cheapest_of_each_kind() -> dict[tuple[Any, ...], agreement.Case]:
    """Returns one layer of each kind in four models, the one with the least to compute."""
    found: dict[tuple[Any, ...], agreement.Case] = {}
    for model in ("ResNet50", "MobileNetV2", "EfficientNetB0", "InceptionV3"):
        for case in agreement.cases(model):
            best = found.get(kind(case))
            if best is None or _flops(case) < _flops(best):
                found[kind(case)] = case
    return found


def _flops(case: agreement.Case) -> int:
    return convserve.Conv2D.from_keras(case.layer).plan(case.input_shape).flops


def test_layers_of_well_known_models_agree_with_keras(client: convserve.Client) -> None:
    """One of each kind: windows of 1, 3, 5 and 7, 1x7 and 7x1, strides 1 and 2, "same" and "valid"."""
    chosen = cheapest_of_each_kind()
    assert {size for size, *_ in chosen} >= {(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1), (1, 3), (3, 1)}
    assert {(strides, padding) for _, strides, padding, *_ in chosen} >= {
        ((1, 1), "same"), ((1, 1), "valid"), ((2, 2), "same"), ((2, 2), "valid")
    }  # fmt: skip
    ratios = {case.name: agreement.worst_ratio(client, case) for case in chosen.values()}
    assert {name: ratio for name, ratio in ratios.items() if not ratio <= agreement.TOLERANCE} == {}


class WithoutBias:
    """A client whose server leaves out the bias."""

    def __init__(self, client: convserve.Client) -> None:
        self._client = client

    def convolve(self, layer: convserve.Layer, x: np.ndarray) -> convserve.Result:
        return self._client.convolve(convserve.Layer(layer.config.replace(use_bias=False), layer.kernel), x)


def made(name: str, count: int) -> agreement.Case:
    layer = keras.layers.Conv2D(4, 3, use_bias=name == "biased")
    layer.build((1, 8, 8, 3))
    return agreement.Case(name, layer, (1, 8, 8, 3), count)


def test_a_layer_that_disagrees_is_found(client: convserve.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: with the bias left out, the layer that has one disagrees, and the other does not."""
    plain, biased = (made(name, count) for name, count in (("plain", 3), ("biased", 4)))
    biased.layer.bias.assign(np.full(biased.layer.bias.shape, 1e-3))
    monkeypatch.setattr(agreement, "cases", lambda _: [plain, biased])
    (row,) = agreement.rows(WithoutBias(client), ["any"])  # type: ignore[arg-type]
    assert row.disagreeing == (biased.name,)
    assert row.worst_layer == biased.name
    assert row.layers == plain.count + biased.count
    assert row.distinct == 2


@pytest.mark.parametrize(("ratio", "status"), [(0.9e-5, 0), (1.1e-5, 1), (float("nan"), 1)])
def test_the_command_tells_by_its_exit_status_and_names_the_layer(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ratio: float,
    status: int,
) -> None:
    case = agreement.Case("Some.layer_1", None, (1, 8, 8, 3), 7)
    monkeypatch.setattr(agreement, "running_server", lambda: contextlib.nullcontext(server))
    monkeypatch.setattr(agreement, "cases", lambda _: [case])
    monkeypatch.setattr(agreement, "worst_ratio", lambda _client, _case: ratio)
    assert agreement.main(["--models", "ResNet50", "--json", str(tmp_path / "figures.json")]) == status
    printed = capsys.readouterr()
    assert ("Some.layer_1 disagrees" in printed.err) is bool(status)
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["models"]
    assert (figures["model"], figures["layers"], figures["distinct"]) == ("ResNet50", 7, 1)
