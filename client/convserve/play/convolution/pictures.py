"""The inputs that the page has: small pictures, a grid of numbers, and the code that makes each of them."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convserve.errors import FieldViolation, InvalidRequestError, InvalidTensorError, needing
from convserve.files.images import read_image
from convserve.play.convolution.settings import Settings, exact
from convserve.tensors.codec import Array


@dataclass(frozen=True)
class Upload:
    """A picture that somebody uploaded."""

    name: str
    data: bytes


def input_array(settings: Settings, upload: Upload | None = None) -> Array:
    """Returns the input, (1, height, width, channels) or (1, channels, height, width): uint8, or a grid's float32.

    Raises:
        InvalidArgumentError: If there is no upload, or it is no picture that 8 bits of grey or RGB can hold; the field
            is "picture".
        MissingDependencyError: Without Pillow, or matplotlib, which has the photograph.
    """
    size = settings.size
    if settings.picture in _DRAWN:
        pixels = _DRAWN[settings.picture](size)
    elif settings.picture == "numbers":
        pixels = np.array(settings.grid, np.float32)
    else:
        pixels = _photograph(settings, upload)
    x = np.atleast_3d(pixels)[np.newaxis]
    return x if settings.data_format == "channels_last" else np.ascontiguousarray(np.moveaxis(x, -1, 1))


def input_code(settings: Settings, file: str = "picture.png") -> str:
    """Returns Python that makes the same array under the name `x`; `file` is what was uploaded."""
    lines = ["import numpy as np"]
    size = settings.size
    if settings.picture in _DRAWN:
        drawn = _DRAWN[settings.picture]
        lines += ["", "", inspect.getsource(drawn), "", f"x = {drawn.__name__}({size})"]
    elif settings.picture == "numbers":
        rows = ["    [" + ", ".join(map(exact, row)) + "]," for row in settings.grid]
        lines += ["", "x = np.float32([", *rows, "])"]
    else:
        if settings.picture == "upload":
            lines += ["from PIL import Image, ImageOps", ""]
            lines += [
                f'picture = ImageOps.exif_transpose(Image.open({file!r})).convert("RGBA")  # upright',
                'picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)',
            ]
        else:
            lines += ["from matplotlib import cbook", "from PIL import Image", ""]
            lines.append('picture = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))')
        lines += [
            f'picture = picture.convert("{"L" if settings.grey else "RGB"}")',
            f"scale = {size} / max(picture.size)",
            "x = np.array(picture.resize([max(1, round(side * scale)) for side in picture.size]))",
        ]
    is_flat = settings.picture not in ("photo", "upload") or settings.grey
    lines.append("x = x[np.newaxis, :, :, np.newaxis]" if is_flat else "x = x[np.newaxis]")
    if settings.data_format == "channels_first":
        lines.append("x = np.ascontiguousarray(np.moveaxis(x, -1, 1))")
    return "\n".join(lines)


# The code to copy has the source of these two as it stands here.


def checkerboard(size: int) -> np.ndarray:
    """Returns eight squares a side, black and white."""
    return np.array((np.indices((size, size)) * 8 // size).sum(axis=0) % 2 * 255, np.uint8)


def digit(size: int) -> np.ndarray:
    """Returns a 3: two rings of which the left sides are cut out."""
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    upper, lower = np.hypot(row - 0.32, column - 0.5), np.hypot(row - 0.66, column - 0.5)
    from_line = np.minimum(abs(upper - 0.16), abs(lower - 0.18))
    from_line[(column < 0.46) & (abs(row - 0.49) < 0.2)] = 1
    return np.array(np.clip(0.09 - from_line, 0, 0.05) * 20 * 255, np.uint8)


_DRAWN = {"checkerboard": checkerboard, "digit": digit}


def _photograph(settings: Settings, upload: Upload | None) -> Array:
    with needing("The page's pictures need Pillow and matplotlib: pip install 'convserve[play]'."):
        from matplotlib import cbook
        from PIL import Image
    if settings.picture == "photo":
        pixels = read_image(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    elif upload is None:
        raise InvalidRequestError.for_field("picture", "a picture: choose a file", "none yet")
    else:
        pixels = _uploaded(upload)
    picture = Image.fromarray(pixels.squeeze(axis=(0, 3) if pixels.shape[-1] == 1 else 0))
    scale = settings.size / max(picture.size)
    picture = picture.convert("L" if settings.grey else "RGB")
    return np.array(picture.resize([max(1, round(side * scale)) for side in picture.size]))


def _uploaded(upload: Upload) -> Array:
    """Reads a picture as `convserve conv2d` does: transparency onto white, and nothing that 8 bits would lose."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upload")
        file.write_bytes(upload.data)
        try:
            return read_image(file)
        except InvalidTensorError as error:
            text, _, _ = error.violations[0].description.replace(str(file), upload.name).partition("; save it as")
            raise InvalidTensorError(FieldViolation("picture", text)) from error
