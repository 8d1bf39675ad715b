"""`convserve batch` against a real server: what it writes, and what interrupts it."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import Client, Conv2D, Layer, cli
from convserve.batch.journal import NAME, Journal
from convserve.files.layers import save_layer
from tests.support import processes
from tests.support.holding_proxy import holding_proxy
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.waiting import eventually

Image = pytest.importorskip("PIL.Image")

KERNEL = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 4)).astype("f4")
CONFIG = Conv2D(4, 3, use_bias=False, data_format="channels_last", dtype="float32")
RNG = np.random.default_rng(1)


@pytest.fixture
def layer(client: Client) -> Any:
    """A stored layer of small integers, so that results are exact."""
    return client.put(CONFIG, kernel=KERNEL, name="batch")


def save_pictures(folder: Path, number: int, side: int = 40) -> dict[str, Any]:
    """Writes pictures, and returns their pixels by name without suffix."""
    pixels = {}
    for each in range(number):
        name = f"{'odd' if each % 2 else 'even'}/{each:04}"
        pixels[name] = RNG.integers(0, 256, (side, side + each % 5, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(folder / f"{name}.png")
    return pixels


SOME_BYTES = 60_000_000
"""What a server sends of the outputs of `save_arrays` until one call at least is answered, and not all of them."""


def save_arrays(folder: Path) -> dict[str, Any]:
    """Writes arrays of which half are in flight at once, and returns them by name without suffix.

    In flight are at most 128 MiB of inputs and outputs; these are 270 MB, in calls of at most 16 MiB, four at once.
    """
    folder.mkdir()
    arrays = {f"{number:04}": RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8) for number in range(160)}
    for name, array in arrays.items():
        np.save(folder / name, array)
    return arrays


@pytest.fixture
def run(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with the stored layer, and returns its exit status, stdout and stderr."""

    def call(*words: object, layer: object = "batch") -> tuple[int, str, str]:
        status = cli.main(["batch", *map(str, words), "--layer", str(layer), "--target", server.target])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command in a process of its own, whose files may have at most `limit` bytes."""

    def start(target: str, *options: str, limit: int | None = None) -> subprocess.Popen[str]:
        words = ("batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--layer", "batch", "--target", target)
        command = [sys.executable, "-m", "convserve", *words, *options]
        if limit is not None:
            limiting = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
            command = [sys.executable, "-c", limiting + "os.execv(sys.argv[1], sys.argv[1:])", *command]
        return processes.ended_with_the_test(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def noted(folder: Path) -> Counter[str]:
    """Returns how often the journal has each input as done."""
    path = folder / "out" / NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = (json.loads(line) for line in lines if line.endswith("\n"))
    return Counter(line["done"] for line in whole if "done" in line)


def check_all_once(folder: Path, pixels: dict[str, Any], layer: Any) -> None:
    """Checks that every output is there, is what the layer gives, and was noted once."""
    assert noted(folder) == Counter({f"{name}.png": 1 for name in pixels})
    for name, each in pixels.items():
        np.testing.assert_array_equal(np.load(folder / "out" / f"{name}.npy"), layer(each[np.newaxis])[0])
    files = {str(each.relative_to(folder / "out")) for each in (folder / "out").rglob("*") if each.is_file()}
    assert files == {f"{name}.npy" for name in pixels} | {NAME, "report.json"}


def test_a_folder_becomes_a_folder(run: Any, layer: Any, tmp_path: Path) -> None:
    pixels = save_pictures(tmp_path / "in", 12)
    status, out, err = run(tmp_path / "in", "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "12: 12 done" in out
    check_all_once(tmp_path, pixels, layer)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["items"], report["done"], report["failed"], report["left"]) == (12, 12, 0, 0)
    assert report["input_bytes"] == sum(each.nbytes for each in pixels.values())
    assert report["stopped"] is None
    status, out, _ = run(tmp_path / "in", "-o", tmp_path / "out", "--resume", "--json")
    assert status == 0
    assert json.loads(out)["skipped"] == 12


def test_a_large_array_is_read_and_written_in_parts(run: Any, layer: Any, tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (300, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "big.npy", x)
    status, out, _ = run(tmp_path / "big.npy", "-o", tmp_path / "out")
    assert status == 0
    assert "1: 1 done, of 300 samples" in out
    assert (tmp_path / "out" / NAME).read_text().count('{"part"') > 3
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "big.npy", mmap_mode="r"), layer(x))


def test_zarr_becomes_zarr(run: Any, layer: Any, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    x = RNG.integers(0, 256, (90, 64, 64, 3), dtype=np.uint8)
    group = zarr.create_group(str(tmp_path / "in.zarr"))
    group.create_array("a/x", shape=x.shape, dtype=x.dtype, chunks=(7, 64, 32, 3))[:] = x
    status, _, _ = run(tmp_path / "in.zarr", "-o", tmp_path / "out", "--format", "zarr")
    assert status == 0
    found = zarr.open_array(str(tmp_path / "out" / "in" / "a" / "x.zarr"), mode="r")
    np.testing.assert_array_equal(found[...], layer(x))
    assert found.chunks[0] % 7 == 0


def test_a_missing_zarr_is_told_in_one_line(
    run: Any, layer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pictures(tmp_path / "in", 1)
    monkeypatch.setitem(sys.modules, "zarr", None)
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", "--format", "zarr")
    assert (status, err.count("\n")) == (1, 1)
    assert "pip install 'convserve[zarr]'" in err


def test_options_are_those_of_the_call(run: Any, client: Client, layer: Any, tmp_path: Path) -> None:
    (pixels,) = save_pictures(tmp_path / "in", 1).values()
    options = ("--input-range=-1,1", "--output-dtype", "float64", "--format", "npz", "--keep-suffix")
    status, _, _ = run(tmp_path / "in", "-o", tmp_path / "out", *options)
    assert status == 0
    found = np.load(tmp_path / "out" / "even" / "0000.png.npz")["output"]
    assert found.dtype == np.float64
    x = pixels.astype(np.float32) * np.float32(2 / 255) - 1
    np.testing.assert_allclose(found, layer(x[np.newaxis])[0], atol=1e-4)


@pytest.mark.parametrize("file", ["head.safetensors", "head.npz"])
def test_layers_come_from_files_and_in_chains(run: Any, client: Client, layer: Any, tmp_path: Path, file: str) -> None:
    (pixels,) = save_pictures(tmp_path / "in", 1).values()
    head = Layer(Conv2D(1, 1, data_format="channels_last"), np.ones((1, 1, 4, 1), "f4"), np.ones(1, "f4"))
    save_layer(tmp_path / file, head)
    status, _, _ = run(tmp_path / "in", "-o", tmp_path / "out", "--layer", "batch", layer=tmp_path / file)
    assert status == 0
    expected = client.convolve([layer, head], pixels[np.newaxis]).output[0]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "even" / "0000.npy"), expected)


def test_a_classic_kernel_needs_no_stored_layer(run: Any, client: Client, tmp_path: Path) -> None:
    pixels = save_pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")  # comes first, and has no channels
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", "--layer", "sobel-x", layer="box")
    assert status == 1, err
    for name, photo in pixels.items():
        edges = client.conv2d(photo[np.newaxis], kernel="sobel-x", padding="same")
        expected = client.conv2d(edges, kernel="box", padding="same")[0]
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{name}.npy"), expected, rtol=1e-5, atol=1e-3)


def test_a_grey_photo_among_others_says_why_they_fail(run: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 1)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "in" / "a.png")
    for more in ((), ("--dry-run", "--resume")):
        status, out, _ = run(tmp_path / "in", "-o", tmp_path / "out", *more, layer="sobel-x")
        assert status == 1
        assert "even/0000.png: Expected as many channels as the layer's kernel takes, 1. Received 3 (" in out
        assert "A classic kernel is for the first input's channels: compute others in a run of their own." in out
    for more in ((), ("--dry-run", "--resume")):
        _, out, _ = run(tmp_path / "in", "-o", tmp_path / "stored", *more)
        assert "a.png: Expected as many channels as the layer's kernel takes, 3. Received 1 (" in out
        assert "classic" not in out


def test_a_name_near_a_classic_kernels_gets_a_suggestion(run: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 1)
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", layer="sobelx")
    assert status == 2
    assert "Did you mean the classic kernel 'sobel-x'?" in err


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.npz"])
def test_a_file_that_does_not_say_which_layer_is_refused(run: Any, tmp_path: Path, file: str) -> None:
    from safetensors.numpy import save_file

    save_pictures(tmp_path / "in", 1)
    weights = {"conv.weight": np.ones((4, 3, 3, 3), "f4")}
    if file.endswith(".npz"):
        np.savez(tmp_path / file, **weights)
    else:
        save_file(weights, tmp_path / file)
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", layer=tmp_path / file)
    assert status == 2
    assert "error: --layer: Expected a file that says the layer's configuration" in err


def test_an_archive_that_is_broken_is_told(run: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 1)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", layer=tmp_path / "broken.npz")
    assert status == 2
    assert "Expected a .npz archive" in err


def test_failures_are_listed_and_retried(run: Any, layer: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"nothing")
    np.save(tmp_path / "in" / "grey.npy", np.zeros((9, 9), np.float32))
    status, out, err = run(tmp_path / "in", "-o", tmp_path / "out")
    assert status == 1
    assert "4 done, 2 failed" in out
    assert "failed: bad.jpg: Expected a PNG, JPEG, " in err
    assert "grey.npy: Expected" in out
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "in" / "bad.jpg")
    np.save(tmp_path / "in" / "grey.npy", np.zeros((9, 9, 3), np.float32))
    status, out, _ = run(tmp_path / "in", "-o", tmp_path / "out", "--retry-failed")
    assert status == 0
    assert "2 done, 4 done before" in out


def test_what_cannot_be_carried_out_has_status_2(run: Any, client: Client, layer: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 1)
    assert run(tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out")
    assert (status, err.startswith("error: --output: Expected a folder without results")) == (2, True)
    client.put(CONFIG, kernel=KERNEL + 1, name="other")
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", "--resume", layer="other")
    assert (status, err.startswith("error: --layer: Expected what the results there were made with")) == (2, True)
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "out", "--resume", "--format", "npz")
    assert (status, err.startswith("error: --format: ")) == (2, True)
    status, _, err = run(tmp_path / "in", "-o", tmp_path / "else", layer=tmp_path / "nope.keras")
    assert (status, err.startswith("error: Expected a file that is there, or a stored layer. Received")) == (2, True)
    status, _, err = run(tmp_path / "nowhere", "-o", tmp_path / "out")
    assert (status, err.startswith("error: INPUT: Expected a file, a folder")) == (2, True)


def test_a_client_that_is_killed_again_and_again_loses_and_doubles_nothing(
    server: RunningServer, layer: Any, started: Any, tmp_path: Path
) -> None:
    pixels = save_pictures(tmp_path / "in", 300)
    for moment in sorted(random.Random(0).sample(range(1, 250), 2)):
        process = started(server.target, "--resume")
        eventually(lambda: noted(tmp_path).total() >= moment or process.poll() is not None, 120)  # noqa: B023
        process.kill()
        process.communicate()
    process = started(server.target, "--resume")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    check_all_once(tmp_path, pixels, layer)


def test_a_server_that_is_killed_and_started_again_is_given_the_layer_again(started: Any, tmp_path: Path) -> None:
    """It keeps its layers in memory only."""
    pixels = save_pictures(tmp_path / "in", 300)
    address = f"unix://{tmp_path}/socket"
    with numpy_server("--listen", address) as server, Client(address) as client:
        client.put(CONFIG, kernel=KERNEL, name="batch")
        process = started(address)
        eventually(lambda: noted(tmp_path).total() >= 30 or process.poll() is not None, 120)
        server.process.kill()
        server.process.wait()
    with numpy_server("--listen", address), Client(address) as client:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "300: 300 done" in out
        check_all_once(tmp_path, pixels, client.put(CONFIG, kernel=KERNEL))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_finish_what_is_in_flight(
    server: RunningServer, layer: Any, started: Any, tmp_path: Path, number: int, status: int
) -> None:
    arrays = save_arrays(tmp_path / "in")
    with holding_proxy(server.target, SOME_BYTES) as proxy:
        process = started(proxy.target)
        assert process.stderr is not None
        eventually(lambda: noted(tmp_path).total() or process.poll() is not None, 120)
        process.send_signal(number)
        assert any("stopping when what is in flight is done" in line for line in process.stderr)
        proxy.release()
        out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stopped"] == signal.Signals(number).name
    assert report["done"] == noted(tmp_path).total() == 160 - report["left"]
    assert f"{report['left']:,} not done" in out
    process = started(server.target, "--resume")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert noted(tmp_path) == Counter({f"{name}.npy": 1 for name in arrays})
    for name, x in arrays.items():
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{name}.npy"), layer(x[np.newaxis])[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_drops_what_is_in_flight(
    server: RunningServer, layer: Any, started: Any, tmp_path: Path, number: int, status: int
) -> None:
    """The server does not answer, so a run that finishes what is in flight would wait for it."""
    save_arrays(tmp_path / "in")
    with holding_proxy(server.target, SOME_BYTES) as proxy:
        process = started(proxy.target)
        assert process.stderr is not None
        eventually(lambda: noted(tmp_path).total() or process.poll() is not None, 120)
        process.send_signal(number)
        assert any("once more to drop it" in line for line in process.stderr)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "Traceback" not in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stopped"] == signal.Signals(number).name
    assert report["done"] <= noted(tmp_path).total()  # which are still written while the report is
    assert f"{report['left']:,} not done" in out


def test_a_file_larger_than_the_disk_takes_fails_alone(
    server: RunningServer, layer: Any, started: Any, tmp_path: Path
) -> None:
    pixels = save_pictures(tmp_path / "in", 20)
    pixels["even/0010"] = RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)  # its output is the largest
    Image.fromarray(pixels["even/0010"]).save(tmp_path / "in" / "even" / "0010.png")
    process = started(server.target, "--json", limit=100_000)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "0010.npy' cannot be written: File too large." in err
    assert (json.loads(out)["done"], json.loads(out)["left"]) == (19, 0)
    assert not (tmp_path / "out" / "even" / "0010.npy").exists()
    process = started(server.target, "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_all_once(tmp_path, pixels, layer)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ZeroDivisionError("a defect")])
def test_what_ends_a_run_is_in_its_report(
    run: Any, layer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pixels = save_pictures(tmp_path / "in", 3)

    def full(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note_done", full)
        if isinstance(error, OSError):
            status, _, err = run(tmp_path / "in", "-o", tmp_path / "out")
            assert (status, err.splitlines()[-1].startswith("error: --output: Expected a file that can be")) == (
                1,
                True,
            )
        else:
            with pytest.raises(ZeroDivisionError):
                run(tmp_path / "in", "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["stopped"], report["left"]) == (str(error), 3)
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--resume")[0] == 0
    check_all_once(tmp_path, pixels, layer)


def test_bad_items_of_every_kind_end_no_run(run: Any, layer: Any, tmp_path: Path) -> None:
    """Names are shown so that no terminal obeys them, and are in the report as they are."""
    pixels = save_pictures(tmp_path / "in", 4)
    strange = "new\nline\x1b[31m\udcff"
    (tmp_path / "in" / f"{strange}.jpg").write_bytes(b"nothing")
    (tmp_path / "in" / "cut.npy").write_bytes(b"\x93NUMPY\1\0\x76\0{'descr': '<f4', ")
    (tmp_path / "in" / "gone.tif").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.npz")
    (tmp_path / "in" / "notes.txt").touch()
    for more in ((), ("--resume",), ("--retry-failed",)):
        status, out, err = run(tmp_path / "in", "-o", tmp_path / "out", *more)
        assert status == 1
        assert "4 failed" in out
        assert "left out  1 .txt" in out
        assert r"failed: new\nline\x1b[31m\udcff.jpg: Expected a PNG" in err
        assert "\x1b" not in out + err
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert {each["input"] for each in report["failures"]} == {
            *("cut.npy", "gone.tif", "pipe.npz", f"{strange}.jpg"),
        }
        assert report["left_out"] == {".txt": 1}
    for name in pixels:
        assert (tmp_path / "out" / f"{name}.npy").exists()


@pytest.mark.parametrize(
    ("streams", "status"),
    [("<&- >&- 2>&-", 1), (">/dev/full 2>/dev/full", 1), (">&{gone}", 141), (">&{gone} 2>&{gone}", 141)],
)
def test_a_run_ends_as_ever_when_nobody_hears_of_it(
    server: RunningServer, layer: Any, tmp_path: Path, streams: str, status: int
) -> None:
    pixels = save_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"nothing")
    words = ("batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--layer", "batch", "--target", server.target)
    reader, gone = os.pipe()
    os.close(reader)
    script = f'exec "$@" {streams.format(gone=gone)}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "convserve", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, pass_fds=(gone,))
    os.close(gone)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["done"], report["failed"], report["stopped"]) == (4, 1, None)
    assert noted(tmp_path) == Counter({f"{name}.png": 1 for name in pixels})


def test_an_output_folder_that_cannot_be_made_is_told(run: Any, layer: Any, tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    for wrong in ("x" * 300, "file/out"):
        status, _, err = run(tmp_path / "in", "-o", tmp_path / wrong)
        assert (status in (1, 2), err.startswith("error: --output: Expected ")) == (True, True)


def test_memory_does_not_grow_with_the_data(server: RunningServer, layer: Any, started: Any, tmp_path: Path) -> None:
    """1.4 GB there and back, of which the client never holds much: what is in flight, and what malloc keeps of it."""
    (tmp_path / "in").mkdir()
    shape = (8_000, 128, 128, 3)
    array = np.lib.format.open_memmap(tmp_path / "in" / "big.npy", "w+", np.uint8, shape)
    array[::100] = 1
    array.flush()
    del array
    process = started(server.target, "--output-dtype", "float16")
    parts, memory, journal = 0, [], tmp_path / "out" / NAME
    while process.poll() is None:
        noted_parts = journal.read_text().count('{"part"') if journal.exists() else 0
        if noted_parts > parts:
            parts = noted_parts
            with suppress(AssertionError):  # it has ended meanwhile
                memory.append(processes.status(process.pid, "RssAnon"))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len(memory) > 10
    sent, returned = math.prod(shape), 2 * math.prod((shape[0], shape[1] - 2, shape[2] - 2, 4))
    assert max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 2]) < (sent + returned) / 2 / 4
    assert max(memory) < (sent + returned) / 2
