"""The page's inputs and what their code makes; what the controls offer, and how they are read."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from convserve.errors import InvalidArgumentError
from convserve.layers.arguments import FAMILIES
from convserve.play import choices
from convserve.play.convolution.pictures import Upload, input_array, input_code
from convserve.play.convolution.settings import CHOICES, OBJECTS, SIZES, Settings

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"  # which Pillow has Ghostscript run
DAMAGED = [
    Upload("x.png", b"\x89PNG\r\n\x1a\n" + bytes(9)),
    Upload("x.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(40)),
    Upload("x.webp", b"RIFF\x10\0\0\0WEBPVP8 "),
]


def made_by(code):
    names = {}
    exec(code, names)  # noqa: S102 (code of ours)
    return names["x"]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("picture", ["photo", "checkerboard", "digit", "numbers"])
@pytest.mark.parametrize("size", [8, 96])
def test_the_code_makes_the_same_input(picture, grey, data_format, size):
    settings = Settings(picture=picture, grey=grey, data_format=data_format, size=size)
    x = input_array(settings)
    again = made_by(input_code(settings))
    assert (again.shape, again.dtype) == (x.shape, x.dtype)
    assert np.array_equal(again, x)
    assert x.flags.c_contiguous
    assert x.dtype == (np.float32 if picture == "numbers" else np.uint8)
    assert np.ptp(x) > (200 if picture != "numbers" and size > 8 else 20)


def test_the_code_of_a_grid_has_its_numbers_exactly():
    settings = Settings(picture="numbers", grid=((1234567.0, 0.1), (-1e-9, 3.0)))
    assert np.array_equal(made_by(input_code(settings)), input_array(settings))


@pytest.mark.parametrize("size", SIZES)
def test_pictures_have_the_size_that_is_asked_for(size):
    for picture in ("photo", "checkerboard", "digit"):
        assert max(input_array(Settings(picture=picture, size=size)).shape[1:3]) == size


def png(mode, orientation=1):
    """Returns the bytes of a dark picture of 12 x 5; what can be transparent is so at the left."""
    image = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    exif = image.Exif()
    exif[0x112] = orientation
    picture = image.fromarray(np.arange(60, dtype=np.uint8).reshape(5, 12)).convert(mode)
    if mode == "LA":
        picture.paste((0, 0), (0, 0, 4, 5))
    picture.save(data, "PNG", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB"])
@pytest.mark.parametrize(("orientation", "shape"), [(1, (1, 3, 8, 3)), (6, (1, 8, 3, 3))])
def test_an_upload_is_made_small_turned_upright_and_laid_on_white(tmp_path, monkeypatch, mode, orientation, shape):
    data = png(mode, orientation)
    settings = Settings(picture="upload", size=8)
    x = input_array(settings, Upload("grey.png", data))
    assert x.shape == shape
    assert bool(x.max() > 200) is (mode == "LA")
    (tmp_path / "grey.png").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(made_by(input_code(settings, "grey.png")), x)


@pytest.mark.parametrize(
    "upload", [None, Upload("x.png", b""), Upload("x.png", b"GIF89a"), Upload("x.eps", EPS), *DAMAGED]
)
def test_what_is_no_picture_is_refused_at_the_picture(upload):
    with pytest.raises(InvalidArgumentError) as refused:
        input_array(Settings(picture="upload"), upload)
    assert refused.value.violations[0].field == "picture"
    assert " at 0x" not in str(refused.value)


def test_a_picture_whose_numbers_8_bits_would_lose_is_refused():
    with pytest.raises(InvalidArgumentError) as refused:
        input_array(Settings(picture="upload"), Upload("deep.png", png("I;16")))
    text = refused.value.violations[0].description
    assert text == "Expected a picture with 8 bits per channel. Received 'deep.png': 16 bits"


@pytest.mark.parametrize("field", OBJECTS)
def test_every_name_that_keras_has_can_be_chosen(field):
    offered = CHOICES[field]
    assert set(offered.values()) - {""} == {member.keras_name for member in FAMILIES[field].members.values()}
    assert ("" in offered.values()) is not field.endswith("initializer")


def test_parameters_are_shown_with_their_defaults():
    assert choices.parameters("kernel_regularizer", "l2") == "l2=0.01"
    assert choices.parameters("activation", "tanh") == ""
    assert "seed" not in choices.parameters("kernel_initializer", "he_normal")


def test_the_numbers_of_one_filter_change_and_others_stay():
    one, two = ((1.0,),), ((2.0,),)
    assert choices.with_matrix((one,), 0, one, 4) == (one,)
    assert choices.with_matrix((one,), 2, two, 4) == (one, one, two)
    assert choices.with_matrix((one,), 2, one, 4) == (one,)  # a repeated one that was not changed
    assert choices.with_matrix((one, one, two), 2, two, 1) == (two,)
    assert choices.with_matrix((one,), 0, ((1.0, 5.0),), 4) == (((1.0, 5.0),),)


def test_what_was_cleared_is_zero():
    assert choices.matrix_of(SimpleNamespace(value=[[1, None], [2.5, 0]])) == ((1, 0), (2.5, 0))
    assert choices.padding_text("explicit", {"top": 1, "bottom": None, "left": 2, "right": 0}) == "1,0,2,0"
    assert choices.padding_text("same", {}) == "same"
