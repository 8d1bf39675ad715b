"""One bad item never ends a run: it fails alone, is told of, and those after it are done."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve.batch import job, sources
from convserve.batch.inputs import find_inputs
from convserve.batch.journal import Journal
from convserve.batch.outputs import UNFINISHED, OutputFolder
from convserve.errors import InvalidTensorError
from convserve.files import reading
from convserve.tensors.codec import Array
from tests.support import batch_runs
from tests.support.batch_runs import Run, StandIn

BIG = np.arange(10, dtype=np.float32).repeat(4).reshape(10, 2, 2, 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, inputs=5)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets arrays be written in parts of 4 samples."""
    monkeypatch.setattr(job, "PART_BYTES", 4 * 4 * 4)


def check_fails_alone(run: Run, key: str, reason: str) -> None:
    """Checks that this item alone fails, in a run and in the next one."""
    for counts in ((5, 0, 1, 0), (0, 5, 1, 0)):
        batch = run(StandIn())
        assert run.counts == counts
        assert [found for found, _ in batch.tally.failures] == [key]
        assert reason in batch.tally.failures[0][1]


READ_ERRORS = (
    *(struct.error("odd"), OverflowError("odd"), MemoryError("odd"), RecursionError("odd"), KeyError("odd")),
    *(OSError("odd"), PermissionError(errno.EACCES, "odd"), UnicodeError("odd"), AssertionError("odd")),
    *(OSError(errno.EIO, "odd"), OSError(errno.ENOENT, "odd"), InvalidTensorError.for_field("input", "this", "odd")),
)


@pytest.mark.parametrize("error", READ_ERRORS, ids=repr)
@pytest.mark.parametrize("function", ["load_array", "NpyFile", "as_batch"])
def test_whatever_reading_raises_is_the_failure_of_that_input(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, function: str
) -> None:
    whole = getattr(sources, function)

    def raising(*words: Any) -> Any:
        if any(isinstance(word, os.PathLike) and "2a.npy" in os.fspath(word) for word in words):
            raise error
        return whole(*words)

    run.save("2a.npy", 1)
    monkeypatch.setattr(sources, function, raising)
    check_fails_alone(run, "2a.npy", "odd")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize(("module", "function"), [(sources, "load_array"), (sources, "NpyFile"), (job, "sources_in")])
@pytest.mark.usefixtures("small_parts")
def test_descriptors_that_run_out_end_the_run_which_can_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, number: int
) -> None:
    (run.inputs / "3.npy").unlink()
    np.save(run.inputs / "2a.npy", BIG)

    def none_left(*_: Any) -> None:
        with reading.wrap_read_errors("2a.npy", "input", "it"):
            raise OSError(number, "no more")

    with monkeypatch.context() as patched:
        patched.setattr(module, function, none_left)
        with pytest.raises(InvalidTensorError, match=r"2a\.npy': no more"):
            run(StandIn())
    assert run.batch is not None
    assert run.batch.tally.counts.failed == 0
    run(StandIn())
    assert run.noted == ["0.npy", "1.npy", "2.npy", "2a.npy", "4.npy"]


OUTPUT_ERRORS: tuple[Exception, ...] = (
    *(OSError(number, "odd") for number in (errno.ENAMETOOLONG, errno.EACCES, errno.EFBIG, errno.EISDIR, errno.EINVAL)),
    *(ValueError("odd"), UnicodeEncodeError("utf-8", "", 0, 1, "odd"), struct.error("odd")),
)


@pytest.mark.parametrize("error", OUTPUT_ERRORS, ids=repr)
@pytest.mark.parametrize("step", ["write", "begin", "write_rows", "finish"])
@pytest.mark.usefixtures("small_parts")
def test_what_one_output_raises_is_the_failure_of_that_item_which_is_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, step: str
) -> None:
    x = BIG[:4] if step == "write" else BIG
    np.save(run.inputs / "2a.npy", x)
    whole = getattr(OutputFolder, step)

    def raising(self: OutputFolder, stem: str, *words: Any) -> Any:
        if stem == "2a":
            raise error
        return whole(self, stem, *words)

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, step, raising)
        check_fails_alone(run, "2a.npy", "odd")
    batch = run(StandIn())
    assert run.counts == (1, 5, 0, 0), batch.tally.failures
    np.testing.assert_array_equal(np.load(run.output / "2a.npy"), 2 * x)
    assert not (run.output / UNFINISHED).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("step", ["write", "begin", "write_rows", "finish"])
