"""Pictures in and out: what is read from PNG and JPEG files, and what is drawn."""

import math
import sys

import ml_dtypes
import numpy as np
import pytest

from convserve.display.pixels import MAX_MAPS
from convserve.errors import InvalidRequestError, InvalidTensorError, MissingDependencyError
from convserve.files import images

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def saved(path, image, **options):
    """Saves a picture and returns its path."""
    image.save(path, **options)
    return path


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def test_rgb_is_read_as_one_sample_of_three_channels(tmp_path):
    values = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    read = images.read_image(saved(tmp_path / "x.png", Image.fromarray(values)))
    assert read.shape == (1, 4, 5, 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read[0], values)


def test_grey_is_read_as_one_channel(tmp_path):
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    read = images.read_image(saved(tmp_path / "x.png", Image.fromarray(values)))
    assert read.shape == (1, 4, 5, 1)
    np.testing.assert_array_equal(read[0, :, :, 0], values)


def test_black_and_white_become_0_and_255(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(images.read_image(saved(tmp_path / "x.png", image))[0, :, :, 0], [[0, 255], [255, 0]])


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (4, 4), (255, 0, 0)).convert(mode)
    read = images.read_image(saved(tmp_path / ("x.png" if mode == "P" else "x.jpg"), image))
    assert read.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(read[0, 0, 0], (255, 0, 0), atol=6)


def test_transparency_is_composited_onto_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black, but nobody sees it
    read = images.read_image(saved(tmp_path / "x.png", image))
    np.testing.assert_array_equal(read[0, 0], [(255, 0, 0), (255, 255, 255)])


def test_a_transparent_palette_colour_is_composited_too(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    read = images.read_image(saved(tmp_path / "x.png", image, transparency=1))
    np.testing.assert_array_equal(read[0, 0], [(255, 0, 0), (255, 255, 255)])


def test_grey_with_transparency_stays_grey(tmp_path):
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (0, 0))
    read = images.read_image(saved(tmp_path / "x.png", image))
    np.testing.assert_array_equal(read[0, 0], [[100], [255]])


def refusal(path):
    with pytest.raises(InvalidTensorError) as caught:
        images.read_image(path)
    (violation,) = caught.value.violations
    assert violation.field == "input"
    assert str(path) in violation.description
    return violation.description


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (2, 2)).save(path, format="PPM")
    assert "a PNG, JPEG, WebP, TIFF, BMP or GIF picture" in refusal(path)
    path.write_text("no picture")
    assert "a PNG, JPEG, WebP, TIFF, BMP or GIF picture" in refusal(path)


def test_a_file_that_was_cut_is_refused(tmp_path):
    path = saved(tmp_path / "x.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:2000])
    assert "can be read" in refusal(path)


def test_a_missing_file_is_told(tmp_path):
    assert "No such file" in refusal(tmp_path / "x.png")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert images.read_image(path).shape == (1, 100, 100, 1)  # large, but no bomb, and no warning on stderr
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert "megapixels" in refusal(path)


def test_three_channels_become_the_picture_itself(tmp_path):
    output = np.linspace(-1, 1, 4 * 5 * 3, dtype=np.float32).reshape(1, 4, 5, 3)
    drawn = images.write_picture(tmp_path / "y.png", output)
    assert (drawn.kind, drawn.low, drawn.high, drawn.maps, drawn.maps_shown) == ("picture", -1, 1, 3, 3)
    pixels = pixels_of(tmp_path / "y.png")
    assert pixels.shape == (4, 5, 3)
    np.testing.assert_array_equal(pixels, np.rint((output[0] + 1) / 2 * 255))


def test_one_channel_becomes_a_grey_picture(tmp_path):
    drawn = images.write_picture(tmp_path / "y.png", np.array([[0.0, 10.0]]).reshape(1, 1, 2, 1))
    assert drawn.kind == "picture"
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png"), [[0, 255]])


def test_channels_first_and_another_sample(tmp_path):
    output = np.zeros((2, 3, 4, 5), np.float32)
    output[1, 2] = 1  # blue
    images.write_picture(tmp_path / "y.png", output, data_format="channels_first", sample=1)
    pixels = pixels_of(tmp_path / "y.png")
    assert pixels.shape == (4, 5, 3)
    np.testing.assert_array_equal(pixels[0, 0], (0, 0, 255))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.uint8])
def test_every_dtype_can_be_drawn(tmp_path, dtype):
    for channels in (1, 2):
        output = np.arange(8 * channels).reshape(1, 2, 4, channels).astype(dtype)
        assert images.write_picture(tmp_path / "y.png", output).high == 8 * channels - 1


