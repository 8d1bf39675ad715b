"""The page's calls to the server: what settings come to, or which controls are to blame where they come to nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from convserve._sync.client import Client
from convserve.errors import ConvserveError, InvalidArgumentError
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.play.convolution.pictures import Upload, input_array
from convserve.play.convolution.settings import Settings, resized
from convserve.protocol.results import Result
from convserve.tensors.codec import Array

_CONTROLS = {"input": "picture", "kernel": "kernel", "bias": "bias_initializer", "config": "filters"}
"""Which control is to blame for fields that are none of Conv2D's parameters."""


@dataclass
class Outcome:
    """What settings come to; what could not be had is None.

    Attributes:
        settings: The settings.
        x: The input.
        conv2d: The configuration.
        plan: What the call would do.
        kernel: (kernel height, kernel width, channels / groups, filters), as the server has it.
        bias: (filters,), or None without one.
        constrained: The kernel after an update in which the constraint acts, where there is one.
        result: What the server answered.
        later: The output's shape for the `input_shape` that was given.
        refusals: Texts by the name of the control to blame; "" for none of them.
    """

    settings: Settings
    x: Array | None = None
    conv2d: Conv2D | None = None
    plan: Plan | None = None
    kernel: Array | None = None
    bias: Array | None = None
    constrained: Array | None = None
    result: Result | None = None
    later: tuple[int, ...] | None = None
    refusals: dict[str, list[str]] = field(default_factory=dict)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Ends the block, and keeps why, if something in it is refused or fails."""
        try:
            yield
        except InvalidArgumentError as error:
            for violation in error.violations:
                name = violation.field.rpartition("].")[2].partition(".")[0]
                texts = self.refusals.setdefault(_CONTROLS.get(name, name), [])
                if violation.description not in texts:
                    texts.append(violation.description)
        except ConvserveError as error:
            self.refusals.setdefault("", []).append(str(error) or type(error).__name__)

    @property
    def pixels(self) -> Array | None:
        """The input as (height, width, channels)."""
        return None if self.x is None else self._channels_last(self.x)

    @property
    def maps(self) -> Array | None:
        """The output as (height, width, channels)."""
        return None if self.result is None else self._channels_last(self.result.output)

    def _channels_last(self, tensor: Array) -> Array:
        return tensor[0] if self.settings.data_format == "channels_last" else np.moveaxis(tensor[0], 0, -1)


def outcome(settings: Settings, client: Client, upload: Upload | None = None) -> Outcome:
    """Returns what settings come to on a server."""
    made = Outcome(settings)
    with made.attempt():
        _work_out(made, client, upload)
    if made.x is None:
        with made.attempt():
            settings.conv2d(1)
    return made


def _work_out(made: Outcome, client: Client, upload: Upload | None) -> None:
    settings = made.settings
    made.x = x = input_array(settings, upload)
    channels = x.shape[3 if settings.data_format == "channels_last" else 1]
    classic = CLASSIC_KERNELS.get(settings.kernel)
    size = None if classic is None else (classic.values.shape[0], classic.values.shape[1])
    made.conv2d = conv2d = settings.conv2d(channels, size)
    with made.attempt():
        made.plan = conv2d.plan(x.shape, input_dtype=x.dtype)
    with made.attempt():
        made.later = _shape_of(conv2d)
    if made.plan is None:
        return
    weights = _weights(conv2d, settings, client, channels)
    layer = Layer(conv2d, *weights)
    made.kernel, made.bias = layer.kernel, layer.bias
    with made.attempt():
        made.result = client.convolve(layer, x)
    if conv2d.kernel_constraint is not None:
        made.constrained = _constrained(client, conv2d, weights)


def _shape_of(conv2d: Conv2D) -> tuple[int, ...] | None:
    """Returns the output's shape for one sample of `input_shape`; its open dimensions are taken as those of a photo."""
    given = conv2d.input_shape
    return None if given is None else conv2d.output_shape((1, *(size or 224 for size in given)))


def _weights(conv2d: Conv2D, settings: Settings, client: Client, channels: int) -> tuple[Array, Array | None]:
    """Returns the weights: those that the server draws, or the kernel's numbers with the bias that it draws."""
    is_given = settings.kernel != "initializer"
    drawing = Conv2D(
        conv2d.filters,
        conv2d.kernel_size,
        groups=conv2d.groups,
        use_bias=conv2d.use_bias,
        kernel_initializer="zeros" if is_given else conv2d.kernel_initializer,
        bias_initializer=conv2d.bias_initializer,
        dtype=conv2d.dtype,
    )
    kernel, bias = _drawn(client, drawing, channels)
    if settings.kernel == "numbers":
        matrices = [resized(matrix, *conv2d.kernel_size) for matrix in settings.numbers]
        chosen = [matrices[number % len(matrices)] for number in range(conv2d.filters)]
        stacked = np.moveaxis(np.array(chosen, np.float32), 0, -1)[:, :, np.newaxis]
        kernel = np.repeat(stacked, channels // conv2d.groups, axis=2)
    elif is_given:
        kernel = classic_kernel(settings.kernel, channels)
    return kernel, bias


@functools.lru_cache(maxsize=64)
def _drawn(client: Client, conv2d: Conv2D, channels: int) -> tuple[Array, Array | None]:
    """Returns weights that the server draws. It keeps them without a name, as long as it has room."""
    return client.put(conv2d, input_channels=channels).weights()


def _constrained(client: Client, conv2d: Conv2D, weights: tuple[Array, Array | None]) -> Array:
    """Returns the kernel after an update with the same weights, in which constraints act."""
    layer, _ = client.put(conv2d, *weights).update_weights(*weights)
    return layer.weights()[0]
