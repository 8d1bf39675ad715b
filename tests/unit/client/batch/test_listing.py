"""What a folder or a pattern means: no link leads round in a circle, and nothing is left out without being counted."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convserve.batch.inputs import Inputs, find_inputs
from convserve.batch.journal import Identity, Journal
from convserve.errors import InvalidRequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files that can be read, one of them in a folder of its own."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "1.jpg").touch()
    (tmp_path / "in" / "a" / "2.jpg").touch()
    return tmp_path / "in"


def found(*arguments: object, output: Path = Path("out")) -> Inputs:
    return find_inputs([str(each) for each in arguments], output)


LINKS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "to itself": (lambda p: (p / "loop").symlink_to("."), []),
    "two to itself": (lambda p: [(p / name).symlink_to(".") for name in ("l", "m")], []),  # type: ignore[dict-item]
    "up": (lambda p: (p / "a" / "up").symlink_to(".."), []),
    "beside": (lambda p: (p / "b").symlink_to("a"), []),
    "a link that is itself": (lambda p: (p / "x.jpg").symlink_to("x.jpg"), ["x.jpg"]),
    "broken": (lambda p: (p / "x.jpg").symlink_to("nowhere"), ["x.jpg"]),
    "to a file": (lambda p: (p / "x.jpg").symlink_to("1.jpg"), ["x.jpg"]),
    "a folder of such a name": (lambda p: (p / "x.jpg").mkdir(), []),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_folder_and_a_pattern_mean_the_same_whatever_is_linked(folder: Path, kind: str) -> None:
    link, more = LINKS[kind]
    link(folder)
    expected = sorted(["1.jpg", "a/2.jpg", *more])
    for argument in (folder, f"{folder}/**/*.jpg", f"{folder}/**/**/*.jpg", f"{folder}/**"):
        assert found(argument).names == expected


def test_a_pattern_enters_the_links_whose_level_it_names(folder: Path) -> None:
    (folder / "b").symlink_to("a")
    assert found(f"{folder}/*/2.jpg").names == ["a/2.jpg", "b/2.jpg"]
    assert found(f"{folder}/b/*").names == ["2.jpg"]


def test_a_link_to_zarr_is_an_input(folder: Path) -> None:
    (folder.parent / "z.zarr").mkdir()
    (folder.parent / "z.zarr" / "zarr.json").touch()
    (folder / "linked.zarr").symlink_to("../z.zarr")
    for argument in (folder, f"{folder}/**/*"):
        assert "linked.zarr" in found(argument).names


def test_folders_deeper_than_python_recurses_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = folder.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "deep.jpg").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        names = found(folder).names
    finally:
        sys.setrecursionlimit(limit)
    assert [os.path.basename(name) for name in names] == ["1.jpg", "2.jpg", "deep.jpg"]


def test_what_is_left_out_is_counted_by_kind(folder: Path) -> None:
    for name in ("a/notes.txt", "b.TXT", "README", ".hidden.jpg", "a/.git/x.jpg", "photo.heic"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "link").symlink_to("a")
    expected = {".txt": 2, "hidden": 2, "without suffix": 1, ".heic": 1, "links to folders": 1}
    assert found(folder).left_out == expected
    assert found(folder, folder / "a", folder / "1.jpg").left_out == expected  # nothing is counted twice
    assert "links to folders" not in found(folder, folder / "link").left_out
    del expected["hidden"]  # which a pattern does not fit
    assert found(f"{folder}/**/*").left_out == expected
    assert found(f"{folder}/*").left_out == {"folders": 1, ".txt": 1, **dict.fromkeys(list(expected)[1:], 1)}
    assert found(f"{folder}/*.jpg").left_out == {}


def test_of_very_many_kinds_the_most_frequent_are_named(folder: Path) -> None:
    for number in range(30):
        (folder / f"x.{number}").touch()
        (folder / "y.most").touch()
    (folder / "z.most").touch()
    left_out = found(folder).left_out
    assert (next(iter(left_out)), left_out["others"], sum(left_out.values())) == (".most", 11, 32)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that may not be read, to the superuser too."""

    def close(folder: Path) -> None:
        scandir = os.scandir

        def refusing(path: Any) -> Any:
            if str(path) == str(folder):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)

    return close


