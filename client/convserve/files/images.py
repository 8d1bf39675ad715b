"""Pictures in and out: a file as an input, and a layer's output as something to look at.

Needs Pillow, and matplotlib for grids of feature maps; both are imported when they are needed, and both come with
`pip install 'convserve[plot]'`.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from convserve.display import pixels as display
from convserve.display.pixels import MAX_MAPS, Percentiles, ValueRange, is_picture, sample_pixels
from convserve.errors import needing, short_repr
from convserve.files.reading import check_fits, open_file, unreadable, wrap_read_errors
from convserve.files.writing import check_destination, unwritable, whole_file
from convserve.tensors.codec import Array, Shape

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""How the names of the files that `write_picture` writes end."""
INPUT_PICTURE_SUFFIXES = (*PICTURE_SUFFIXES, ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""How the names of the files that `read_image` reads end."""
INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's names of what they hold. It reads others too, some with programs that it starts."""
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that convert to 8 bits per channel without losing any."""
_GREY_MODES = ("1", "L", "LA")
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _NO_DATA = 258, 277, 339, 42113
"""Tags of TIFF; the last one is GDAL's."""
_ORIENTATION = 0x112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""Pillow's way to turn a picture of each orientation upright."""
_QUALITY = 90  # of JPEG and WebP: hardly to be told from the original
_SWAPPING = (5, 6, 7, 8)  # orientations in which width and height change places
_BYTES_PER_PIXEL = 16  # what reading takes at most: Pillow's four, turned, converted, and numpy's
_SAVE_ALL = "save it as a .npy array to keep all of it"


@dataclass(frozen=True)
class Rendered:
    """What a picture shows."""

    kind: str  # "picture" for the output itself, "feature maps" for a grid with one map per channel
    low: float  # drawn darkest; where each map has its own scale, the least of all maps shown; NaN if none is finite
    high: float
    maps: int
    maps_shown: int


def read_image(
    path: str | Path, data_format: str = "channels_last", value_range: tuple[float, float] | None = None
) -> Array:
    """Returns a PNG, JPEG, WebP, TIFF, BMP or GIF picture as one sample, turned upright as its orientation (EXIF) says.

    Grey pictures have one channel and all others are converted to RGB, of CMYK and palettes too. Transparency is
    composited onto white, as most viewers show it: what lies under a transparent pixel is arbitrary. Colour profiles
    and gamma are not applied: values are as they are stored.

    Returns:
        Shape (1, height, width, 1 or 3), or (1, 1 or 3, height, width) with "channels_first"; uint8, or float32 between
        the values of black and white where `value_range` gives them.

    Raises:
        InvalidTensorError: If the file cannot be read, is no such picture, has something that 8 bits of grey or RGB
            cannot hold (more bits, further channels or frames, values that mean no data), or has more pixels than
            Pillow's bound against bombs.
        MissingDependencyError: Without Pillow.
    """
    with _opened(path) as opened:
        pixels = np.array(_grey_or_rgb(_upright(opened)), dtype=np.uint8)
    pixels = pixels.reshape(1, *pixels.shape[:2], -1)
    if data_format == "channels_first":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    if value_range is None:
        return pixels
    low, high = value_range
    return pixels * np.float32((high - low) / 255) + np.float32(low)


def image_shape(path: str | Path, data_format: str = "channels_last") -> Shape:
    """Returns the shape of what `read_image` would return, by the file's header; raises what it can see there."""
    with _opened(path) as opened:
        width, height = opened.size if _orientation(opened) not in _SWAPPING else opened.size[::-1]
        channels = 1 if opened.mode in _GREY_MODES else 3
    return (1, height, width, channels) if data_format == "channels_last" else (1, channels, height, width)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Opens a picture of which nothing would be lost, and raises in the block what `read_image` says."""
    pillow = _pillow()
    # Pillow warns of large pictures, of which it refuses those twice as large, and of odd metadata.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with wrap_read_errors(path, "input", "a picture that can be read"):
        try:
            with _Unmapped(open_file(path).detach()) as file, pillow.open(file, formats=INPUT_FORMATS) as opened:  # type: ignore[attr-defined]
                check_fits(opened.width * opened.height * _BYTES_PER_PIXEL, path)
                _check_kept(opened, path)
                yield opened
        except pillow.DecompressionBombError as error:
            most = 2 * pillow.MAX_IMAGE_PIXELS // 10**6
            expected = f"a picture of at most {most} megapixels; save a larger one as .npy"
            raise unreadable(expected, path, error) from error
        except pillow.UnidentifiedImageError as error:
            raise unreadable("a PNG, JPEG, WebP, TIFF, BMP or GIF picture", path, "another format") from error


def check_picture(path: str | Path) -> None:
    """Raises what can be known of `write_picture`'s errors about a file before the work whose result is drawn."""
    check_destination(path, PICTURE_SUFFIXES, "picture")
    _pillow()


def write_picture(
    path: str | Path,
    output: Array,
    *,
    data_format: str = "channels_last",
    sample: int = 0,
    channels: Sequence[int] | None = None,
    value_range: ValueRange = None,
    percentiles: Percentiles | None = None,
    beside: Array | None = None,
    scale: int = 1,
    title: str | None = None,
) -> Rendered:
    """Draws one sample of a layer's output, of rank 4 and any dtype, into a PNG or JPEG file.

    One channel or three become the picture itself, `scale` x `scale` pixels for each of the output's, and linearly from
    black for the sample's least value to white for its greatest, unless `channels` names some or the input is drawn
    `beside`. Any other number becomes what `plot.feature_maps` draws. Values that are not finite are drawn black in a
    picture and grey in a map.

    Raises InvalidRequestError if there is no such sample or channel, or the file cannot be written, or
    MissingDependencyError without Pillow, or matplotlib where it is needed.
    """
    pixels = sample_pixels(output, sample, data_format)
    count = pixels.shape[-1]
    as_picture = channels is None and is_picture(count)
    image_format = "png" if Path(path).suffix.lower() == ".png" else "jpeg"
    numbers = display.chosen(channels, count, MAX_MAPS, "channels")
    low, high = display.limits_of(pixels[..., numbers], value_range, percentiles)
    try:
        if as_picture and beside is None:
            eight_bit = to_eight_bits(pixels, low, high).repeat(scale, axis=0).repeat(scale, axis=1)
            image = _pillow().fromarray(eight_bit[..., 0] if count == 1 else eight_bit)
            with whole_file(path) as file:
                image.save(file, image_format)
        else:
            from convserve.display.figures import draw_output

            if title is None:
                title = f"output {tuple(output.shape)}, sample {sample}"
            left = None if beside is None else sample_pixels(beside, sample, data_format, "beside")
            figure = draw_output(pixels, title, channels, value_range, left, percentiles)
            with whole_file(path) as file:
                figure.savefig(file, format=image_format)
    except OSError as error:
        raise unwritable("picture", path, error) from error
    return Rendered("picture" if as_picture else "feature maps", low, high, count, len(numbers))


def to_eight_bits(pixels: Array, low: float, high: float) -> Array:
    """Returns values as uint8, from 0 for `low` and below to 255 for `high` and above; 0 for what is not finite."""
    eight_bit: Array = np.rint(display.brightness(pixels, low, high) * 255).astype(np.uint8)
    return eight_bit


def encode_picture(pixels: Array, format_name: str, mode: str | None) -> bytes:
    """Returns a file's bytes of (height, width, 1 or 3), uint8, as "png", "jpg" or "webp".

    `mode` is "rgb", "grey" (by the luminance of ITU-R 601), or None for what the channels are. What a format cannot
    hold, such as too many pixels, raises Pillow's own errors, and MissingDependencyError is raised without Pillow.
    """
    image = _pillow().fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if mode is not None:
        image = image.convert({"rgb": "RGB", "grey": "L"}[mode])
    with io.BytesIO() as file:
        options = {} if format_name == "png" else {"quality": _QUALITY}
        image.save(file, format={"jpg": "JPEG"}.get(format_name, format_name), **options)
        return file.getvalue()


class _Unmapped(io.BufferedReader):
    """A file without a descriptor: libtiff would map it, and who maps a file that is cut short meanwhile is killed."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file that is read, not mapped")


def _check_kept(image: Image.Image, path: str | Path) -> None:
    """Refuses a picture of which Pillow would leave something out, or something would lose its meaning."""
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)  # MPO: previews beside a photo
    if frames > 1:
        raise unreadable("a picture of one frame", path, f"{frames} frames or pages; save each by itself, or a .npy")
    packed = [tile[3] for tile in image.tile] if image.format == "PNG" else []
    if "transparency" in image.info and packed and packed[0] in ("L;2", "L;4"):  # which Pillow compares unscaled
        raise unreadable("transparency in a picture of 8 bits", path, f"one of {packed[0][2:]} bits; {_SAVE_ALL}")
    tags = getattr(image, "tag_v2", {})
    bits = 16 if "16" in str(packed) else max(tags.get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8:
        raise unreadable("a picture with 8 bits per channel", path, f"{bits} bits; {_SAVE_ALL}")
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise unreadable("a picture of unsigned integers", path, f"other numbers; {_SAVE_ALL}")
    if (channels := tags.get(_SAMPLES_PER_PIXEL, 1)) > len(image.getbands()):
        raise unreadable(f"{image.mode}, which is what Pillow reads of it", path, f"{channels} channels; {_SAVE_ALL}")
    if _NO_DATA in tags:
        received = f"the value {short_repr(tags[_NO_DATA])} for none; {_SAVE_ALL}"
        raise unreadable("a picture in which every pixel has a value", path, received)
    if image.mode not in _EIGHT_BIT_MODES:
        received = f"Pillow's mode {image.mode!r}; {_SAVE_ALL}"
        raise unreadable("a picture with 8 bits per channel, in grey or RGB", path, received)


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would also write all other tags anew, and so fail at those that make no sense.
    image.load()
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(_pillow().Transpose[method])


def _orientation(image: Image.Image) -> Any:
    """Returns what EXIF says, or 1 where it cannot be read, which of a JPEG Pillow itself passes over."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # such as SyntaxError and struct.error: the pixels are whole
        return 1


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    is_grey = image.mode in _GREY_MODES
    if not image.has_transparency_data:
        return image.convert("L" if is_grey else "RGB")
    layered = image.convert("RGBA")
    white = _pillow().new("RGBA", layered.size, "white")
    flat: Image.Image = _pillow().alpha_composite(white, layered)
    return flat.convert("L" if is_grey else "RGB")


def _pillow() -> ModuleType:
    text = "Reading and writing pictures needs Pillow: pip install 'convserve[plot]'. .npy files need nothing more."
    with needing(text):
        return importlib.import_module("PIL.Image")
