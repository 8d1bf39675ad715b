"""`convserve batch` into pictures, and what it says before it does anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import Client, Conv2D
from convserve.batch.journal import NAME
from tests.support.servers.server_process import RunningServer

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(1)
KERNEL = np.float32([[0, 1, 0], [1, 4, 1], [0, 1, 0]]).reshape(3, 3, 1, 1) / 8


@pytest.fixture
def blur(client: Client) -> Any:
    """A stored layer of three channels, each by itself, whose outputs are within 0 to 255 as its inputs are."""
    config = Conv2D(3, 3, groups=3, padding="same", use_bias=False, data_format="channels_last", dtype="float32")
    return client.put(config, kernel=KERNEL.repeat(3, axis=3), name="soft")


@pytest.fixture
def run(server: RunningServer, runs: Callable[..., Any]) -> Any:
    return runs(server.target, "batch")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos, of which some are odd."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, mode in (("a.jpg", "RGB"), ("sub/b.png", "RGB"), ("sub/clear.png", "RGBA")):
        shape = (20, 30, len(mode))
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / name)
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(folder / "deep.png")
    np.save(folder / "many.npy", np.zeros((2, 9, 9, 3), np.uint8))
    for name in ("notes.txt", "a.doc", "b.doc", "c.doc", "d.doc", ".hidden"):
        (folder / name).touch()
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_photos_becomes_one(run: Any, blur: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, err = run(photos, "--layer", "soft", "-o", out, "--format", "png")
    assert status == 1
    assert "failed: deep.png: Expected a picture with 8 bits per channel." in err
    assert "failed: many.npy: Expected one sample for --format png. Received a batch of 2" in err
    assert everything(out) == {"a.png", "sub/b.png", "sub/clear.png", NAME, "report.json"}
    with Image.open(photos / "sub/b.png") as before, Image.open(out / "sub/b.png") as after:
        expected = blur(np.array(before)[np.newaxis])[0]
        np.testing.assert_array_equal(np.array(after), np.rint(expected))
    with Image.open(out / "sub/clear.png") as image:
        assert image.mode == "RGB"
    assert "5: 3 done, 2 failed" in printed
    assert "clipped" not in printed
    assert "4 .doc: a.doc, b.doc, c.doc, ..." in printed
    assert "1 hidden: .hidden" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["left_out_names"] == {
        ".doc": ["a.doc", "b.doc", "c.doc", "d.doc"], "hidden": [".hidden"], ".txt": ["notes.txt"],
    }  # fmt: skip
    # Another run of it finds all done, and whoever asks for something else is refused.
    again = (photos, "--layer", "soft", "-o", out, "--resume", "--format")
    assert "5: 0 done, 3 done before, 2 failed" in run(*again, "png")[1]
    for options, flag in (
        (("jpg",), "--format"), (("npy",), "--format"), (("png", "--mode", "grey"), "--mode"),
        (("png", "--value-range", "0,1"), "--value-range"),
    ):  # fmt: skip
        status, _, err = run(*again, *options)
        assert (status, err.startswith(f"error: {flag}: Expected what the results there were made with")) == (2, True)


def test_values_outside_the_range_are_told(run: Any, photos: Path, tmp_path: Path) -> None:
    edges = (photos / "a.jpg", "--layer", "sobel-x", "--format", "webp", "-o")
    status, printed, _ = run(*edges, tmp_path / "clipped")
    assert status == 0
    assert "values outside --value-range, drawn black or white, in 1 of the pictures: from -" in printed
    clipped = json.loads((tmp_path / "clipped" / "report.json").read_text())["clipped"]
    assert clipped["low"] < 0
    assert clipped["high"] > 255
    status, printed, _ = run(*edges, tmp_path / "whole", f"--value-range={clipped['low']},{clipped['high']}")
    assert (status, "values outside" in printed) == (0, False)


def test_values_that_are_not_finite_are_counted_as_clipped_ones_are(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, value in (("a", np.nan), ("b", np.inf), ("c", 7)):
        np.save(tmp_path / "in" / name, np.full((16, 16, 1), value, "f4"))
    words = (tmp_path / "in", "--layer", "box", "-o")
    status, printed, _ = run(*words, tmp_path / "out", "--format", "png")
    assert (status, "not finite  drawn black, in 2 of the pictures" in printed) == (0, True)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["not_finite"], report["clipped"]) == (2, None)
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.png"))
    assert report["file_bytes"] == files < report["output_bytes"] == 3 * 1024
    assert f"3.072 kB of arrays, {files} bytes in files" in printed
    assert json.loads(run(*words, tmp_path / "arrays", "--json")[1])["not_finite"] is None


def test_a_terminal_hears_of_a_failure_once(
    run: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (photos, "--layer", "box", "--quiet", "-o")
    _, printed, err = run(*words, tmp_path / "log")
    assert (printed.count("deep.png: "), err.count("deep.png: ")) == (1, 1)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    _, printed, err = run(*words, tmp_path / "terminal")
    assert (printed.count("deep.png: "), err.count("deep.png: ")) == (0, 1)
    assert f"as told above and in {tmp_path}/terminal/report.json" in printed


def test_what_is_no_picture_is_refused_before_anything_is_written(
    run: Any, client: Client, photos: Path, tmp_path: Path
) -> None:
    client.put(Conv2D(64, 3, data_format="channels_last"), input_channels=3, name="many")
    out = tmp_path / "out"
    for words, message in (
        (("--layer", "many", "--format", "png"), "error: --format: Expected a last layer of 1 or 3 filters"),
        (("--layer", "box", "--value-range", "0,1"), "error: --value-range: Expected --format png, jpg, webp"),
        (("--layer", "box", "--format", "npz", "--mode", "rgb"), "error: --mode: Expected --format png, jpg, webp"),
    ):
        status, _, err = run(photos, *words, "-o", out)
        assert (status, err.startswith(message)) == (2, True), err
    (tmp_path / "empty").mkdir()
    for extra in ((), ("--dry-run",)):
        status, _, err = run(tmp_path / "empty", "--layer", "box", "--format", "png", "-o", out, *extra)
        assert (status, "with none" in err) == (2, True)
    assert "expected two numbers" in run(photos, "--layer", "box", "--input-range", "shared", "-o", out)[2]
    assert not out.exists()


def test_a_dry_run_says_what_a_run_then_does(run: Any, blur: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (photos, "--layer", "soft", "-o", out)
    status, printed, _ = run(*words, "--format", "png", "--dry-run")
    assert (status, out.exists()) == (1, False)
    assert "3 of (1, 20, 30, 3) uint8 -> (1, 20, 30, 3) float32" in printed
    assert "files     3 .png in " in printed
    assert "deep.png: Expected a picture with 8 bits" in printed
    assert "many.npy: Expected one sample" in printed
    assert "4 .doc: a.doc" in printed
    status, printed, _ = run(*words, "--dry-run", "--json")
    said = json.loads(printed)
    assert (said["items"], said["samples"], said["calls"], len(said["failures"])) == (4, 5, 2, 1)
    status, printed, _ = run(*words, "--json")
    done = json.loads(printed)
    assert {name: done[name] for name in ("input_bytes", "output_bytes", "samples")} == {
        name: said[name] for name in ("input_bytes", "output_bytes", "samples")
    }
    assert (done["done"], done["failed"]) == (4, 1)
    # Of what is done before it says so, and changes nothing.
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    status, printed, _ = run(*words, "--dry-run", "--resume", "--json")
    again = json.loads(printed)
    assert (again["items"], again["skipped"], again["calls"], again["output_bytes"]) == (0, 4, 0, 0)
    assert "error: --output: Expected a folder without results" in run(*words, "--dry-run")[2]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files


def test_a_dry_run_sends_no_layer(run: Any, client: Client, photos: Path, tmp_path: Path) -> None:
    from convserve import Layer
    from convserve.files.layers import save_layer

    kernel = RNG.normal(size=(3, 3, 3, 5)).astype(np.float32)
    layer = Layer(Conv2D(5, 3, use_bias=False, data_format="channels_last"), kernel)
    save_layer(tmp_path / "five.safetensors", layer)
    status, printed, _ = run(
        photos / "a.jpg", "--layer", tmp_path / "five.safetensors", "-o", tmp_path / "o", "--dry-run"
    )
    assert (status, "-> (1, 18, 28, 5) float32" in printed) == (0, True)
    assert client.missing([layer]) == [layer]


def test_a_limit_takes_the_first_inputs_and_a_resumed_run_the_others(
    run: Any, blur: Any, photos: Path, tmp_path: Path
) -> None:
    words = (photos / "**/*[abr].???", "--layer", "soft", "-o", tmp_path / "out", "--format", "jpg")
    assert "items     1: 1 done" in run(*words, "--limit", 1)[1]
    assert everything(tmp_path / "out") == {"a.jpg", NAME, "report.json"}
    assert "1 done before" in run(*words, "--limit", 1, "--resume")[1]
    assert "3: 2 done, 1 done before" in run(*words, "--resume")[1]
    assert "x>=1" in run(*words, "--limit", 0)[2]
