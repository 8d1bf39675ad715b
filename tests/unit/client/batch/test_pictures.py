"""Outputs of a batch as pictures: values, modes, and what no picture can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convserve import Conv2D, InvalidRequestError
from convserve.batch.formats.pictures import PICTURE_FORMATS, Pictures, picture_range
from convserve.batch.outputs import UNFINISHED, OutputFolder

Image = pytest.importorskip("PIL.Image")


def layer(filters: int, data_format: str = "channels_last") -> Conv2D:
    return Conv2D(filters, 1, data_format=data_format, dtype="float32")


def written(
    array: Any, folder: Path, name: str = "png", value_range: Any = (0.0, 255.0), mode: str | None = None
) -> Any:
    """Returns the pixels of the picture that becomes of a sample, and what the report says."""
    outputs = OutputFolder(folder, Pictures(name, layer(array.shape[-1]), value_range, mode))
    size = outputs.write("a/y", array)
    path = folder / "a" / f"y.{name}"
    assert path.stat().st_size == size == outputs.size("a/y")
    assert list((folder / UNFINISHED).iterdir()) == []  # it got its name when it was whole
    with Image.open(path) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name]
        return np.array(image), outputs.format.report


def grey(*values: float, dtype: Any = np.float32) -> Any:
    return np.array(values, dtype).reshape(1, -1, 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_values_are_scaled_and_rounded_whatever_their_type(tmp_path: Path, dtype: Any) -> None:
    pixels, report = written(grey(0, 0.25, 0.5, 1, dtype=dtype), tmp_path, value_range=(0.0, 1.0))
    np.testing.assert_array_equal(pixels, [[0, 64, 128, 255]])
    assert report is None


def test_values_outside_the_range_are_clipped_and_counted(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path, Pictures("png", layer(1), (0.0, 255.0), None))
    for name, values in (("in", (0, 255)), ("low", (-3, 7)), ("high", (5, 300)), ("nan", (np.nan, 9))):
        outputs.write(name, grey(*values))
    assert outputs.format.report == {"pictures": 2, "low": -3, "high": 300}
    assert outputs.format.not_finite == 1
    with Image.open(tmp_path / "high.png") as image:
        assert np.array(image).tolist() == [[5, 255]]
    with Image.open(tmp_path / "nan.png") as image:
        assert np.array(image).tolist() == [[0, 9]]


def test_a_range_of_its_own_is_that_of_each_picture(tmp_path: Path) -> None:
    pixels, report = written(grey(-10, 0, 10), tmp_path, value_range="own")
    assert (pixels.tolist(), report) == ([[0, 128, 255]], None)


def test_channels_and_modes(tmp_path: Path) -> None:
    rgb = np.zeros((2, 3, 3), np.float32)
    rgb[..., 0] = 255
    for array, mode, shape in (
        (rgb, None, (2, 3, 3)), (rgb, "rgb", (2, 3, 3)), (rgb, "grey", (2, 3)),
        (rgb[..., :1], None, (2, 3)), (rgb[..., :1], "rgb", (2, 3, 3)), (rgb[..., :1], "grey", (2, 3)),
    ):  # fmt: skip
        assert written(array, tmp_path, mode=mode)[0].shape == shape
    assert written(rgb, tmp_path, mode="grey")[0].max() == 76  # red's share of luminance


def test_channels_first(tmp_path: Path) -> None:
    y = np.zeros((3, 4, 5), np.float32)
    y[2] = 255
    format_ = Pictures("png", layer(3, "channels_first"), (0.0, 255.0), None)
    OutputFolder(tmp_path, format_).write("y", y)
    with Image.open(tmp_path / "y.png") as image:
        assert np.array(image).shape == (4, 5, 3)
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert format_.file_bytes((1, 3, 4, 5), 4) == 60


@pytest.mark.parametrize("name", PICTURE_FORMATS)
def test_every_format_is_near_what_was_computed(tmp_path: Path, name: str) -> None:
    y = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.float32)[:, None, None], (64, 48, 3))
    pixels, _ = written(y, tmp_path, name)
    np.testing.assert_allclose(pixels, y, atol=0.5 if name == "png" else 6)


def test_a_batch_of_one_is_a_sample_and_of_more_is_refused(tmp_path: Path) -> None:
    assert written(grey(1, 2)[None], tmp_path)[0].tolist() == [[1, 2]]
    with pytest.raises(InvalidRequestError, match=r"one sample for --format png\. Received a batch of 2: --format npy"):
        Pictures("png", layer(1), (0.0, 1.0), None).check(2)


@pytest.mark.parametrize("filters", [2, 4, 64])
def test_other_numbers_of_channels_are_refused_with_advice(filters: int) -> None:
    with pytest.raises(
        InvalidRequestError, match=f"1 or 3 filters.*Received {filters} filters: --format npy"
    ) as caught:
        Pictures("jpg", layer(filters), (0.0, 1.0), None)
    assert caught.value.violations[0].field == "format"


def test_a_picture_that_its_format_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path, Pictures("jpg", layer(1), (0.0, 1.0), None))
    with pytest.raises(Exception, match=r"65500|65535|broken|Maximum|encoder"):
        outputs.write("y", np.zeros((1, 70_000, 1), np.float32))
    assert not (tmp_path / "y.jpg").exists()
    assert list((tmp_path / UNFINISHED).iterdir()) == []


def test_the_default_range_is_the_inputs() -> None:
    assert picture_range(None, None, "png", None) == (0.0, 255.0)
    assert picture_range(None, (-1.0, 1.0), "webp", "rgb") == (-1.0, 1.0)
    assert picture_range("own", (-1.0, 1.0), "jpg", None) == "own"
    assert picture_range(None, None, "npy", None) == (0.0, 255.0)
    for field, options in (("value_range", ((0.0, 1.0), None)), ("mode", (None, "grey"))):
        with pytest.raises(InvalidRequestError, match="png, jpg, webp") as caught:
            picture_range(options[0], None, "npz", options[1])
        assert caught.value.violations[0].field == field
