"""The settings as code to take home: Keras, convserve's Python and its command line, each for the same numbers."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import numpy as np

from convserve._keras_object import KerasObject
from convserve._rpc.channel import DEFAULT_TARGET
from convserve.activations import Activation
from convserve.layers.conv2d import Conv2D
from convserve.play.convolution.calls import Outcome
from convserve.play.convolution.pictures import input_code
from convserve.tensors.codec import Array

_WIDTH = 96
_COMPILED = "y = np.array(tf.function(layer, jit_compile=True)(x))  # else TensorFlow has channels_first on GPUs alone"


def keras_code(made: Outcome, file: str = "picture.png") -> str:
    """Returns a program with `keras.layers.Conv2D` that prints the output's shape and mean; `file` was uploaded."""
    conv2d, lines = _conv2d(made), []
    given = {name: _source(value, "keras") for name, value in conv2d.given().items() if name != "input_shape"}
    is_refused = conv2d.strides_and_dilates
    padding = ""
    if not isinstance(conv2d.padding, str):
        del given["padding"]
        padding = f"keras.layers.ZeroPadding2D({conv2d.padding}, data_format={conv2d.data_format!r})(%s)"
    if is_refused:
        lines.append(
            "# Keras refuses strides and dilation_rate above 1 together: the kernel's gaps are written as zeros."
        )
        rate, size = conv2d.dilation_rate, conv2d.kernel_size
        del given["dilation_rate"]
        given["kernel_size"] = str(tuple((size[axis] - 1) * rate[axis] + 1 for axis in (0, 1)))
    bias = _bias_lines(made)
    values = [*_kernel_lines(made), *bias] if is_refused or made.settings.kernel != "initializer" else []
    if values:  # which the initializers' numbers give way to
        given.pop("kernel_initializer", None)
        given.pop("bias_initializer", None)
    lines.append(_call("layer = keras.layers.Conv2D", given))
    x = 'x.astype("float32")'
    lines.append(f"x = {padding % x}" if padding else f"x = {x}")
    if values:
        lines += ["layer.build(x.shape)", *values]
        if is_refused:
            lines += ["whole = np.zeros(layer.kernel.shape)", f"whole[:: {rate[0]}, :: {rate[1]}] = kernel"]
        lines.append(f"layer.kernel.assign({'whole' if is_refused else 'kernel'})")
        if conv2d.use_bias:
            lines.append("layer.bias.assign(bias)" if bias else "layer.bias.assign(np.zeros(layer.filters))")
    imports = ["import keras"]
    if conv2d.data_format == "channels_first":
        imports.append("import tensorflow as tf")
        lines += [*([] if values else ["layer.build(x.shape)"]), _COMPILED]
    else:
        lines.append("y = np.array(layer(x))")
    lines.append("print(y.shape, y.mean())")
    return _program(imports, input_code(made.settings, file), lines)


def python_code(made: Outcome, target: str, file: str = "picture.png") -> str:
    """Returns a program with `convserve.Client` that does the same."""
    given, lines = _without_weights(made, _conv2d(made).given()), _given_weight_lines(made)
    words = {"x": ""} | {name: _source(value, "convserve") for name, value in given.items()}
    if made.settings.kernel != "initializer":
        words["kernel"] = "kernel" if made.settings.kernel == "numbers" else repr(made.settings.kernel)
        words |= {"bias": "bias"} if _bias_lines(made) else {}
    lines.append(f"with convserve.Client({target!r}) as client:")
    lines.append("    " + _call("y = client.conv2d", words).replace("\n", "\n    "))
    lines.append("print(y.shape, y.mean())")
    return _program(["import convserve"], input_code(made.settings, file), lines)


def command_line(made: Outcome, target: str, file: str = "picture.png") -> str:
    """Returns commands for a shell: Python writes the arrays, `convserve conv2d` does the rest."""
    conv2d, settings = _conv2d(made), made.settings
    given = _without_weights(made, {**conv2d.given(), "data_format": conv2d.data_format})
    words, arrays, lines = [], ["x"], _given_weight_lines(made)
    if settings.kernel == "numbers":
        arrays.append("kernel")
        words.append("--kernel kernel.npy")
    elif settings.kernel != "initializer":
        given.setdefault("padding", "valid")  # beside such a kernel the option's own default is "same"
        words.append(f"--kernel {settings.kernel}")
    if settings.kernel != "initializer" and _bias_lines(made):
        arrays.append("bias")
        words.append("--bias bias.npy")
    given.pop("trainable", None)  # of no consequence for outputs, and no option
    given.pop("input_shape", None)
    if given["data_format"] == "channels_last":
        del given["data_format"]
    words += [_option(name, value) for name, value in given.items()]
    words += [f"--target {shlex.quote(target)}"] * (target != DEFAULT_TARGET)
    saving = [f'np.save("{name}.npy", {name})' for name in arrays]
    script = _program([], input_code(settings, file), [*lines, *saving])
    options = " \\\n  ".join([*words, "--output y.npy"])
    return f"python - <<'END'\n{script}\nEND\nconvserve conv2d x.npy {options}"


