"""Which inputs a batch finds, and the names of their outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from convserve.batch.inputs import find_inputs, output_stem
from convserve.errors import InvalidRequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of empty files: only names matter here."""
    for name in ("1.jpg", "2.PNG", "notes.txt", "a/1.jpg", "a/b/x.npy", ".hidden/1.jpg", "a/.part.npy", "out/1.npy"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def names(*arguments: object, output: Path = Path("out"), keep_suffix: bool = False) -> list[str]:
    return find_inputs([str(each) for each in arguments], output, keep_suffix).names


def test_a_folder_means_all_that_can_be_read_below_it_but_hidden_files_and_outputs(folder: Path) -> None:
    found = find_inputs([str(folder)], folder / "out")
    assert found.folder == folder
    assert found.names == ["1.jpg", "2.PNG", "a/1.jpg", "a/b/x.npy"]


def test_a_pattern_keeps_the_folders_below_its_fixed_part(folder: Path) -> None:
    assert names(f"{folder}/**/*.jpg") == ["1.jpg", "a/1.jpg"]
    assert names(f"{folder}/a/*") == ["1.jpg"]


def test_names_are_relative_to_what_all_inputs_share(folder: Path) -> None:
    assert names(folder / "1.jpg") == ["1.jpg"]
    assert names(folder / "1.jpg", folder / "a" / "1.jpg") == ["1.jpg", "a/1.jpg"]
    assert names(folder / "a" / "1.jpg", folder / "a" / "b") == ["1.jpg", "b/x.npy"]


def test_what_is_given_twice_is_found_once(folder: Path) -> None:
    assert names(folder, folder / "a", f"{folder}/*.jpg") == names(folder)


def test_outputs_are_left_out_whichever_way_a_link_leads_to_them(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    for given, output in ((link, folder / "out"), (folder, link / "out")):
        expected = ["1.jpg", "2.PNG", "a/1.jpg", "a/b/x.npy"]
        assert names(given, output=output) == expected
        assert names(f"{given}/**/*", output=output) == expected


def test_a_relative_folder_is_that_of_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_inputs(["."], Path("out")).folder == folder
    assert names(".") == ["1.jpg", "2.PNG", "a/1.jpg", "a/b/x.npy"]


def test_a_zarr_folder_is_one_input(folder: Path) -> None:
    for name in ("z.zarr/zarr.json", "z.zarr/c/0.npy", "old/.zarray"):
        path = folder / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert names(folder / "a") == ["1.jpg", "b/x.npy", "old", "z.zarr"]
    assert names(folder / "a" / "z.zarr") == ["z.zarr"]


@pytest.mark.parametrize(
    ("name", "keep_suffix", "stem"),
    [
        ("a/1.jpg", False, "a/1"),
        ("a/1.jpg", True, "a/1.jpg"),
        ("v1.2/x.y.NPY", False, "v1.2/x.y"),
        ("z.zarr", False, "z"),
        ("old.v2", False, "old.v2"),
        ("x.npz:u", False, "x/u"),
        ("x.npz:u", True, "x.npz/u"),
    ],
)
def test_an_output_has_its_inputs_name(name: str, keep_suffix: bool, stem: str) -> None:
    assert output_stem(name, keep_suffix) == stem


def test_two_inputs_for_one_output_are_refused_unless_suffixes_are_kept(folder: Path) -> None:
    (folder / "1.png").touch()
    with pytest.raises(InvalidRequestError, match=r"'1\.jpg' and '1\.png', both for '1'.*--keep-suffix"):
        names(folder)
    assert names(folder, keep_suffix=True)[:2] == ["1.jpg", "1.png"]


def test_an_archive_beside_a_folder_of_its_name_is_refused(folder: Path) -> None:
    (folder / "a.npz").touch()
    with pytest.raises(InvalidRequestError, match=r"beside 'a\.npz', whose arrays go to 'a/'"):
        names(folder)


@pytest.mark.parametrize("argument", ["nowhere", "nowhere.jpg", "notes.txt", "*.tif", "empty", "1.jpg/x"])
def test_what_means_no_input_is_refused(folder: Path, argument: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match="input: Expected"):
        names(folder / argument)
