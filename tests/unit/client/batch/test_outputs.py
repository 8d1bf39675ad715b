"""Outputs of a batch: as a whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convserve import InvalidRequestError
from convserve.batch.formats.arrays import FORMATS
from convserve.batch.outputs import UNFINISHED, OutputFolder

Y = np.random.default_rng(0).random((7, 5, 4, 3), dtype=np.float32)


def read(path: Path) -> Any:
    """Returns what is in an output, read by the format's own package."""
    if path.suffix == ".zarr":
        return pytest.importorskip("zarr").open_array(str(path), mode="r")[...]
    loaded = np.load(path)
    return loaded["output"] if path.suffix == ".npz" else loaded


@pytest.fixture(params=sorted(FORMATS))
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    """A folder for each format."""
    if request.param == "zarr":
        pytest.importorskip("zarr")
    return OutputFolder(tmp_path, request.param)


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.iterdir())


def test_an_output_is_what_was_written(outputs: OutputFolder) -> None:
    size = outputs.write("a/b", Y)
    np.testing.assert_array_equal(read(outputs.path("a/b")), Y)
    assert outputs.size("a/b") == size
    assert outputs.size("a/c") is None
    outputs.clear(set())
    assert files(outputs.folder) == ["a"]


def test_an_output_that_has_lost_something_has_another_size(outputs: OutputFolder) -> None:
    size = outputs.write("y", Y)
    path = outputs.path("y")
    (path.joinpath(*"c0000") if path.is_dir() else path).write_bytes(b"half")
    assert outputs.size("y") != size


def test_a_file_is_no_folder_for_outputs(tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"mine")
    with pytest.raises(InvalidRequestError, match="Expected a folder"):
        OutputFolder(tmp_path / "y", "npy")


def test_an_output_takes_the_place_of_another(outputs: OutputFolder) -> None:
    outputs.write("y", np.zeros((9, 9, 1), np.float16))
    outputs.write("y", Y)
    np.testing.assert_array_equal(read(outputs.path("y")), Y)


def test_a_folder_of_other_outputs_is_not_what_a_file_takes_the_place_of(tmp_path: Path) -> None:
    """The outputs of x.jpg and of x.npy/1.jpg: nothing is lost."""
    outputs = OutputFolder(tmp_path, "npy")
    outputs.write("x.npy/1", Y)
    with pytest.raises(OSError, match="directory"):
        outputs.write("x", Y)
    np.testing.assert_array_equal(read(outputs.path("x.npy/1")), Y)


def test_bfloat16_is_written_as_float32(outputs: OutputFolder) -> None:
    outputs.write("y", Y.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(read(outputs.path("y")), Y.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_parts_in_any_order_make_the_same_output(outputs: OutputFolder, dtype: str) -> None:
    y = Y.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    outputs.begin("y", y.shape, dtype, 3)
    for start in (3, 6, 0):
        outputs.write_rows("y", start, y[start : start + 3])
        assert outputs.size("y") is None  # not before all is there
    outputs.finish("y")
    outputs.clear(set())
    found = read(outputs.path("y"))
    assert found.dtype == ("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(found, y.astype(found.dtype))
    assert files(outputs.folder) == [outputs.path("y").name]


def test_a_part_of_zeros_is_a_part(outputs: OutputFolder) -> None:
    outputs.begin("y", (4, 2, 2, 1), "float32", 2)
    outputs.write_rows("y", 0, np.zeros((2, 2, 2, 1), np.float32))
    outputs.write_rows("y", 2, np.ones((2, 2, 2, 1), np.float32))
    outputs.finish("y")
    assert read(outputs.path("y")).mean() == 0.5


def test_what_has_begun_is_known_by_shape_and_dtype(outputs: OutputFolder) -> None:
    assert not outputs.has_begun("y", Y.shape, "float32")
    outputs.begin("y", Y.shape, "float32", 3)
    assert outputs.has_begun("y", Y.shape, "float32")
    assert not outputs.has_begun("y", Y.shape, "float64")
    assert not outputs.has_begun("y", (8, 5, 4, 3), "float32")


def test_what_a_killed_run_left_is_removed_but_for_what_has_begun(outputs: OutputFolder) -> None:
    outputs.begin("y", Y.shape, "float32", 3)
    outputs.begin("z", Y.shape, "float32", 3)
    (outputs.folder / UNFINISHED / "half.npy").write_bytes(b"half")
    outputs.clear({"y"})
    assert outputs.has_begun("y", Y.shape, "float32")
    assert not outputs.has_begun("z", Y.shape, "float32")
    assert len(files(outputs.folder / UNFINISHED)) == 1
    outputs.clear(set())
    assert files(outputs.folder) == []


def test_a_torn_unfinished_file_is_not_gone_on_with(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path, "npy")
    outputs.begin("y", Y.shape, "float32", 3)
    (parts,) = (tmp_path / UNFINISHED).iterdir()
    with parts.open("r+b") as file:
        file.truncate(200)
    assert not outputs.has_begun("y", Y.shape, "float32")


def test_a_disk_that_takes_no_more_leaves_what_was_there(outputs: OutputFolder) -> None:
    outputs.write("y", Y)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            outputs.write("y", np.zeros((90, 90, 1), np.float64))
        with pytest.raises(OSError, match="File too large"):
            outputs.write("z", Y)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(read(outputs.path("y")), Y)
    assert outputs.size("z") is None
    assert files(outputs.folder / UNFINISHED) == []
