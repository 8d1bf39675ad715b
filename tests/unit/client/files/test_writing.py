"""Files that are written whole or not at all, whatever is there before and whatever the disk takes."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve.errors import InvalidRequestError
from convserve.files.arrays import save_array
from convserve.files.images import write_picture
from convserve.files.layers import save_layer
from convserve.files.writing import check_destination, whole_file

LAYER = convserve.Layer(convserve.Conv2D(8, 3, use_bias=False), np.ones((3, 3, 64, 8), "f4"))
NOISE = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype("u1")
WRITERS = {
    "w.safetensors": lambda path: save_layer(path, LAYER),
    "w.npz": lambda path: save_layer(path, LAYER),
    "y.npy": lambda path: save_array(path, np.ones((1, 64, 64, 8), "f4")),
    "y.png": lambda path: write_picture(path, NOISE),
    "maps.jpg": lambda path: write_picture(path, NOISE, channels=[0]),
}


def write(path, text):
    with whole_file(path) as file:
        file.write(text.encode())


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InvalidRequestError, match=r"can be written.*File too large"):
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == before


def test_permissions_stay(tmp_path):
    path = tmp_path / "y"
    write(path, "first")
    assert path.stat().st_mode & 0o111 == 0
    path.chmod(0o640)
    write(path, "second")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("second", 0o640)


@pytest.fixture
def another_group(monkeypatch):
    """Gives a file another group, and an attribute, by inode: who runs tests may have one group, and a disk none."""
    groups, attributes, stat, access = {}, {}, os.stat, "system.posix_acl_access"

    def stat_with_group(path, **options):
        found = stat(path, **options)
        return os.stat_result((*found[:5], groups.get(found.st_ino, found.st_gid), *found[6:]))

    def give(path, *, is_member):
        groups[stat(path).st_ino], attributes[stat(path).st_ino] = 1234, {access: b"of some"}
        refused = None if is_member else PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        def chown(path, _, group):
            if refused:
                raise refused
            groups[stat(path).st_ino] = group

        monkeypatch.setattr(os, "chown", chown)

    def of(path):
        return attributes.setdefault(stat(path).st_ino, {})

    monkeypatch.setattr(os, "stat", stat_with_group)
    monkeypatch.setattr(os, "listxattr", of, raising=False)
    monkeypatch.setattr(os, "getxattr", lambda path, name: of(path)[name], raising=False)
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: of(path).update({name: value}), raising=False)
    give.seen = lambda path: (os.stat(path).st_gid, of(path))
    return give


@pytest.mark.parametrize("is_member", [True, False], ids=["a group of ours", "a group that we cannot give"])
def test_group_and_attributes_stay(tmp_path, another_group, is_member):
    path = tmp_path / "y"
    path.write_text("what was there first")
    path.chmod(0o664)
    another_group(path, is_member=is_member)
    before = another_group.seen(path)
    write(path, "second")
    assert (path.read_text(), path.stat().st_mode & 0o777, another_group.seen(path)) == ("second", 0o664, before)
    assert [each.name for each in tmp_path.iterdir()] == ["y"]


def test_no_group_may_read_what_only_another_may(tmp_path):
    path = tmp_path / "y"
    path.touch()
    path.chmod(0o660)
    with whole_file(path) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path, is_there):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to("folder/target")
    if is_there:
        target.write_text("first")
    write(link, "second")
    assert link.is_symlink()
    assert target.read_text() == "second"
    assert [each.name for each in target.parent.iterdir()] == ["target"]


def test_a_pipe_is_written_to(tmp_path):
    """Here it is what a link leads to, as /dev/stdout does."""
    code = "import numpy; from convserve.files.arrays import save_array; save_array('y.npy', numpy.arange(2))"
    (tmp_path / "y.npy").symlink_to("/dev/stdout")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    (tmp_path / "got.npy").write_bytes(done.stdout)
    assert np.load(tmp_path / "got.npy").tolist() == [0, 1]
    assert Path(os.readlink(tmp_path / "y.npy")) == Path("/dev/stdout")


@pytest.mark.parametrize("kept", ["", "y"], ids=["a folder that takes no others", "a file that is read-only"])
def test_what_may_not_be_replaced_is_opened_itself(tmp_path, monkeypatch, kept):
    """And so nobody but the superuser, who runs tests in a container, can write to such a file."""
    path = tmp_path.resolve() / "y"
    path.write_text("first")
    before = path.stat().st_ino
    monkeypatch.setattr(os, "access", lambda each, _: each != path.parent / kept)
    write(path, "second")
    assert (path.read_text(), path.stat().st_ino) == ("second", before)


@pytest.mark.parametrize("is_of_another", [True, False], ids=["another user's file", "a file with two names"])
def test_owner_and_other_names_stay(tmp_path, monkeypatch, is_of_another):
    path = tmp_path / "y"
    path.write_text("first")
    before = path.stat().st_ino
    if is_of_another:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    else:
        (tmp_path / "z").hardlink_to(path)
    write(path, "second")
    assert {(each.read_text(), each.stat().st_ino) for each in tmp_path.iterdir()} == {("second", before)}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_cannot_be_replaced_after_all_gets_the_bytes(tmp_path, monkeypatch, is_there):
    """As one that is a mount of its own in a container."""
    path = tmp_path / "y"
    if is_there:
        path.write_text("what was there first")

    def replace(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", replace)
    with contextlib.nullcontext() if is_there else pytest.raises(OSError, match="busy"):
        write(path, "second")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["second"] * is_there


def test_a_destination_is_checked_before_the_work(tmp_path):
    check_destination(tmp_path / "y.NPY", (".npy",), "output")
    for wrong, words in (("y.png", "ends in .npy"), ("no/y.npy", "a folder that exists")):
        with pytest.raises(InvalidRequestError, match=words):
            check_destination(tmp_path / wrong, (".npy",), "output")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InvalidRequestError, match="a folder that exists"):
        check_destination(tmp_path / "folder.npy", (".npy",), "output")


def test_a_destination_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    path = tmp_path / "y.npy"
    path.touch()
    for writable in ({path}, {tmp_path}, {path, tmp_path}):
        monkeypatch.setattr(os, "access", lambda each, mode, writable=writable: each in writable and mode == os.W_OK)
        check_destination(path, (".npy",), "output")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InvalidRequestError, match=r"output: Expected a file that can be written\. Received '.*y\.npy'"):
        check_destination(path, (".npy",), "output")
