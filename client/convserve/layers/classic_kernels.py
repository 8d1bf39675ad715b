"""Classic image kernels by name, for a first picture without training anything, in the usual textbook forms.

As everywhere in convserve (and in Keras), a kernel is not flipped: the value at the top left of the table weighs the
pixel at the top left of the window.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convserve.errors import InvalidConfigurationError, short_repr


@dataclass(frozen=True)
class ClassicKernel:
    """A kernel for one channel: its read-only values (kernel height, kernel width), and what it does to a picture."""

    values: npt.NDArray[np.float32]
    description: str


def _kernel(rows: list[list[float]], description: str, *, divisor: float = 1.0) -> ClassicKernel:
    values = (np.array(rows) / divisor).astype(np.float32)
    values.flags.writeable = False
    return ClassicKernel(values, description)


_BINOMIAL = (1, 4, 6, 4, 1)
CLASSIC_KERNELS: dict[str, ClassicKernel] = {
    "sobel-x": _kernel(
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "vertical edges: positive where brightness rises to the right"
    ),
    "sobel-y": _kernel(
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]], "horizontal edges: positive where brightness rises downwards"
    ),
    "laplacian": _kernel([[0, 1, 0], [1, -4, 1], [0, 1, 0]], "edges and fine detail in every direction"),
    "gaussian": _kernel(np.outer(_BINOMIAL, _BINOMIAL).tolist(), "smooth blur over 5 x 5 pixels", divisor=256),
    "sharpen": _kernel([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], "stronger detail, same brightness"),
    "emboss": _kernel([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], "relief, as if lit from the upper left"),
    "box": _kernel([[1, 1, 1]] * 3, "mean over 3 x 3 pixels", divisor=9),
}
"""The kernels by name, in the order in which they are listed to people."""


def classic_kernel(name: str, channels: int) -> npt.NDArray[np.float32]:
    """Returns a classic kernel that filters each of an input's channels by itself.

    Use it with `filters=channels, groups=channels, use_bias=False`: an RGB picture then stays an RGB picture.

    Returns:
        Shape (kernel height, kernel width, 1, channels), float32, a new array.

    Raises InvalidConfigurationError if there is no kernel of this name, or `channels` is below 1.
    """
    if name not in CLASSIC_KERNELS:
        nearest = difflib.get_close_matches(str(name), CLASSIC_KERNELS, n=1)
        hint = f"Did you mean {nearest[0]!r}?" if nearest else ""
        expected = f"one of {', '.join(CLASSIC_KERNELS)}"
        raise InvalidConfigurationError.for_field("kernel", expected, short_repr(name), hint)
    if channels < 1:
        raise InvalidConfigurationError.for_field("channels", "the input's channels, at least 1", channels)
    return np.repeat(CLASSIC_KERNELS[name].values[:, :, np.newaxis, np.newaxis], channels, axis=3)