def test_a_folder_that_may_not_be_read_is_named(folder: Path, closed: Any) -> None:
    closed(folder / "a")
    for argument in (folder, f"{folder}/**/*.jpg", f"{folder}/*/../**/*", f"{folder}/**"):
        assert found(argument, folder / "1.jpg").unread == {"a/": "The folder cannot be read: Permission denied."}
    assert found(f"{folder}/*.jpg").unread == {}
    with pytest.raises(InvalidRequestError, match=r"with none; .*Permission denied"):
        found(folder / "a")
    assert list(found(folder / "1.jpg", folder / "a").unread) == ["a/"]


def test_a_word_that_means_none_is_unread_where_others_mean_some(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.jpg")
    words = {
        "typo.jpg": "cannot be read: No such file or directory",
        "no.npz:a": "cannot be read: No such file or directory",
        "1.jpg/x": "cannot be read: Not a directory",
        "*.bmp": "with none",
        "empty": "with none",
        "notes.txt": "Expected a file that ends in",
        "pipe.jpg": "which is no file",
    }
    listed = found(*(folder / word for word in words), folder / "1.jpg")
    assert listed.names == ["1.jpg"]
    assert set(listed.unread) == set(words)
    assert all(words[name] in reason for name, reason in listed.unread.items())
    with pytest.raises(InvalidRequestError, match=r"typo\.jpg"):
        found(folder / "typo.jpg", folder / "empty")


def test_a_refusal_says_what_there_is_instead(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "x.heic").touch()
    with pytest.raises(InvalidRequestError, match=r"with none, 1 \.heic"):
        found(folder / "b")
    for missing in ("1.jpg/x.jpg", "x" * 300):
        with pytest.raises(InvalidRequestError, match=r"which cannot be read: (Not a directory|File name too long)"):
            found(folder / missing)
    os.mkfifo(folder / "pipe.npy")
    with pytest.raises(InvalidRequestError, match="which is no file"):
        found(folder / "pipe.npy")


def test_outputs_are_no_inputs_whatever_the_word(folder: Path) -> None:
    for argument in (folder, f"{folder}/**/*", f"{folder}/*/*.jpg", folder / "a"):
        try:
            names = found(argument, output=folder / "a").names
        except InvalidRequestError:
            names = []
        assert "2.jpg" not in map(os.path.basename, names)


def test_outputs_of_other_runs_are_no_inputs_unless_they_are_named(folder: Path) -> None:
    done = folder / "a" / "done"
    Journal(done, Identity("", [], {}), lambda *_: True, resume=False).close()
    (done / "2.npy").touch()
    (folder / "a" / "journal.jsonl").write_text("{}")  # of somebody else's
    for argument in (folder, f"{folder}/**", f"{folder}/**/*.*"):
        inputs = found(argument)
        assert inputs.names == ["1.jpg", "a/2.jpg"]
        assert inputs.left_out_names["outputs of batch"] == ["a/done"]
    for argument in (done, f"{done}/**", f"{folder}/a/*/*.npy"):
        assert found(folder, argument).names == ["1.jpg", "a/2.jpg", "a/done/2.npy"]
        assert "outputs of batch" not in found(done).left_out
    assert found(folder, output=done).left_out == {".jsonl": 1}


def test_an_output_folder_that_is_the_inputs_is_said_to_be(folder: Path) -> None:
    for argument in (folder, folder / "a", f"{folder}/*.jpg", folder / "1.jpg"):
        with pytest.raises(InvalidRequestError, match="another folder than that of the inputs") as caught:
            found(argument, output=folder)
        assert caught.value.violations[0].field == "output"
