"""The folder of a durable store: what it survives, and what it never believes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from convserve import Conv2D, Layer, LayerNotFoundError, OverloadedError
from convserve_server.layer_files import LayerFiles
from convserve_server.store import LayerStore

PLENTY = 2**30
CONFIG = Conv2D(2, 1, data_format="channels_last", dtype="float32", name="stem", kernel_regularizer="l2").with_seed(7)
LAYER = Layer(CONFIG, np.float32([[[[1, 2], [3, 4]]]]), np.float32([5, 6]))
OTHER = Layer(CONFIG, np.float32([[[[-1, 2], [3, 4]]]]), np.float32([5, 6]))
KEY = LAYER.digest


def opened(folder: Path, memory_bytes: int = 0) -> LayerStore:
    """Returns a store that by default keeps nothing in memory, so that everything is read."""
    return LayerStore(memory_bytes, PLENTY, folder)


def file_of(folder: Path, layer: Layer = LAYER) -> Path:
    return folder / "layers" / f"{layer.digest.hex()}.safetensors"


def set_aside(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (folder / "set-aside").iterdir())


def is_layer(found: Layer | None) -> bool:
    return found is not None and found.config == CONFIG and found.digest == KEY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one layer under one name."""
    opened(tmp_path).put(LAYER, "net/stem")
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_store_that_is_opened_again_has_every_layer_and_name(tmp_path: Path, dtype: str, use_bias: bool) -> None:
    config = CONFIG.replace(dtype=dtype, use_bias=use_bias, padding=((1, 2), (3, 4)), input_shape=(None, 3, 2))
    kernel = np.float64([[[[0.1, -0.0], [np.nan, 1e-7]]]])
    layer = Layer(config, kernel, [np.inf, 1] if use_bias else None)
    first, _ = opened(tmp_path).put(layer, "a")
    opened(tmp_path).put(layer, "b/c")
    store = opened(tmp_path)
    found = store.layer(store.digest_of("b/c"))
    assert found.config == config
    assert found.digest == layer.digest
    described = store.describe(layer.digest)
    assert described.names == ("a", "b/c")
    assert (described.config, described.kernel_shape) == (first.config, first.kernel_shape)


def test_a_layers_file_is_ordinary_safetensors(folder: Path) -> None:
    tensors = load_file(file_of(folder))
    assert tensors.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(tensors["kernel"], LAYER.kernel)


def test_what_is_deleted_stays_deleted(folder: Path) -> None:
    opened(folder).put(OTHER, "other")
    opened(folder).delete_name("net/stem")
    opened(folder).delete(OTHER.digest)
    assert opened(folder).page("", b"", 10) == []
    assert [path.name for path in folder.rglob("*") if path.is_file()] == []


def test_a_file_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = opened(tmp_path), []
    fsync, rename = os.fsync, Path.rename

    def seen_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(("sync", path.name if path.is_dir() else path.suffix))
        fsync(descriptor)

    def seen_rename(path: Path, target: Path) -> Path:
        steps.append(("rename", target.suffix))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    store.put(LAYER, "a")
    assert steps == [
        ("sync", ".partial"), ("rename", ".safetensors"), ("sync", "layers"),
        ("sync", ".partial"), ("rename", ".json"), ("sync", "names"),
    ]  # fmt: skip


