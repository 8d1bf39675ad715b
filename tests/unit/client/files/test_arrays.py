"""Arrays in .npy and .npz files: what is read, what is refused, what is written."""

import io

import ml_dtypes
import numpy as np
import pytest

from convserve.errors import InvalidRequestError, InvalidTensorError
from convserve.files.arrays import check_destination, load_array, save_array
from convserve.files.inputs import read_input


def refusal(function, *arguments, **options):
    """Returns the only violation of a call that must be refused."""
    with pytest.raises(InvalidTensorError) as caught:
        function(*arguments, **options)
    (violation,) = caught.value.violations
    assert violation.description.startswith("Expected ")
    assert " Received " in violation.description
    return violation


def test_npy_comes_back_as_it_was_saved(tmp_path):
    array = np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4)
    np.save(tmp_path / "x.npy", array)
    loaded = load_array(tmp_path / "x.npy")
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, array)


def test_npz_with_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "x.npz", only=np.ones((2, 3)))
    assert load_array(tmp_path / "x.npz").shape == (2, 3)


def test_npz_with_several_arrays_is_chosen_from_by_name(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", first=np.zeros(1), second=np.ones(2))
    np.testing.assert_array_equal(load_array(f"{tmp_path}/x.npz:second"), [1, 1])
    assert "with 2 arrays (first, second)" in refusal(load_array, tmp_path / "x.npz").description
    assert "x.npz:first'" in refusal(load_array, tmp_path / "x.npz").description
    assert "Received 'third'" in refusal(load_array, f"{tmp_path}/x.npz:third").description


def test_an_empty_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz")
    assert "with 0 arrays (none)" in refusal(load_array, tmp_path / "x.npz").description


def test_a_colon_elsewhere_in_the_path_is_part_of_it(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    np.save(folder / "x.npy", np.ones(3))
    assert load_array(folder / "x.npy").shape == (3,)


def test_python_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        assert "an array of Python objects" in refusal(load_array, tmp_path / name).description


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("kind", ["text", "empty", "cut"])
def test_broken_files_are_refused_without_advice_to_unpickle(tmp_path, name, kind):
    whole = io.BytesIO()
    (np.save if name == "x.npy" else np.savez)(whole, np.ones((50, 50)))
    (tmp_path / name).write_bytes({"text": b"not an array", "empty": b"", "cut": whole.getvalue()[:-500]}[kind])
    assert "pickle" not in refusal(load_array, tmp_path / name).description


def test_a_member_of_an_archive_that_is_damaged_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", np.arange(1000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[500] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(content)
    assert "broken" in refusal(load_array, tmp_path / "x.npz").description


def test_a_missing_file_and_a_folder_are_told_in_the_systems_words(tmp_path):
    assert "No such file" in refusal(load_array, tmp_path / "x.npy").description
    assert "directory" in refusal(load_array, tmp_path).description


def test_the_field_is_the_callers(tmp_path):
    assert refusal(load_array, tmp_path / "k.npy", "kernel").field == "kernel"
    assert refusal(load_array, tmp_path / "k.npy").field == "input"


@pytest.mark.parametrize(
    ("shape", "data_format", "expected"),
    [
        ((5, 6), "channels_last", (1, 5, 6, 1)),
        ((5, 6), "channels_first", (1, 1, 5, 6)),
        ((5, 6, 3), "channels_last", (1, 5, 6, 3)),
        ((3, 5, 6), "channels_first", (1, 3, 5, 6)),
        ((2, 5, 6, 3), "channels_last", (2, 5, 6, 3)),
    ],
)
def test_axes_that_were_left_out_are_added(tmp_path, shape, data_format, expected):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert read_input(tmp_path / "x.npy", data_format).shape == expected


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5)])
def test_other_ranks_are_refused(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert f"shape {shape}" in refusal(read_input, tmp_path / "x.npy").description


def test_saving_keeps_the_name_as_given(tmp_path):
    save_array(tmp_path / "y.data", np.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["y.data"]


def test_bfloat16_is_saved_as_float32_without_loss(tmp_path):
    array = np.array([1.0, 1 / 3, 3e38], dtype=ml_dtypes.bfloat16)
    save_array(tmp_path / "y.npy", array)
    loaded = load_array(tmp_path / "y.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.astype(ml_dtypes.bfloat16), array)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"can be written.*No such file"):
        save_array(tmp_path / "no" / "y.npy", np.ones(3))


def test_a_destination_is_checked_before_the_work(tmp_path):
    check_destination(tmp_path / "y.NPY", (".npy",), "output")
    for wrong, words in (("y.png", "ends in .npy"), ("no/y.npy", "a folder that exists")):
        with pytest.raises(InvalidRequestError, match=words):
            check_destination(tmp_path / wrong, (".npy",), "output")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InvalidRequestError, match="a folder that exists"):
        check_destination(tmp_path / "folder.npy", (".npy",), "output")