@pytest.mark.usefixtures("small_parts")
def test_what_all_outputs_raise_ends_the_run_which_can_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    np.save(run.inputs / "2a.npy", BIG)

    def full(*_: Any) -> None:
        raise OSError(number, "no more")

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, step, full)
        with pytest.raises(OSError, match="no more"):
            run(StandIn())
    assert run.batch is not None
    assert run.batch.tally.counts.failed == 0
    run(StandIn())
    assert run.noted == ["0.npy", "1.npy", "2.npy", "2a.npy", "3.npy", "4.npy"]


@pytest.mark.parametrize("step", ["note_done", "note_failed", "note_begun", "note_part"])
@pytest.mark.usefixtures("small_parts")
def test_a_journal_that_cannot_be_written_ends_the_run(run: Run, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    np.save(run.inputs / "2a.npy", BIG)
    (run.inputs / "2b.npy").touch()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, "no more")

    monkeypatch.setattr(Journal, step, full)
    with pytest.raises(OSError, match="no more"):
        run(StandIn())


@pytest.mark.parametrize("shape", [(3, 4, 1), (10, 2, 2, 1)])
@pytest.mark.usefixtures("small_parts")
def test_a_name_that_the_system_does_not_take_fails_alone(run: Run, shape: tuple[int, ...]) -> None:
    pytest.importorskip("zarr")
    name = "2" + "x" * 250
    run.save(f"{name}.npy", 1, shape)
    for counts in ((5, 0, 1, 0), (0, 5, 1, 0)):
        batch = run(StandIn(), format_name="zarr")  # whose suffix is longer by one character
        assert run.counts == counts, batch.tally.failures
        assert "File name too long" in dict(batch.tally.failures)[f"{name}.npy"]


def test_an_output_whose_place_is_taken_by_a_folder_fails_alone(run: Run) -> None:
    run.save("2a.npy", 1)
    (run.output / "2a.npy" / "mine").mkdir(parents=True)
    (run.output / "journal.jsonl").touch()
    check_fails_alone(run, "2a.npy", "cannot be written: Is a directory")
    assert (run.output / "2a.npy" / "mine").is_dir()


@pytest.mark.parametrize("shape", [(3, 4, 1), (10, 2, 2, 1)])
@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, 200), os.unlink, lambda path: os.utime(path, (1, 1))]
)
@pytest.mark.usefixtures("small_parts")
def test_an_input_that_changes_meanwhile_fails_and_is_computed_by_the_next_run(
    run: Run, shape: tuple[int, ...], change: Callable[[Path], None]
) -> None:
    """Else its output would mix what it was with what it is, or would be taken for that of what it is now."""
    run.save("2a.npy", 7, shape)

    def changing(x: Array) -> Array:
        if x.flat[0] == 7 and (run.inputs / "2a.npy").exists():
            change(run.inputs / "2a.npy")
        return x * np.float32(2)

    batch = run(StandIn(changing))
    assert run.counts == (5, 0, 1, 0)
    assert not (run.output / "2a.npy").exists()
    assert any(text in batch.tally.failures[0][1] for text in ("It has changed", "become shorter", "No such file"))
    run.save("2a.npy", 8, shape)
    run(StandIn())
    assert run.counts == (1, 5, 0, 0)
    assert np.load(run.output / "2a.npy").mean() == 16


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # an address has at most 108 characters
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


UNREADABLE: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "text": lambda path: path.write_bytes(b"nothing"),
    "nothing": lambda path: path.touch(),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".tif"])
def test_what_is_no_readable_file_fails_alone(run: Run, make: Callable[[Path], None], suffix: str) -> None:
    make(run.inputs / f"2a{suffix}")
    check_fails_alone(run, f"2a{suffix}", "Expected ")


def save_zarr(folder: Path, name: str, chunks: tuple[int, ...], attributes: dict[str, Any], **options: Any) -> None:
    zarr = pytest.importorskip("zarr")
    options = {"dtype": "f4", "chunks": chunks, "attributes": attributes} | options
    zarr.create_array(str(folder / name), shape=(6, 4, 4, 1), **options)[:] = 1


