"""What the setting says, what is computed for it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from convserve import Conv2D, Layer, LayerNotFoundError
from convserve_server.backend import Backend
from convserve_server.settings import SettingsError
from convserve_server.warm_up import WarmUp, check_devices, warm_up
from tests.support.engines.served import Engine, Served, weighing


def conv2d(*arguments: Any, **parameters: Any) -> Conv2D:
    return Conv2D(*arguments, **{"data_format": "channels_last", "dtype": "float32", **parameters})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filters=8 kernel_size=3 input_shape=1x4x4x3", WarmUp(conv2d(8, 3), (1, 4, 4, 3), "float32", None)),
        ("layer=a/b input_shape=2x4x4x3", WarmUp("a/b", (2, 4, 4, 3), "float32", None)),
        (
            "  input_dtype=uint8  output_dtype=float16 input_shape=1x9x9x4 filters=8 kernel_size=3x5 strides=2 "
            "padding=SAME groups=4 activation=relu use_bias=False dtype=mixed_float16 ",
            WarmUp(
                conv2d(8, (3, 5), 2, "same", groups=4, activation="relu", use_bias=False, dtype="mixed_float16"),
                (1, 9, 9, 4),
                "uint8",
                "float16",
            ),
        ),
        (
            "filters=1 kernel_size=1 padding=1x2x3x4 data_format=channels_first input_shape=1x3x4x4",
            WarmUp(conv2d(1, 1, padding=((1, 2), (3, 4)), data_format="channels_first"), (1, 3, 4, 4), "float32", None),
        ),
    ],
)
def test_a_setting_is_read(text: str, expected: WarmUp) -> None:
    assert WarmUp.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "words such as filters=64"),
        ("filters=8 kernel_size=3", "words such as filters=64"),
        ("filters=8 kernel_size=3 input_shape=4x4x3", "words such as filters=64"),
        ("filters=8 kernel_size=3 input_shape=", "words such as filters=64"),
        ("filters=8 kernel_size=3 input_shape=1x4x4xc", "words such as filters=64"),
        ("filters=8 filters=8 kernel_size=3 input_shape=1x4x4x3", "words such as filters=64"),
        ("filters=8, kernel_size = 3 input_shape=1x4x4x3", "words such as filters=64"),
        ("filters=8 input_shape=1x4x4x3", "layer=NAME, or filters, kernel_size"),
        ("layer=a filters=8 kernel_size=3 input_shape=1x4x4x3", "layer=NAME, or filters, kernel_size"),
        ("filters=8 kernel_size=3 colour=red input_shape=1x4x4x3", "layer=NAME, or filters, kernel_size"),
        ("filters=0 kernel_size=3 input_shape=1x4x4x3", "filters"),
        ("filters=8 kernel_size=5 input_shape=1x4x4x3", "a height of at least 5"),
        ("filters=8 kernel_size=3 input_shape=1x4x4x3 input_dtype=int64", "input_dtype"),
        ("layer=a input_shape=1x4x4x3 output_dtype=uint8", "output_dtype"),
    ],
)
def test_another_one_is_refused(text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--warm-up \(CONVSERVE_WARM_UP\): .*{expected}.*Received"):
        WarmUp.parse(text)


class Keeper:
    """Knows one layer."""

    def layer(self, name: str) -> Layer:
        if name != "stored":
            raise LayerNotFoundError(
                f"Expected the name of a stored layer. Received {name!r}.", layer=name, by_name=True
            )
        return weighing(2)


def warmed(engine: Engine, text: str) -> None:
    served = Served(engine)
    warm_up(WarmUp.parse(text), Backend(engine, served.admission, served.scheduler, Keeper(), None))  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["layer=stored", "filters=1 kernel_size=1 use_bias=false"])
def test_it_is_computed_on_every_device(layer: str) -> None:
    engine = Engine(devices=3)
    warmed(engine, f"{layer} input_shape=2x1x1x1 input_dtype=uint8")
    assert [(samples, device) for _, samples, device in engine.calls] == [([2], 0), ([2], 1), ([2], 2)]


def test_what_does_not_fit_is_computed_in_parts_or_refused() -> None:
    engine = Engine()
    engine.max_samples = 1
    warmed(engine, "layer=stored input_shape=2x1x1x1")
    assert [samples for _, samples, _ in engine.calls] == [[2], [1], [1]]
    engine.max_samples = 0
    with pytest.raises(SettingsError, match=r"^--warm-up \(CONVSERVE_WARM_UP\): .*memory"):
        warmed(engine, "layer=stored input_shape=2x1x1x1")


def test_a_layer_that_is_not_stored_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    warmed(engine, "layer=other input_shape=2x1x1x1")
    assert engine.calls == []
    (record,) = caplog.records
    assert "'other'" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer=stored input_shape=1x1x1x2", "kernel"),
        ("filters=1 kernel_size=1 use_bias=false input_shape=1x999x999x1", "--max-call-bytes"),
    ],
)
def test_what_no_caller_could_ask_for_is_refused(text: str, expected: str) -> None:
    engine = Engine()
    with pytest.raises(SettingsError, match=rf"^--warm-up \(CONVSERVE_WARM_UP\): .*{expected}"):
        warmed(engine, text)
    assert engine.calls == []


def test_a_device_that_computes_wrong_results_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="cpu:0 computes wrong results"):
        check_devices(Engine())