# Ends before every operation on a file, one after the other, a process that puts OTHER under the name of LAYER.
KILLED = """
import os, shutil, sys
from pathlib import Path
from tests.unit.test_layer_files import OTHER, opened
base, copies = map(Path, sys.argv[1:])
ended = False
for step in range(100):
    shutil.copytree(base, copies / str(step))
    child = os.fork()
    if not child:
        store, count = opened(copies / str(step)), 0
        def hook(event, arguments):
            global count
            if event in ("open", "os.rename", "os.remove", "os.mkdir"):
                if count == step:
                    os._exit(9)
                count += 1
        sys.addaudithook(hook)
        store.put(OTHER, "net/stem")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def test_killed_before_any_step_of_a_put_the_store_has_the_old_or_the_new(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    shutil.rmtree(folder / "set-aside")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    base = shutil.copytree(folder, tmp_path / "base")
    subprocess.run([sys.executable, "-c", KILLED, base, copies], check=True, env=environment)
    led_to = []
    for step in range(len(list(copies.iterdir()))):
        store = opened(copies / str(step))
        assert is_layer(store.layer(KEY))
        key = store.digest_of("net/stem")
        led_to.append(store.layer(key).digest)
        assert set_aside(copies / str(step)) == []
        assert not list((copies / str(step)).rglob("*.partial"))
    assert len(led_to) > 6
    assert led_to == sorted(led_to, key=[KEY, OTHER.digest].index)  # first the old, then the new
    assert {led_to[0], led_to[-1]} == {KEY, OTHER.digest}


# Files that are not what they should be


def test_a_file_cut_at_any_length_is_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, path = LayerFiles(folder), file_of(folder)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert files.read(KEY) is None
        path.write_bytes(data[:length])
        assert files.read_head(KEY) is None
        assert not path.exists()
    assert len(set_aside(folder)) == len(caplog.records) == 2 * len(data)
    assert all("is set aside as" in record.message for record in caplog.records)
    path.write_bytes(data)
    assert is_layer(files.read(KEY))


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_no_changed_byte_is_ever_served(folder: Path, mask: int) -> None:
    files, path = LayerFiles(folder), file_of(folder)
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        assert files.read(KEY) is None
        assert not path.exists()
        path.write_bytes(changed)
        # The head is read without the weights, so what is wrong elsewhere may pass; the head itself never does.
        assert files.read_head(KEY) in (None, (CONFIG, (1, 1, 2, 2)))


HEAD = json.dumps({"__metadata__": {"format": "convserve.v1.layer"}, "kernel": {"dtype": "F32"}}).encode()
FOREIGN = {
    "empty": b"",
    "zeros": bytes(1000),
    "a head of 2**63 bytes": b"\xff" * 7 + b"\x7f" + b"{}",
    "a head of 1 MiB, cut": (2**20).to_bytes(8, "little") + b"{" * 100,
    "deep nesting": (2**19).to_bytes(8, "little") + b"[" * 2**19,
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a number": (1).to_bytes(8, "little") + b"1",
    "not UTF-8": (2).to_bytes(8, "little") + b"\xff\xfe",
    "half a head": len(HEAD).to_bytes(8, "little") + HEAD,
    "safetensors of somebody else": save({"kernel": np.ones((1, 1, 2, 2), "f4")}),
    "safetensors with strange metadata": save({"kernel": np.ones(1, "f4")}, {"format": "convserve.v1.layer"}),
    "pickle": pickle.dumps({"kernel": [1]}),
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("contents", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_in_a_layers_place_is_set_aside(
    folder: Path, contents: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(folder)
    for ask in (LayerStore.layer, LayerStore.describe):
        path.write_bytes(contents)
        store = opened(folder)
        with pytest.raises(LayerNotFoundError):
            ask(store, KEY)
        assert (store.usage().layers, store.page("", b"", 10)) == (0, [])
        assert store.missing([KEY]) == [KEY]
    assert len(caplog.records) == 2
    assert set_aside(folder) == [path.name] * 2
    store.put(LAYER)
    assert is_layer(opened(folder).layer(KEY))


def test_a_huge_file_is_not_read(folder: Path) -> None:
    os.truncate(file_of(folder), 2**40)  # without blocks on the disk
    with pytest.raises(LayerNotFoundError):
        opened(folder).layer(KEY)


def test_a_layer_under_the_digest_of_another_is_not_served(folder: Path) -> None:
    file_of(folder).rename(file_of(folder, OTHER))
    store = opened(folder)
    with pytest.raises(LayerNotFoundError):
        store.layer(OTHER.digest)
    assert store.page("", b"", 10) == []


def test_putting_a_layer_whose_file_is_torn_writes_it_anew(folder: Path) -> None:
    file_of(folder).write_bytes(file_of(folder).read_bytes()[:-1])
    described, existed = opened(folder).put(LAYER, "net/stem")
    assert not existed
    assert described.names == ("net/stem",)
    assert is_layer(opened(folder).layer(KEY))


def test_strange_entries_among_the_layers_are_set_aside_at_the_start(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers, key = folder / "layers", "0" * 64
    (layers / "README").write_text("mine")
    (layers / "x.safetensors").write_bytes(b"")
    (layers / f"{KEY.hex().upper()}x.safetensors").write_bytes(b"")
    (layers / f"{key}.safetensors").mkdir()
    (layers / f"{key[:-1]}1.safetensors").symlink_to("/nowhere")
    os.mkfifo(layers / f"{key[:-1]}2.safetensors")
    (layers / ("n" * 255)).write_bytes(b"")
    (layers / ("ä" * 127)).write_bytes(b"")
    Path(os.fsdecode(os.fsencode(layers) + b"/\xff\xfe")).write_bytes(b"")
    (layers / "folder.partial").mkdir()
    (layers / f"{key}.safetensors.abc.partial").write_bytes(b"torn")
    store = opened(folder)
    assert [each.names for each in store.page("", b"", 10)] == [("net/stem",)]
    assert len(caplog.records) == len(set_aside(folder)) == 10
    assert sorted(path.name for path in layers.iterdir()) == [file_of(folder).name]
    caplog.clear()
    assert is_layer(opened(folder).layer(KEY))
    assert not caplog.records


def test_strange_entries_among_the_names_are_set_aside_at_the_start(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = folder / "names"
    (right,) = names.iterdir()
    content: dict[str, Any] = json.loads(right.read_text())
    (names / "torn.json").write_bytes(right.read_bytes()[:-5])
    (names / "moved.json").write_bytes(right.read_bytes())
    (names / "list.json").write_text("[]")
    (names / "numbers.json").write_text(json.dumps({"name": 1, "digest": 2}))
    (names / "short.json").write_text(json.dumps({**content, "digest": "00"}))
    (names / "deep.json").write_text("[" * 4000)
    (names / "long.json").write_text(" " * 10**6)
    (names / "surrogate.json").write_text('{"name": "\\ud800", "digest": "00"}')
    (names / "folder.json").mkdir()
    os.mkfifo(names / "pipe.json")
    (names / f"{right.name}.abc.partial").write_bytes(b"torn")
    assert opened(folder).digest_of("net/stem") == KEY
    assert len(caplog.records) == len(set_aside(folder)) == 10
    assert list(names.iterdir()) == [right]


def test_a_name_whose_layer_is_gone_leads_nowhere(folder: Path) -> None:
    file_of(folder).unlink()
    with pytest.raises(LayerNotFoundError):
        opened(folder).digest_of("net/stem")


@pytest.mark.parametrize("name", ["../../escape", "/escape", "a/b", "..", "x" * 2000, "\0"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Not even one that the store would refuse."""
    files = LayerFiles(tmp_path / "store")
    files.write_name(name, KEY)
    assert list(files.names()) == [(name, KEY)]
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "store" / "names"]
    files.delete_name(name)
    assert list(files.names()) == []


