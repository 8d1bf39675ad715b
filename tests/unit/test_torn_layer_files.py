"""Files in a store's folder that are not what they should be: never served, never fatal, set aside and reported."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tests.layer_folder import CONFIG, KEY, LAYER, OTHER, file_of, is_layer, opened, set_aside

from convserve import LayerNotFoundError
from convserve_server.layer_files import LayerFiles
from convserve_server.store import LayerStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one layer under one name."""
    opened(tmp_path).put(LAYER, "net/stem")
    return tmp_path


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
