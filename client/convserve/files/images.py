"""Pictures in and out: a PNG or JPEG file as an input, and a layer's output as something to look at.

Needs Pillow, and matplotlib for grids of feature maps; both are imported when they are needed, and both come with
`pip install 'convserve[plot]'`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from convserve.display import pixels as display
from convserve.display.pixels import MAX_MAPS, ValueRange, is_picture, sample_pixels
from convserve.errors import InvalidTensorError, MissingDependencyError
from convserve.files.arrays import check_destination, unwritable
from convserve.tensors.codec import Array

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""How the names of the files that `read_image` reads and `write_picture` writes end."""
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that convert to 8 bits per channel without losing any."""


@dataclass(frozen=True)
class Rendered:
    """What a picture shows."""

    kind: str
    """"picture" for the output itself, "feature maps" for a grid with one map per channel."""
    low: float
    """The value drawn darkest; where each map has its own scale, the least of all maps shown. NaN: none is finite."""
    high: float
    maps: int
    maps_shown: int


def read_image(
    path: str | Path, data_format: str = "channels_last", value_range: tuple[float, float] | None = None
) -> Array:
    """Returns a PNG or JPEG picture as one sample, turned upright as its EXIF orientation says.

    Grey pictures have one channel and all others are converted to RGB. Transparency is composited onto white, as most
    viewers show it: what lies under a transparent pixel is arbitrary.

    Returns:
        Shape (1, height, width, 1 or 3), or (1, 1 or 3, height, width) with "channels_first"; uint8, or float32 between
        the values of black and white where `value_range` gives them.

    Raises:
        InvalidTensorError: If the file cannot be read, is not a PNG or JPEG, has more than 8 bits of grey per pixel
            (cutting them would lose data silently), or has more pixels than Pillow's bound against bombs.
        MissingDependencyError: Without Pillow.
    """
    pillow = _pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of a large picture, and refuses one twice as large. The refusal is enough.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=("PNG", "JPEG")) as opened:
                pixels = np.array(_grey_or_rgb(ImageOps.exif_transpose(opened), path), dtype=np.uint8)
    except InvalidTensorError:  # our own refusal, which is a ValueError too
        raise
    except pillow.DecompressionBombError as error:
        most = 2 * pillow.MAX_IMAGE_PIXELS // 10**6
        raise unreadable(f"a picture of at most {most} megapixels; save a larger one as .npy", path, error) from error
    except pillow.UnidentifiedImageError as error:
        raise unreadable("a PNG or JPEG picture", path, "another format") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:  # Pillow raises all of them
        reason = getattr(error, "strerror", None) or error
        raise unreadable("a picture that can be read", path, reason) from error
    pixels = pixels.reshape(1, *pixels.shape[:2], -1)
    if data_format == "channels_first":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    if value_range is None:
        return pixels
    low, high = value_range
    return pixels * np.float32((high - low) / 255) + np.float32(low)


def check_picture(path: str | Path, sample: int, batch: int) -> None:
    """Raises what can be known of `write_picture`'s errors before the work whose result is drawn."""
    check_destination(path, PICTURE_SUFFIXES, "picture")
    display.check_sample(sample, batch)
    _pillow()


def write_picture(
    path: str | Path,
    output: Array,
    *,
    data_format: str = "channels_last",
    sample: int = 0,
    channels: Sequence[int] | None = None,
    value_range: ValueRange = None,
    beside: Array | None = None,
    title: str | None = None,
) -> Rendered:
    """Draws one sample of a layer's output, of rank 4 and any dtype, into a PNG or JPEG file.

    One channel or three become the picture itself, pixel by pixel, scaled linearly so that the sample's least value is
    black and its greatest white, unless `channels` names some or the input is drawn `beside`. Any other number becomes
    what `plot.feature_maps` draws. Values that are not finite are drawn black in a picture and grey in a map.

    Raises:
        InvalidRequestError: If there is no such sample or channel, or the file cannot be written.
        MissingDependencyError: Without Pillow, or matplotlib where it is needed.
    """
    pixels = sample_pixels(output, sample, data_format)
    count = pixels.shape[-1]
    as_picture = channels is None and is_picture(count)
    numbers = display.chosen(channels, count, MAX_MAPS, "channels")
    low, high = value_range if isinstance(value_range, tuple) else display.finite_range(pixels[..., numbers])
    try:
        if as_picture and beside is None:
            eight_bit = np.rint(display.brightness(pixels, low, high) * 255).astype(np.uint8)
            _pillow().fromarray(eight_bit[..., 0] if count == 1 else eight_bit).save(path)
        else:
            from convserve.display.figures import draw_output

            if title is None:
                title = f"output {tuple(output.shape)}, sample {sample}"
            left = None if beside is None else sample_pixels(beside, sample, data_format, "beside")
            draw_output(pixels, title, channels, value_range, left).savefig(path)
    except OSError as error:
        raise unwritable("picture", path, error) from error
    return Rendered("picture" if as_picture else "feature maps", low, high, count, len(numbers))


def _grey_or_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode not in _EIGHT_BIT_MODES:
        text = f"Pillow's mode {image.mode!r}; save it as a .npy array of float32 to keep all its bits"
        raise unreadable("a picture with 8 bits per channel", path, text)
    if image.mode in ("1", "L"):
        return image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = _pillow().new("RGBA", layered.size, "white")
    flat: Image.Image = _pillow().alpha_composite(white, layered)
    return flat.convert("L" if image.mode == "LA" else "RGB")


def _pillow() -> ModuleType:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        text = "Reading and writing pictures needs Pillow: pip install 'convserve[plot]'. .npy files need nothing more."
        raise MissingDependencyError(text) from error


def unreadable(expected: str, path: str | Path, problem: object) -> InvalidTensorError:
    """Returns the error that says why a file is no input."""
    return InvalidTensorError.for_field("input", expected, f"{str(path)!r}: {problem}")