# Folders and disks that refuse


@pytest.fixture
def nobodys_folder(folder: Path) -> Iterator[Path]:
    """The same folder for a process that, unlike root, may not do everything."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / "store")
        root = os.geteuid() == 0
        if root:
            for each in (Path(place), copy, *copy.rglob("*")):
                os.chown(each, 65534, -1)
            os.seteuid(65534)
        yield copy
        if root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_used_is_an_error_at_the_start(nobodys_folder: Path) -> None:
    with pytest.raises(NotADirectoryError):
        opened(file_of(nobodys_folder))
    for each in ("layers", "names", "set-aside"):
        (nobodys_folder / each).chmod(0o555)
        with pytest.raises(PermissionError):
            opened(nobodys_folder)
        (nobodys_folder / each).chmod(0o755)
    assert is_layer(opened(nobodys_folder).layer(KEY))


def test_a_file_that_may_not_be_read_is_set_aside(nobodys_folder: Path) -> None:
    file_of(nobodys_folder).chmod(0)
    store = opened(nobodys_folder)
    with pytest.raises(LayerNotFoundError):
        store.layer(KEY)
    assert len(set_aside(nobodys_folder)) == 1
    store.put(LAYER)
    assert is_layer(store.layer(KEY))


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.ENOSPC, OverloadedError, r"--store\. Received none: No space.*Delete some"),
        (errno.EIO, OSError, "Input/output"),
    ],
)
def test_a_disk_that_fails_leaves_the_old_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], text: str
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    store = opened(folder)
    usage = store.usage()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(error, match=text):
            store.put(OTHER, "net/stem")
    assert store.usage() == usage
    assert (store.missing([OTHER.digest]), store.digest_of("net/stem")) == ([OTHER.digest], KEY)
    assert sorted(path.suffix for path in folder.rglob("*") if path.is_file()) == [".json", ".safetensors"]
    store.put(OTHER, "net/stem")
    assert opened(folder).digest_of("net/stem") == OTHER.digest