def _conv2d(made: Outcome) -> Conv2D:
    assert made.conv2d is not None  # noqa: S101 (a refused configuration has no code)
    return made.conv2d


def _program(imports: list[str], input_text: str, lines: list[str]) -> str:
    own, _, rest = input_text.partition("\n\n")
    ordered = sorted([*own.splitlines(), *imports], key=lambda line: (line.startswith("from"), line))
    return "\n".join([*ordered, "", rest, *lines])


def _without_weights(made: Outcome, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that are left to say beside a kernel that is given, by its numbers or its name."""
    if made.settings.kernel == "initializer":
        return given
    told = {"filters", "kernel_size", "use_bias", "kernel_initializer", "bias_initializer"}
    told |= {"groups"} if made.settings.kernel != "numbers" else set()
    return {name: value for name, value in given.items() if name not in told}


def _source(value: Any, package: str) -> str:
    if not isinstance(value, KerasObject):
        is_square = isinstance(value, tuple) and len(value) == 2 and value[0] == value[1] and isinstance(value[0], int)
        return repr(value[0] if is_square else value)
    changed = _changed(value)
    if not changed:  # the name says all
        return repr(value.keras_name)
    words = ", ".join(f"{name}={each!r}" for name, each in changed.items())
    if isinstance(value, Activation) and package == "keras":
        return f"lambda x: keras.activations.{value.keras_name}(x, {words})"
    return f"{package}.{value.family}s.{type(value).__name__}({words})"


def _changed(value: KerasObject) -> dict[str, Any]:
    """Returns the parameters that are not the defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(value)}
    return {name: each for name, each in value.parameters.items() if each != fields[name]}


def _option(name: str, value: Any) -> str:
    if name == "use_bias":
        return "--no-bias"
    flag = "--" + name.replace("_", "-")
    if isinstance(value, KerasObject):
        changed = _changed(value)
        text = json.dumps({"class_name": value.keras_name, "config": changed}) if changed else value.keras_name
    elif isinstance(value, tuple):
        text = ",".join(str(each) for each in np.ravel(value))
    else:
        text = str(value)
    return f"{flag} {shlex.quote(text)}"


def _call(function: str, given: dict[str, str]) -> str:
    words = [f"{name}={value}" if value else name for name, value in given.items()]
    line = f"{function}({', '.join(words)})"
    return line if len(line) <= _WIDTH else f"{function}(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _given_weight_lines(made: Outcome) -> list[str]:
    """Returns lines that make what of the weights is given in numbers: where the kernel has a name, the bias alone."""
    if made.settings.kernel == "initializer":
        return []
    return [*(_kernel_lines(made) if made.settings.kernel == "numbers" else ()), *_bias_lines(made)]


def _kernel_lines(made: Outcome) -> list[str]:
    assert made.kernel is not None  # noqa: S101 (what was computed has one)
    kernel = made.kernel.astype(np.float32)
    depth, filters = kernel.shape[2:]
    if not np.array_equal(kernel, np.broadcast_to(kernel[:, :, :1], kernel.shape)):
        return [f"kernel = {_array(kernel)}"]
    matrices = np.moveaxis(kernel[:, :, 0], -1, 0)
    text = _array(matrices)
    if filters > 1 and np.array_equal(matrices, np.broadcast_to(matrices[:1], matrices.shape)):
        text = f"{_array(matrices[:1])}.repeat({filters}, axis=0)"
    return [
        "# Each filter's numbers, the same for all of its input channels.",
        f"kernel = np.moveaxis({text}, 0, -1)",
        f"kernel = kernel[:, :, np.newaxis]{f'.repeat({depth}, axis=2)' if depth > 1 else ''}",
    ]


def _bias_lines(made: Outcome) -> list[str]:
    """Returns a line that makes the bias; one of zeros changes nothing, and is left out beside given kernels."""
    return [f"bias = {_array(made.bias)}"] if made.bias is not None and np.any(made.bias) else []


def _array(values: Array) -> str:
    """Returns source text of a float32 array, every number exact."""
    text = np.array2string(
        values.astype(np.float32), separator=", ", threshold=values.size + 1, max_line_width=_WIDTH, floatmode="unique"
    )
    return f"np.float32({text})"
