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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convserve.display.pixels import (
    MAX_MAPS,
    ValueRange,
    brightness,
    check_sample,
    chosen,
    finite_range,
    is_picture,
    sample_pixels,
)
from convserve.errors import FieldViolation, InvalidTensorError, MissingDependencyError
from convserve.files.arrays import check_destination, unwritable

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""How the names of the files that `read_image` reads and `write_picture` writes end."""
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that convert to 8 bits per channel without losing any."""


@dataclass(frozen=True)
class Drawn:
    """What a picture shows.

    Attributes:
        kind: "picture" for the output itself, "feature maps" for a grid with one map per channel.
        low: The value drawn darkest; of a grid whose maps are scaled each by itself, the least of those shown. NaN if
            no value is finite.
        high: The value drawn brightest, likewise.
        maps: How many channels the output has.
        maps_shown: How many of them the picture shows.
    """

    kind: str
    low: float
    high: float
    maps: int
    maps_shown: int


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Returns a PNG or JPEG picture as one sample, turned upright as its EXIF orientation says.

    Grey pictures have one channel and all others are converted to RGB. Transparency is composited onto white, as most
    viewers show it: what lies under a transparent pixel is arbitrary.

    Args:
        path: The file.

    Returns:
        Shape (1, height, width, 1 or 3), uint8, a new array.

    Raises:
        InvalidTensorError: If the file cannot be read, is not a PNG or JPEG, has more than 8 bits of grey per pixel
            (cutting them would lose data silently), or has more pixels than Pillow takes for honest.
        MissingDependencyError: Without Pillow.
    """
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of a large picture, and refuses one twice as large. The refusal is enough.
            warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
            with image_module.open(path, formats=("PNG", "JPEG")) as opened:
                upright = ImageOps.exif_transpose(opened)
                pixels = np.array(_grey_or_rgb(upright, path), dtype=np.uint8)
    except image_module.DecompressionBombError as error:
        most = 2 * image_module.MAX_IMAGE_PIXELS // 10**6
        raise _unreadable(f"a picture of at most {most} megapixels; save a larger one as .npy", path, error) from error
    except image_module.UnidentifiedImageError as error:
        raise _unreadable("a PNG or JPEG picture", path, "another format") from error
    except OSError as error:
        raise _unreadable("a picture that can be read", path, error.strerror or error) from error
    except InvalidTensorError:  # our own refusal, which is a ValueError too
        raise
    except (SyntaxError, ValueError, EOFError, IndexError) as error:  # what Pillow raises for broken files
        raise _unreadable("a picture that can be read", path, error) from error
    return pixels.reshape(1, *pixels.shape[:2], -1)


def check_picture(path: str | Path, sample: int, batch: int) -> None:
    """Checks what can be known of `write_picture` before the work whose result is drawn.

    Args:
        path: The file to be written.
        sample: Which sample of the batch.
        batch: How many samples the batch has.

    Raises:
        InvalidRequestError: If the file's name or folder is wrong, or there is no such sample.
        MissingDependencyError: Without Pillow.
    """
    check_destination(path, PICTURE_SUFFIXES, "picture")
    check_sample(sample, batch)
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
) -> Drawn:
    """Draws one sample of a layer's output.

    One channel or three become the picture itself, pixel by pixel, scaled linearly so that the sample's least value is
    black and its greatest white. Any other number becomes a labelled grid of feature maps, each scaled by itself.
    Values that are not finite are drawn black in a picture and grey in a map.

    Args:
        path: The file to write; its name ends in .png, .jpg or .jpeg.
        output: Rank 4, any floating-point or integer dtype.
        data_format: "channels_last" or "channels_first": where `output` has its channels.
        sample: Which sample of the batch.
        channels: Which channels to draw, as a grid also if there are one or three. None: all, but of a grid the first
            `MAX_MAPS`.
        value_range: The values to draw black and white; those beyond are drawn like them. For a grid it is the common
            scale of all maps, and "shared" is the range of what is drawn. None: the least and the greatest value, as
            above.
        beside: The input, to be drawn beside the output: likewise of rank 4 and with as many samples. A picture is then
            not drawn pixel by pixel.
        title: Text above a grid, or above two pictures. None: the output's shape.

    Returns:
        What was drawn, with the range of its values.

    Raises:
        InvalidRequestError: If there is no such sample or channel, or the file cannot be written.
        MissingDependencyError: Without Pillow, or matplotlib where it is needed.
    """
    pixels = sample_pixels(output, sample, data_format)
    count = pixels.shape[-1]
    pictured = channels is None and is_picture(count)
    shown = chosen(channels, count, MAX_MAPS, "channels")
    drawn = pixels[..., : len(shown)] if channels is None else pixels[..., shown]
    low, high = value_range if isinstance(value_range, tuple) else finite_range(drawn)
    try:
        if pictured and beside is None:
            _write_pixels(path, pixels, low, high)
        else:
            from convserve.display.feature_maps import draw_output

            text = f"output {tuple(output.shape)}, sample {sample}" if title is None else title
            input_pixels = None if beside is None else sample_pixels(beside, sample, data_format, "beside")
            figure = draw_output(pixels, text, channels=channels, value_range=value_range, beside=input_pixels)
            figure.savefig(path)
    except OSError as error:
        raise unwritable("picture", path, error) from error
    return Drawn("picture" if pictured else "feature maps", low, high, count, len(shown))


def _write_pixels(path: str | Path, pixels: Array, low: float, high: float) -> None:
    eight_bit = np.rint(brightness(pixels, low, high) * 255).astype(np.uint8)
    _pillow().fromarray(eight_bit[..., 0] if eight_bit.shape[-1] == 1 else eight_bit).save(path)


def _grey_or_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode not in _EIGHT_BIT_MODES:
        raise InvalidTensorError(
            FieldViolation(
                "input",
                f"Expected a picture with 8 bits per channel. Received {str(path)!r} in Pillow's mode {image.mode!r}; "
                "save it as a .npy array of float32 to keep all its bits.",
            )
        )
    if image.mode in ("1", "L"):
        return image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = _pillow().new("RGBA", layered.size, "white")
    flat = _pillow().alpha_composite(white, layered)
    grey = image.mode == "LA"
    result: Image.Image = flat.convert("L" if grey else "RGB")
    return result


def _pillow() -> ModuleType:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingDependencyError(
            "Reading and writing pictures needs Pillow: pip install 'convserve[plot]'. .npy files need nothing more."
        ) from error


def _unreadable(expected: str, path: str | Path, problem: object) -> InvalidTensorError:
    return InvalidTensorError(FieldViolation("input", f"Expected {expected}. Received {str(path)!r}: {problem}."))