PACKED: tuple[dict[str, Any], ...] = (
    *({"scale_factor": 0.1}, {"add_offset": 5}, {"_FillValue": -9999.0}, {"missing_value": [0]}, {"scale_factor": "x"}),
)
PLAIN: tuple[dict[str, Any], ...] = (
    *({}, {"scale_factor": 1.0, "add_offset": 0}, {"_FillValue": float("nan")}, {"_FillValue": "AAAAAAAA+H8="}),
    {"units": "m"},
)


def test_zarr_whose_elements_are_not_its_values_fails_alone(run: Run) -> None:
    for number, attributes in enumerate((*PLAIN, *PACKED)):
        save_zarr(run.inputs, f"{number}.zarr", (2, 4, 4, 1), attributes)
        (run.inputs / f"{number}.npy").unlink(missing_ok=True)
    batch = run(StandIn())
    assert run.counts == (len(PLAIN), 0, len(PACKED), 0)
    reasons = dict(batch.tally.failures)
    assert set(reasons) == {f"{number}.zarr" for number in range(len(PLAIN), len(PLAIN) + len(PACKED))}
    assert all("an array whose elements are its values" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("dtype", "fill", "is_plain"),
    [("f4", float("nan"), True), ("f4", 0, True), ("u1", 0, True), ("f4", -9999, False), ("i1", -99, False)],
)
def test_what_xarray_fills_with_in_version_2_means_no_value(run: Run, dtype: str, fill: float, is_plain: bool) -> None:
    for name, attributes in (("0.zarr", {}), ("1.zarr", {"_ARRAY_DIMENSIONS": ["time", "y", "x", "band"]})):
        save_zarr(run.inputs, name, (2, 4, 4, 1), attributes, dtype=dtype, zarr_format=2, fill_value=fill)
        run.inputs.joinpath(name).with_suffix(".npy").unlink()
    assert [key for key, _ in run(StandIn()).tally.failures] == ([] if is_plain else ["1.zarr"])
    assert run.counts == (5 - (not is_plain), 0, not is_plain, 0)


def test_what_would_take_too_much_memory_fails_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "memory_bytes", lambda: 4 * 100_000)
    run.save("2a.npy", 1, (200, 200, 1))
    run.save("2b.npy", 1, (2, 200, 200, 1))
    np.savez_compressed(run.inputs / "2c.npz", np.zeros((200, 200, 1), "f4"))
    save_zarr(run.inputs, "2d.zarr", (6, 4, 4, 1), {})
    run(StandIn())
    assert run.counts == (6, 0, 3, 0)
    monkeypatch.setattr(reading, "memory_bytes", lambda: 4 * 300)
    (run.inputs / "2d.zarr" / "zarr.json").touch()
    (run.output / "2d.npy").unlink()
    batch = run(StandIn())
    assert "a quarter of the memory" in dict(batch.tally.failures)["2d.zarr"]


STRANGE = (
    *("a\nb", "\x1b[31mred", "\udcff\udcfe", "tab\t", "a\u202eb", "quote'\"", "%s{0}$x^$", "colon:x", "x..x"),
    *("x" * 240, " ", "~", "-o", "\\", "*", "photo.npy", "é"),
)


@pytest.mark.parametrize("format_name", ["npy", "npz", "zarr"])
def test_names_of_any_bytes_are_done_and_noted(run: Run, format_name: str) -> None:
    if format_name == "zarr":
        pytest.importorskip("zarr")
    for name in STRANGE:
        run.save(f"{name}.npy", 1)
        run.save(f"{name}.d/1.npy", 1)
    run(StandIn(), format_name=format_name)
    assert run.counts == (5 + 2 * len(STRANGE), 0, 0, 0)
    assert {f"{name}.{format_name}" for name in STRANGE} <= set(os.listdir(run.output))
    run(StandIn(), format_name=format_name)
    assert run.counts == (0, 5 + 2 * len(STRANGE), 0, 0)


def test_a_folder_that_may_not_be_read_is_a_failure_until_it_may(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_unread(*words: Any) -> Any:
        found = find_inputs(*words)
        found.unread["private/"] = "The folder cannot be read: Permission denied."
        return found

    with monkeypatch.context() as patched:
        patched.setattr(batch_runs, "find_inputs", with_unread)
        check_fails_alone(run, "private/", "Permission denied")
    run(StandIn())
    assert run.counts == (0, 5, 0, 0)
