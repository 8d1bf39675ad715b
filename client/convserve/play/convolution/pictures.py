"""The inputs that the page has: small pictures, a grid of numbers, and the code that makes each of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.errors import InvalidRequestError, InvalidTensorError, MissingDependencyError
from convserve.files.images import INPUT_FORMATS
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
        InvalidArgumentError: If there is no upload, or it is no picture; the field is "picture".
        MissingDependencyError: Without Pillow, or matplotlib, which has the photograph.
    """
    size = settings.size
    if settings.picture == "checkerboard":
        pixels = ((np.indices((size, size)) * 8 // size).sum(axis=0) % 2 * 255).astype(np.uint8)
    elif settings.picture == "digit":
        pixels = _digit(size)
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
    if settings.picture == "checkerboard":
        lines += ["", f"x = np.uint8((np.indices(({size}, {size})) * 8 // {size}).sum(axis=0) % 2 * 255)"]
    elif settings.picture == "digit":
        lines += [
            "",
            "# A 3: two rings of which the left sides are cut out.",
            f"row, column = (np.mgrid[:{size}, :{size}] + 0.5) / {size}",
            "upper, lower = np.hypot(row - 0.32, column - 0.5), np.hypot(row - 0.66, column - 0.5)",
            "from_line = np.minimum(abs(upper - 0.16), abs(lower - 0.18))",
            "from_line[(column < 0.46) & (abs(row - 0.49) < 0.2)] = 1",
            "x = np.uint8(np.clip(0.09 - from_line, 0, 0.05) * 20 * 255)",
        ]
    elif settings.picture == "numbers":
        rows = ["    [" + ", ".join(map(exact, row)) + "]," for row in settings.grid]
        lines += ["", "x = np.float32([", *rows, "])"]
    else:
        if settings.picture == "upload":
            lines += ["from PIL import Image, ImageOps"]
            opened = f"ImageOps.exif_transpose(Image.open({file!r}))"  # upright
        else:
            lines += ["from matplotlib import cbook", "from PIL import Image"]
            opened = 'Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))'
        lines += [
            "",
            f'picture = {opened}.convert("{"L" if settings.grey else "RGB"}")',
            f"scale = {size} / max(picture.size)",
            "x = np.array(picture.resize([max(1, round(side * scale)) for side in picture.size]))",
        ]
    is_flat = settings.picture not in ("photo", "upload") or settings.grey
    lines.append("x = x[np.newaxis, :, :, np.newaxis]" if is_flat else "x = x[np.newaxis]")
    if settings.data_format == "channels_first":
        lines.append("x = np.ascontiguousarray(np.moveaxis(x, -1, 1))")
    return "\n".join(lines)


def _digit(size: int) -> Array:
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    upper, lower = np.hypot(row - 0.32, column - 0.5), np.hypot(row - 0.66, column - 0.5)
    from_line = np.minimum(abs(upper - 0.16), abs(lower - 0.18))
    from_line[(column < 0.46) & (abs(row - 0.49) < 0.2)] = 1
    grey: Array = (np.clip(0.09 - from_line, 0, 0.05) * 20 * 255).astype(np.uint8)
    return grey


def _photograph(settings: Settings, upload: Upload | None) -> Array:
    try:
        from matplotlib import cbook
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError(f"The page's pictures need convserve[play] ({error}).") from error
    file: Any
    name = upload.name if upload else settings.picture
    if settings.picture == "photo":
        file = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    elif upload is None:
        raise InvalidRequestError.for_field("picture", "a picture: choose a file", "none yet")
    else:
        file = io.BytesIO(upload.data)
    try:
        with Image.open(file, formats=INPUT_FORMATS) as opened:
            picture = ImageOps.exif_transpose(opened).convert("L" if settings.grey else "RGB")
    except Exception as error:  # of a damaged file Pillow raises whatever it stumbles over
        expected = "a picture: PNG, JPEG, WebP, TIFF, BMP or GIF"
        reason = "another format" if isinstance(error, UnidentifiedImageError) else error
        raise InvalidTensorError.for_field("picture", expected, f"{name}: {reason}") from error
    scale = settings.size / max(picture.size)
    return np.array(picture.resize([max(1, round(side * scale)) for side in picture.size]))
