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
    given = _given(conv2d, "keras")
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
    values = _weight_lines(made, always=is_refused)
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
            lines.append("layer.bias.assign(bias)" if _has_bias(made) else "layer.bias.assign(np.zeros(layer.filters))")
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
    conv2d = _conv2d(made)
    given, lines = _given(conv2d, "convserve"), []
    if made.settings.kernel != "initializer":
        for name in ("filters", "kernel_size", "use_bias", "kernel_initializer", "bias_initializer"):
            given.pop(name, None)
        if made.settings.kernel == "numbers":
            lines += _weight_lines(made)
            given = {"kernel": "kernel", **given}
        else:
            given.pop("groups", None)
            given = {"kernel": repr(made.settings.kernel), **given}
            lines += _bias_lines(made)
        if _has_bias(made):
            given["bias"] = "bias"
    lines.append(f"with convserve.Client({target!r}) as client:")
    lines.append("    " + _call("y = client.conv2d", {"x": "", **given}).replace("\n", "\n    "))
    lines.append("print(y.shape, y.mean())")
    return _program(["import convserve"], input_code(made.settings, file), lines)


def command_line(made: Outcome, target: str, file: str = "picture.png") -> str:
    """Returns commands for a shell: Python writes the arrays, `convserve conv2d` does the rest."""
    conv2d, settings = _conv2d(made), made.settings
    given = {**conv2d.given(), "data_format": conv2d.data_format}
    words, arrays, lines = [], ["x"], []
    if settings.kernel != "initializer":
        for name in ("filters", "kernel_size", "kernel_initializer", "bias_initializer"):
            given.pop(name, None)
        if settings.kernel == "numbers":
            lines, arrays = _weight_lines(made), [*arrays, "kernel"]
            words.append("--kernel kernel.npy")
        else:
            given.pop("groups", None)
            given.setdefault("padding", "valid")  # beside such a kernel the option's own default is "same"
            lines = _bias_lines(made)
            words.append(f"--kernel {settings.kernel}")
        if _has_bias(made):
            arrays.append("bias")
            words.append("--bias bias.npy")
        given.pop("use_bias", None)
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


def _given(conv2d: Conv2D, package: str) -> dict[str, str]:
    """Returns the parameters that are not the defaults, as source text."""
    values = {name: value for name, value in conv2d.given().items() if name != "input_shape" or package != "keras"}
    # Of objects without parameters of their own the name says all.
    return {name: _source(value, package) for name, value in values.items()}


def _source(value: Any, package: str) -> str:
    if not isinstance(value, KerasObject):
        return (
            repr(value[0])
            if isinstance(value, tuple) and value in ((value[0],) * 2,) and isinstance(value[0], int)
            else repr(value)
        )
    changed = _changed(value)
    if not changed:
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


def _weight_lines(made: Outcome, always: bool = False) -> list[str]:
    """Returns lines that make `kernel`, and `bias` where it is not 0, if they are given and not drawn."""
    if made.kernel is None or (made.settings.kernel == "initializer" and not always):
        return []
    kernel = made.kernel.astype(np.float32)
    depth, filters = kernel.shape[2:]
    comment = ["# Each filter's numbers, the same for all of its input channels."]
    if not np.array_equal(kernel, np.broadcast_to(kernel[:, :, :1], kernel.shape)):
        return [f"kernel = {_array(kernel)}", *_bias_lines(made)]
    matrices = np.moveaxis(kernel[:, :, 0], -1, 0)
    lines = [*comment, f"kernel = np.moveaxis({_array(matrices)}, 0, -1)", "kernel = kernel[:, :, np.newaxis]"]
    if depth > 1:
        lines[-1] += f".repeat({depth}, axis=2)"
    if filters > 1 and np.array_equal(matrices, np.broadcast_to(matrices[:1], matrices.shape)):
        lines[1] = f"kernel = np.moveaxis({_array(matrices[:1])}.repeat({filters}, axis=0), 0, -1)"
    return [*lines, *_bias_lines(made)]


def _bias_lines(made: Outcome) -> list[str]:
    return [f"bias = {_array(made.bias)}"] if _has_bias(made) and made.bias is not None else []


def _has_bias(made: Outcome) -> bool:
    """Returns whether a bias is added that changes anything; one of zeros is left out beside given kernels."""
    return made.bias is not None and bool(np.any(made.bias))


def _array(values: Array) -> str:
    """Returns source text of a float32 array, every number exact."""
    text = np.array2string(
        values.astype(np.float32), separator=", ", threshold=values.size + 1, max_line_width=_WIDTH, floatmode="unique"
    )
    return f"np.float32({text})"
