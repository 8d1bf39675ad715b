"""What a picture says of itself (depth, channels, transparency, orientation, frames) is heeded or refused."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve.errors import InvalidTensorError
from convserve.files import images, reading

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

PIXELS = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
PICTURE = Image.fromarray(PIXELS)


def refusal(path: Path) -> str:
    with pytest.raises(InvalidTensorError) as caught:
        images.read_image(path)
    (violation,) = caught.value.violations
    assert (violation.field, str(path) in violation.description) == ("input", True)
    return violation.description


def save_png(path: Path, colour_type: int, bits: int, row: bytes, transparency: bytes = b"") -> Path:
    """Writes a picture of one row, 4 pixels wide, as Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, colour_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    clear = chunk(b"tRNS", transparency) if transparency else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + clear + data + chunk(b"IEND", b""))
    return path


EXACT: dict[str, dict[str, Any]] = {
    "x.bmp": {},
    "x.gif": {},
    "x.webp": {"lossless": True},
    "raw.tif": {},
    "packed.TIFF": {"compression": "packbits"},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_deflate"},
}


@pytest.mark.parametrize("name", EXACT)
def test_each_format_is_read_without_loss_and_never_mapped(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of a file that is cut short meanwhile ends the process."""
    PICTURE.save(tmp_path / name, **EXACT[name])
    opened = Image.open
    descriptors = []

    def watched(file: Any, **options: Any) -> Any:
        with suppress(OSError):
            descriptors.append(file.fileno())  # which libtiff could map
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", watched)
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("it is mapped"))
    np.testing.assert_array_equal(images.read_image(tmp_path / name)[0], PIXELS)
    assert descriptors == []


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_is_refused_in_grey_and_in_colour(tmp_path: Path, colour_type: int, channels: int) -> None:
    path = save_png(tmp_path / "x.png", colour_type, 16, b"\x01\x02" * channels * 4)
    assert "a picture with 8 bits per channel" in refusal(path)
    assert "16 bits" in refusal(path)


def save_tiff(path: Path, samples: np.ndarray[Any, Any], tags: dict[int, int | tuple[int, ...]]) -> Path:
    """Writes a TIFF of one strip, uncompressed and little-endian, with these tags beside those of any picture."""
    height, width, channels = samples.shape
    data = samples.tobytes()
    own = {256: width, 257: height, 258: (8 * samples.itemsize,) * channels, 259: 1, 262: 2 if channels > 2 else 1}
    entries, extra = b"", b""
    merged = own | {273: 0, 277: channels, 278: height, 279: len(data)} | tags
    begin = 8 + 2 + 12 * len(merged) + 4
    for tag, value in sorted(merged.items()):
        values = value if isinstance(value, tuple) else (value,)
        if tag == 273:
            values = (begin + 1000,)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, 4, len(values), begin + len(extra))
            extra += packed
        else:
            entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(merged)) + entries + bytes(4) + extra
    path.write_bytes(head.ljust(begin + 1000, b"\0") + data)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "tags", "text"),
    [
        ((2, 2, 3), "<u2", {}, "16 bits"),
        ((2, 2, 4), "<u2", {338: 2}, "16 bits"),
        ((2, 2, 1), "<u2", {}, "16 bits"),
        ((2, 2, 1), "<f4", {339: 3}, "32 bits"),
        ((2, 2, 1), "<i1", {339: 2}, "a picture of unsigned integers"),
        ((2, 2, 4), "u1", {338: 0}, "4 channels"),
        ((2, 2, 5), "u1", {338: (0, 0)}, "5 channels"),
        ((2, 2, 5), "u1", {338: (2, 0)}, "5 channels"),
        ((2, 2, 2), "u1", {338: 0}, "2 channels"),
        ((2, 2, 3), "u1", {42113: 255}, "in which every pixel has a value"),
        ((2, 2, 3), "u1", {262: 8}, "mode 'LAB'"),
    ],
)
def test_tiff_of_more_than_8_bits_of_grey_or_rgb_is_refused(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, tags: dict[int, Any], text: str
) -> None:
    assert text in refusal(save_tiff(tmp_path / "x.tif", np.ones(shape, dtype), tags))


def test_tiff_of_8_bits_is_what_it_says(tmp_path: Path) -> None:
    samples = np.arange(12, dtype="u1").reshape(2, 2, 3)
    np.testing.assert_array_equal(images.read_image(save_tiff(tmp_path / "x.tif", samples, {}))[0], samples)
    inverted = images.read_image(save_tiff(tmp_path / "x.tif", samples[..., :1], {262: 0}))
    np.testing.assert_array_equal(inverted[0], 255 - samples[..., :1])


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_several_frames_or_pages_are_refused(tmp_path: Path, name: str) -> None:
    PICTURE.save(tmp_path / name, save_all=True, append_images=[PICTURE.rotate(180)])
    assert "2 frames or pages" in refusal(tmp_path / name)


def test_of_a_photo_with_previews_the_photo_is_read(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[PICTURE.rotate(180)], quality=100)
    np.testing.assert_allclose(images.read_image(tmp_path / "x.jpg")[0].astype(int), PIXELS, atol=4)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_heeded_in_every_format(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    PICTURE.save(tmp_path / name, exif=exif, quality=100)
    with Image.open(tmp_path / name) as opened:
        upright = np.array(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(images.read_image(tmp_path / name)[0], upright)
    assert upright.shape == ((8, 4, 3) if 5 <= orientation <= 8 else (4, 8, 3))


def exif_of(*tags: tuple[int, int, int, bytes]) -> bytes:
    """Returns EXIF data with these tags, each with its type, count and value, whatever sense they make."""
    entries, extra = b"", b""
    for tag, kind, count, value in tags:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 14 + 12 * len(tags) + len(extra))
        entries += struct.pack("<HHI", tag, kind, count) + place
        extra += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + extra


TURNED = (0x112, 3, 1, struct.pack("<H", 6))
ODD = {
    "a rational of -1/0": (0x11A, 10, 1, struct.pack("<ii", -1, 0)),
    "a date as a number": (0x132, 12, 1, struct.pack("<d", 1.0)),
    "offsets as a rational": (0x111, 5, 1, struct.pack("<II", 5, 1)),
    "a type that there is not": (0x9999, 16, 1, b"\xff" * 8),
    "a text beyond the end": (0x10F, 2, 10**6, struct.pack("<I", 10**6)),
    "a folder that is itself": (0x8769, 4, 1, struct.pack("<I", 8)),
}


@pytest.mark.parametrize("tag", ODD.values(), ids=ODD)
def test_odd_tags_beside_the_orientation_change_nothing(tmp_path: Path, tag: Any) -> None:
    PICTURE.save(tmp_path / "x.jpg", exif=exif_of(TURNED, tag))
    assert images.read_image(tmp_path / "x.jpg").shape == (1, 8, 4, 3)


NO_SENSE = {
    "an orientation of 65535": exif_of((0x112, 3, 1, b"\xff\xff")),
    "an orientation in letters": exif_of((0x112, 2, 1, b"ab")),
    "an empty orientation": exif_of((0x112, 3, 0, b"")),
    "junk": b"Exif\0\0junk and more junk",
    "junk without a head": b"junk",
    "a head alone": b"Exif\0\0II*\0",
    "tags behind the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "cut short": exif_of(TURNED)[:-9],
    "nothing": b"",
}


@pytest.mark.parametrize("exif", NO_SENSE.values(), ids=NO_SENSE)
def test_where_exif_makes_no_sense_a_picture_is_as_it_is_stored(tmp_path: Path, exif: bytes) -> None:
    for name in ("x.jpg", "x.png", "x.webp"):
        PICTURE.save(tmp_path / name, exif=exif)
        assert images.read_image(tmp_path / name).shape == (1, 4, 8, 3)


def test_transparent_grey_is_composited_as_any_transparency(tmp_path: Path) -> None:
    path = save_png(tmp_path / "x.png", 0, 8, bytes([1, 15, 1, 3]), struct.pack(">H", 1))
    assert images.read_image(path).ravel().tolist() == [255, 15, 255, 3]
    path = save_png(tmp_path / "x.png", 0, 1, b"\x50", struct.pack(">H", 0))
    assert images.read_image(path).ravel().tolist() == [255] * 4  # black, white, black, white; black is clear
    path = save_png(tmp_path / "x.png", 2, 8, bytes([1, 2, 3, 4, 5, 6] * 2), struct.pack(">HHH", 1, 2, 3))
    assert images.read_image(path)[0, 0].tolist() == [[255] * 3, [4, 5, 6]] * 2


@pytest.mark.parametrize(("bits", "row"), [(2, b"\x1b"), (4, b"\x01\x0f")])
def test_transparent_grey_of_few_bits_which_pillow_misreads_is_refused(tmp_path: Path, bits: int, row: bytes) -> None:
    assert f"one of {bits} bits" in refusal(save_png(tmp_path / "x.png", 0, bits, row, struct.pack(">H", 1)))
    assert images.read_image(save_png(tmp_path / "x.png", 0, bits, row)).shape == (1, 1, 4, 1)


ANYTHING = (
    *(struct.error("argument out of range"), OverflowError("too large"), RecursionError("too deep"), KeyError(256)),
    *(UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"), ZeroDivisionError("a ratio"), AttributeError("encode")),
    *(AssertionError(), TypeError("None"), NotImplementedError("mode"), Image.DecompressionBombError("huge")),
)


@pytest.mark.parametrize("error", ANYTHING, ids=repr)
def test_whatever_pillow_raises_is_told_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def raising(*_: Any, **__: Any) -> None:
        raise error

    PICTURE.save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", raising)
    assert str(error) in refusal(tmp_path / "x.png")


def test_a_picture_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any, **__: Any) -> None:
        raise MemoryError

    PICTURE.save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", raising)
    monkeypatch.setattr(Image.Image, "convert", raising)
    assert "a file that fits into memory" in refusal(tmp_path / "x.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert "a pipe or a device" in refusal(tmp_path / "x.png")
    (tmp_path / "y.png").symlink_to("/dev/zero")
    assert "a pipe or a device" in refusal(tmp_path / "y.png")


def test_a_picture_that_would_take_too_much_memory_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "memory_bytes", lambda: 4_000_000)
    for side, is_read in ((200, True), (300, False)):
        Image.new("1", (side, side)).save(tmp_path / "x.png")
        if is_read:
            assert images.read_image(tmp_path / "x.png").shape == (1, side, side, 1)
        else:
            assert "a quarter of the memory" in refusal(tmp_path / "x.png")