def test_values_that_are_not_finite_are_black_and_do_not_spoil_the_scale(tmp_path):
    output = np.array([math.nan, math.inf, -math.inf, 1, 2], np.float32).reshape(1, 1, 5, 1)
    drawn = images.write_picture(tmp_path / "y.png", output)
    assert (drawn.low, drawn.high) == (1, 2)
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png"), [[0, 0, 0, 0, 255]])


def test_a_flat_picture_is_grey_and_an_empty_range_is_nan(tmp_path):
    images.write_picture(tmp_path / "y.png", np.full((1, 1, 2, 1), 5.0))
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png"), [[127, 127]])
    assert math.isnan(images.write_picture(tmp_path / "y.png", np.full((1, 1, 2, 1), math.nan)).low)


def test_a_range_may_be_given(tmp_path):
    output = np.array([-50, 0, 100, 200, 900], np.float32).reshape(1, 1, 5, 1)
    drawn = images.write_picture(tmp_path / "y.png", output, value_range=(0, 200))
    assert (drawn.low, drawn.high) == (0, 200)
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png"), [[0, 0, 128, 255, 255]])


def test_a_range_that_is_given_makes_maps_comparable(tmp_path):
    output = np.zeros((1, 9, 9, 2), np.float32)
    output[..., 1] = 1
    images.write_picture(tmp_path / "y.png", output, value_range=(0, 1))
    pixels = pixels_of(tmp_path / "y.png")
    height, width, _ = pixels.shape
    np.testing.assert_allclose(pixels[height // 2, width // 4, :3], (68, 1, 84), atol=2)  # viridis' darkest
    np.testing.assert_allclose(pixels[height // 2, 3 * width // 4, :3], (253, 231, 37), atol=2)  # and brightest


def test_the_widest_range_does_not_overflow(tmp_path):
    most = float(np.finfo(np.float32).max)
    output = np.array([-most, most], np.float32).reshape(1, 1, 2, 1)
    images.write_picture(tmp_path / "y.png", output)
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png"), [[0, 255]])


@pytest.mark.parametrize(
    ("size", "channels"),
    [((1, 1), 2), ((30, 40), 64), ((1, 500), 7), ((500, 1), 7), ((30, 40), 4), ((1, 500), 2), ((500, 1), 2)],
)
def test_other_channels_become_a_grid_of_a_sensible_size(tmp_path, size, channels):
    output = np.random.default_rng(0).normal(size=(1, *size, channels)).astype(np.float32)
    drawn = images.write_picture(tmp_path / "y.png", output)
    assert (drawn.kind, drawn.maps, drawn.maps_shown) == ("feature maps", channels, channels)
    height, width, _ = pixels_of(tmp_path / "y.png").shape
    assert 100 < height < 3000
    assert 100 < width < 3000


def test_a_grid_shows_at_most_so_many_maps(tmp_path):
    drawn = images.write_picture(tmp_path / "y.png", np.zeros((1, 2, 2, MAX_MAPS + 36)))
    assert (drawn.maps, drawn.maps_shown) == (100, MAX_MAPS)


def test_maps_without_a_range_are_drawn(tmp_path):
    output = np.zeros((1, 3, 3, 4), np.float32)
    output[..., 0] = math.nan
    output[0, 0, 0, 1] = math.inf
    images.write_picture(tmp_path / "y.jpg", output)
    assert pixels_of(tmp_path / "y.jpg").ndim == 3


def test_large_maps_are_averaged_not_sampled(tmp_path):
    output = np.zeros((1, 4000, 4000, 2), np.float32)
    output[0, :, ::2, 0] = 1  # fine stripes: sampling every n-th column would show all or nothing
    images.write_picture(tmp_path / "y.png", output)
    pixels = pixels_of(tmp_path / "y.png")
    stripes = pixels[pixels.shape[0] // 2, pixels.shape[1] // 4, :3]
    np.testing.assert_allclose(stripes, (33, 145, 140), atol=8)  # the middle of viridis


def test_named_channels_are_drawn_also_of_a_picture(tmp_path):
    output = np.arange(12.0).reshape(1, 2, 2, 3)
    drawn = images.write_picture(tmp_path / "y.png", output, channels=[2, 0])
    assert (drawn.kind, drawn.low, drawn.high, drawn.maps, drawn.maps_shown) == ("feature maps", 0, 11, 3, 2)
    many = np.zeros((1, 2, 2, 300))
    many[..., 200] = 7
    drawn = images.write_picture(tmp_path / "y.png", many, channels=range(200, 300))
    assert (drawn.low, drawn.high, drawn.maps, drawn.maps_shown) == (0, 7, 300, 100)
    for channels in ([3], [-1], [], [0.0]):
        with pytest.raises(InvalidRequestError, match="from 0 to 2") as caught:
            images.write_picture(tmp_path / "y.png", output, channels=channels)
        assert caught.value.violations[0].field == "channels"


def test_a_shared_scale_makes_maps_comparable(tmp_path):
    output = np.zeros((1, 9, 9, 2), np.float32)
    output[..., 1] = 1
    output[0, :, 4:, 0] = 0.5
    drawn = images.write_picture(tmp_path / "y.png", output, value_range="shared")
    assert (drawn.low, drawn.high) == (0, 1)
    pixels = pixels_of(tmp_path / "y.png")
    row = pixels[2 * pixels.shape[0] // 3, :, :3].astype(int)
    width = row.shape[0]
    np.testing.assert_allclose(row[width // 8], (68, 1, 84), atol=2)  # viridis' darkest
    np.testing.assert_allclose(row[3 * width // 8], (33, 145, 140), atol=2)  # its middle
    np.testing.assert_allclose(row[3 * width // 4], (253, 231, 37), atol=2)  # and its brightest


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_input_is_drawn_beside(tmp_path, data_format):
    x, y = np.zeros((2, 30, 20, 3), np.uint8), np.zeros((2, 15, 10, 5), np.float32)
    x[1, :, :, 0] = 255  # red, and something to scale by
    if data_format == "channels_first":
        x, y = (np.moveaxis(each, -1, 1) for each in (x, y))
    y[1] = 1  # so that maps are of one colour
    drawing = {"data_format": data_format, "sample": 1, "beside": x, "value_range": (0, 1)}
    images.write_picture(tmp_path / "y.png", y, **drawing)
    drawn = pixels_of(tmp_path / "y.png")[..., :3].astype(int)

    def box(colour):
        rows, columns = np.nonzero(np.abs(drawn - colour).max(axis=2) < 5)
        return rows, columns

    red_rows, red_columns = box((255, 0, 0))
    map_rows, map_columns = box((253, 231, 37))
    assert red_columns.max() < map_columns.min()
    factor, rest = divmod(np.ptp(red_rows) + 1, 30)
    assert (factor > 1, rest) == (True, 0)  # each pixel is a square of whole pixels
    assert np.ptp(red_columns) + 1 == 20 * factor
    # As many for a pixel of a map: the first row of maps is half as high as the input.
    first = map_columns[map_rows == map_rows.min()]
    assert np.count_nonzero(np.diff(np.unique(first)) > 1) + 1 == len(np.unique(first)) / (10 * factor)
    assert np.all(np.isin(map_rows.min() + np.arange(15 * factor), map_rows))


def test_an_input_of_many_channels_is_drawn_as_their_mean(tmp_path):
    x = np.zeros((1, 8, 8, 6), np.float32)
    x[0, :, 4:, :] = np.arange(6)
    images.write_picture(tmp_path / "y.png", np.zeros((1, 8, 8, 1)), beside=x)
    pixels = pixels_of(tmp_path / "y.png")
    middle = pixels[pixels.shape[0] // 2, :, :3].astype(int)
    assert (np.abs(middle - (68, 1, 84)).max(axis=1) <= 2).any()  # viridis' ends: the mean's least
    assert (np.abs(middle - (253, 231, 37)).max(axis=1) <= 2).any()  # and greatest


@pytest.mark.parametrize("channels", [1, 4])
def test_a_picture_that_cannot_be_written_is_told(tmp_path, channels):
    with pytest.raises(InvalidRequestError, match=r"can be written.*No such file"):
        images.write_picture(tmp_path / "no" / "y.png", np.zeros((1, 2, 2, channels)))


def test_what_can_be_known_before_is_checked_before(tmp_path):
    images.check_picture(tmp_path / "y.png")
    with pytest.raises(InvalidRequestError, match=r"\.png or \.jpg"):
        images.check_picture(tmp_path / "y.npy")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for call in (
        lambda: images.read_image(tmp_path / "x.png"),
        lambda: images.write_picture(tmp_path / "y.png", np.zeros((1, 2, 2, 1))),
        lambda: images.check_picture(tmp_path / "y.png"),
    ):
        with pytest.raises(MissingDependencyError, match=r"pip install 'convserve\[plot\]'"):
            call()


def test_without_matplotlib_only_grids_are_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "convserve.display.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    three = np.zeros((1, 2, 2, 3))
    images.write_picture(tmp_path / "y.png", three)
    for output, options in ((np.zeros((1, 2, 2, 4)), {}), (three, {"beside": three}), (three, {"channels": [0]})):
        with pytest.raises(MissingDependencyError, match=r"pip install 'convserve\[plot\]'"):
            images.write_picture(tmp_path / "y.png", output, **options)
