"""What is traced and computed before the server says that it is ready, so that no caller waits for it."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.errors import ConvserveError, InvalidArgumentError, LayerNotFoundError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES, Shape, numpy_dtype, standard_dtype
from convserve_server.backend import Backend
from convserve_server.engine_api import Engine
from convserve_server.settings import SettingsError
from convserve_server.tiling.tiled_engine import TiledEngine

log = logging.getLogger("convserve")
_PLAIN = Conv2D(1, 3, data_format="channels_last", dtype="float32", use_bias=False)

_FLAG = "--warm-up (CONVSERVE_WARM_UP)"
_PARAMETERS = {field.name for field in dataclasses.fields(Conv2D)} - {"input_shape"}


@dataclass(frozen=True)
class WarmUp:
    """A forward pass to compute."""

    layer: Conv2D | str  # whose weights are initialized, or the name of a stored one
    shape: Shape  # of the input
    input_dtype: str
    output_dtype: str | None  # None for the layer's compute dtype

    @classmethod
    def parse(cls, text: str) -> WarmUp:
        """Reads a setting such as "filters=64 kernel_size=7 strides=2 input_shape=1x224x224x3".

        It has parameters of Conv2D, or `layer=NAME`; then `input_shape`, and if need be `input_dtype` and
        `output_dtype`. Raises SettingsError if it is none.
        """
        words = [word.partition("=") for word in text.split()]
        given = {name: value for name, equals, value in words if equals and value}
        shape = _value(given.pop("input_shape", ""))
        if len(given) + 1 != len(words) or not isinstance(shape, tuple) or len(shape) != 4:
            raise _refusal("words such as filters=64 kernel_size=3 input_shape=1x224x224x3", text)
        try:
            input_dtype = standard_dtype(given.pop("input_dtype", "float32"), "input_dtype", INPUT_DTYPES)
            wished = given.pop("output_dtype", None)
            output_dtype = None if wished is None else standard_dtype(wished, "output_dtype", FLOAT_DTYPES)
            if given.keys() == {"layer"}:
                return cls(given["layer"], shape, input_dtype, output_dtype)
            if not {"filters", "kernel_size"} <= given.keys() <= _PARAMETERS:
                raise _refusal("layer=NAME, or filters, kernel_size and other parameters of Conv2D", text)
            # Not what this user's keras.json says: what callers send says it itself.
            parameters = {"data_format": "channels_last", "dtype": "float32"} | {
                name: _padding(value) if name == "padding" else _value(value) for name, value in given.items()
            }
            config = Conv2D(**parameters)
            config.plan(shape, input_dtype=input_dtype, output_dtype=output_dtype)
        except InvalidArgumentError as error:
            raise SettingsError(f"{_FLAG}: {error} Received {text!r}.") from error
        return cls(config, shape, input_dtype, output_dtype)


def warm_up(case: WarmUp, backend: Backend) -> None:
    """Computes on every device. A layer that is not stored, which may come later, is passed over with a warning.

    Raises SettingsError if the layer cannot take such an input, or the server takes no such call or has no memory.
    """
    engine, admission = backend.engine, backend.admission
    try:
        layer = backend.store.layer(case.layer) if isinstance(case.layer, str) else Layer(case.layer)
        permit = admission.admit([layer], case.shape, case.input_dtype, case.output_dtype)
        permit.release()
        if layer.kernel is None:
            layer = engine.initialize(layer.config, permit.plan.layers[0].kernel_shape[2] * layer.config.groups)
        x, tiled = np.zeros(case.shape, numpy_dtype(case.input_dtype)), TiledEngine(engine)
        for device in range(len(engine.devices)):
            tiled.convolve([layer], [x], permit.plan.output_dtype, device)
    except LayerNotFoundError as error:
        log.warning("%s: %s", _FLAG, error)
    except ConvserveError as error:
        raise SettingsError(f"{_FLAG}: {error}") from error


def check_devices(engine: Engine) -> None:
    """Computes a convolution whose result is known. Raises RuntimeError if a device computes it wrongly."""
    ones, x = Layer(_PLAIN, np.ones((3, 3, 2, 1), "f4")), np.ones((1, 4, 4, 2), "f4")
    for number, device in enumerate(engine.devices):
        output = engine.convolve([ones], [x], "float32", number).output
        if not np.array_equal(output, np.full((1, 2, 2, 1), 18, "f4")):
            raise RuntimeError(f"{device.name} computes wrong results: a 3x3 sum over ones gave {output.ravel()}")


def flops_per_s(engine: Engine) -> float:
    """Measures a CPU at a convolution that suits it; infinite for a GPU, where that goes by dtype and size."""
    if engine.devices[0].kind == "gpu":
        return math.inf
    config, seconds = _PLAIN.replace(filters=64), []
    layer, x = Layer(config, np.ones((3, 3, 64, 64), "f4")), np.ones((1, 48, 48, 64), "f4")
    for _ in range(4):  # the first one prepares it
        began = time.perf_counter()
        engine.convolve([layer], [x], "float32", 0)
        seconds.append(time.perf_counter() - began)
    return config.plan(x.shape).flops / min(seconds)


def _value(text: str) -> Any:
    """Returns 3 for "3", (3, 5) for "3x5", True for "true", and other words as they are."""
    if re.fullmatch(r"[0-9]{1,18}(x[0-9]{1,18})*", text):
        numbers = tuple(map(int, text.split("x")))
        return numbers if len(numbers) > 1 else numbers[0]
    return {"true": True, "false": False}.get(text.lower(), text)


def _padding(text: str) -> Any:
    """Returns ((top, bottom), (left, right)) for "1x1x2x2", and other words as they are."""
    value = _value(text)
    return (value[:2], value[2:]) if isinstance(value, tuple) and len(value) == 4 else value


def _refusal(expected: str, received: str) -> SettingsError:
    return SettingsError(f"{_FLAG}: Expected {expected}. Received {received!r}.")
