"""libhdf5 loops or crashes on some damaged files: in a process of its own, which ends in time, and nobody else does."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import convserve
from convserve import importing
from convserve.importing import hdf5, untrusted
from tests.support.keras.archives import BIAS, KERNEL, conv2d, model, weights_file, write_archive, write_h5
from tests.support.processes import ended_afterwards

ONE_CONV2D = model("m", conv2d("c"))
OPENED = "import sys; print('{\"answer\": null}', flush=True); "


@pytest.fixture
def path(tmp_path):
    """A sound file."""
    return write_h5(tmp_path / "x.h5", ONE_CONV2D, {"c": {"c/kernel": KERNEL, "c/bias": BIAS}})


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program that misbehaves in the place of the one that reads."""

    def put(code, seconds=60.0):
        program = tmp_path / "program.py"
        program.write_text(code)
        monkeypatch.setattr(hdf5, "_PROGRAM", program)
        monkeypatch.setattr(hdf5, "_ALWAYS_SECONDS", seconds)

    return put


@pytest.mark.parametrize("size", [0, 1_000_000])  # less and more than a pipe holds
@pytest.mark.parametrize("begin", ["", OPENED])
def test_a_loop_is_ended(tmp_path, stand_in, size, begin):
    stand_in(f"{begin}\nimport signal\nsignal.pause()", seconds=1.0)
    path = write_archive(tmp_path / "x.keras", ONE_CONV2D, bytes(size))
    with pytest.raises(convserve.InvalidRequestError, match=r"x.keras.*did not come to an end within [12] seconds"):
        importing.read(path)


@pytest.mark.parametrize("begin", ["", OPENED, f"{OPENED} sys.stdin.buffer.readline();"])
@pytest.mark.parametrize("end", ["os.abort()", "os._exit(0)", "print('{\"answer', end=''); sys.exit(1)"])
def test_a_crash_is_told(path, stand_in, begin, end):
    stand_in(f"import os, sys; {begin} {end}")
    with pytest.raises(convserve.InvalidRequestError, match=r"x.h5.*libhdf5 crashed over it \(exit status -?\d"):
        importing.read(path)


def test_a_crash_amid_an_array_is_told(stand_in):
    answers = [
        '{"answer": null}',
        '{"answer": {"kind": "array", "shape": [9], "dtype": "<f4", "is_elsewhere": false, "filters": []}}',
        '{"answer": null}',
        "less than nine numbers",
    ]
    stand_in(f"import sys; sys.stdin.buffer.read(8); print(*{answers}, sep='\\n')")
    budget = untrusted.Budget(hdf5._PROGRAM)
    with hdf5.opened(b"", budget) as opened, pytest.raises(OSError, match="crashed"):
        opened.array("kernel")


def test_the_program_ends_by_itself_where_its_caller_is_gone():
    with ended_afterwards([sys.executable, hdf5._PROGRAM, "0.3"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.wait(timeout=60) == 1


def test_a_sound_file_may_take_longer_the_larger_it_is(path, monkeypatch):
    given, timer = [], hdf5.threading.Timer
    monkeypatch.setattr(hdf5.threading, "Timer", lambda seconds, end: given.append(seconds) or timer(60, end))
    importing.read(path)
    path.write_bytes(path.read_bytes() + bytes(20 * 2**20))
    importing.read(path)
    assert given[1] - given[0] == pytest.approx(20)


def test_a_file_over_which_libhdf5_loops_is_refused_in_time(path, monkeypatch):
    """An object in a heap has the size 0: libhdf5 1.14 looks for the next one there, and finds it."""
    monkeypatch.setattr(hdf5, "_ALWAYS_SECONDS", 2.0)
    data = path.read_bytes()
    place = data.index(b"GCOL") + 16
    while index := int.from_bytes(data[place : place + 2], "little"):
        place += 16 + -(-int.from_bytes(data[place + 8 : place + 16], "little") // 8) * 8
    assert index == 0
    path.write_bytes(data[: place + 8] + bytes(8) + data[place + 16 :])
    try:
        found = importing.read(path)
    except convserve.InvalidRequestError as error:
        assert "Received" in str(error)  # noqa: PT017 (a later libhdf5 may read it)
    else:
        np.testing.assert_array_equal(found.layers["m/c"].kernel, KERNEL)


def test_no_module_is_found_in_the_working_folder(path, tmp_path, monkeypatch):
    for name in ("h5py", "json", "faulthandler", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"import os; os.mkdir({str(tmp_path / 'sprung')!r})")
    monkeypatch.chdir(tmp_path)
    assert list(importing.read(path).layers) == ["m/c"]
    assert not (tmp_path / "sprung").exists()


def test_packages_are_found_where_the_caller_finds_them(path, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/h5py.py").write_text("raise ImportError('this one')")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    with pytest.raises(convserve.InvalidRequestError, match="this one"):
        importing.read(path)


def test_arrays_of_every_size_and_order_cross_over(tmp_path):
    arrays = {
        "empty": np.zeros((3, 0, 2), np.float32),
        "single": np.float64(3.5),
        "big_endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "half": np.arange(70_000, dtype=np.float16),
    }
    data = weights_file({"layers": arrays})
    size_giver = tmp_path / "x"
    size_giver.write_bytes(data)
    with hdf5.opened(data, untrusted.Budget(size_giver)) as opened:
        for name, array in arrays.items():
            found = opened.array(f"layers/vars/{name}")
            assert (found.shape, found.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(found, array)
            assert found.flags.writeable
        assert opened.array("layers/vars/none") is None
        assert opened.array("none/at/all") is None
        assert opened.has("layers/vars")
        assert not opened.has("layers/vars/empty/more")


def test_texts_cross_over_as_they_are(tmp_path):
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as opened:
        opened.attrs["text"] = "ü\n\"漢'"
        opened.attrs["bytes"] = b"plain"
        opened.attrs["number"] = 3
        opened.attrs["list"] = [b"a", b"b\nc"]
        opened.attrs["empty"] = np.zeros(0)
        opened.attrs["part0"], opened.attrs["part1"] = ["a"], ["b", "c"]
    with hdf5.opened(file.read_bytes(), untrusted.Budget(file)) as found:
        assert found.text("", "text") == "ü\n\"漢'"
        assert found.text("", "bytes") == "plain"
        assert found.text("", "number") == ""
        assert found.text("", "none") is None
        assert found.texts("", "list") == ["a", "b\nc"]
        assert found.texts("", "empty") == found.texts("", "none") == []
        assert found.texts("", "part") == ["a", "b", "c"]


def test_nothing_is_left_running(path):
    before = children()
    importing.read(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(convserve.InvalidRequestError):
        importing.read(path)
    assert children() <= before


def children():
    """Returns the numbers of this process' children."""
    if not os.path.isdir(f"/proc/{os.getpid()}/task"):
        pytest.skip("/proc tells of children on Linux only")
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as listed:
        return set(listed.read().split())
