"""Files in a store's folder that are not what they should be: never served, never fatal, quarantined and reported."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from convserve import LayerNotFoundError
from convserve_server.layer_store.durable import name_file
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move, NameVersions, Version
from convserve_server.layer_store.store import LayerStore
from tests.support.layers.folder import CONFIG, KEY, LAYER, OTHER, PLENTY, file_of, is_layer, opened, quarantined


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one layer under one name."""
    opened(tmp_path).put(LAYER, Move("net/stem"))
    return tmp_path


def test_a_file_cut_at_any_length_is_quarantined(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, path = LayerFiles(folder, PLENTY), file_of(folder)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert files.read(KEY) is None
        assert not path.exists()
    assert len(quarantined(folder)) == len(caplog.records) == len(data)
    assert all("is quarantined as" in record.message for record in caplog.records)
    path.write_bytes(data)
    assert is_layer(files.read(KEY))


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_no_changed_byte_is_ever_served(folder: Path, mask: int) -> None:
    files, path = LayerFiles(folder, PLENTY), file_of(folder)
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        assert files.read(KEY) is None
        assert not path.exists()


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
def test_a_foreign_file_in_a_layers_place_is_quarantined(
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
    assert [each.message for each in caplog.records if "quarantined" not in each.message] == [
        f"the layer {KEY.hex()} is lost, until it is put again; so lead nowhere: net/stem"
    ] * 2
    assert len(caplog.records) == 4
    assert quarantined(folder) == [path.name] * 2
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
    described, existed, _ = opened(folder).put(LAYER, Move("net/stem"))
    assert not existed
    assert described.names == ("net/stem",)
    assert is_layer(opened(folder).layer(KEY))


def test_strange_entries_among_the_layers_are_quarantined_at_the_start(
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
    assert len(caplog.records) == len(quarantined(folder)) == 10
    assert sorted(path.name for path in layers.iterdir()) == [file_of(folder).name]
    caplog.clear()
    assert is_layer(opened(folder).layer(KEY))
    assert not caplog.records


def test_strange_entries_among_the_names_are_quarantined_at_the_start(
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
    assert len(caplog.records) == len(quarantined(folder)) == 10
    assert list(names.iterdir()) == [right]


def checksum(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()


def test_a_configuration_that_was_tampered_with_is_never_computed_with(folder: Path) -> None:
    """Though it is listed where its checksum was made to fit: a list reads no weights, over which the digest is."""
    data = file_of(folder).read_bytes()
    config = json.loads(data[8 : data.rindex(b"}") + 1])["__metadata__"]["conv2d"]
    other = config.replace("0.01", "0.02")
    changed = data
    for text, instead in ((json.dumps(config), json.dumps(other)), (checksum(config), checksum(other))):
        assert changed.count(text.encode()) == 1
        changed = changed.replace(text.encode(), instead.encode())
    file_of(folder).write_bytes(changed)
    store = opened(folder)
    assert store.describe(KEY).config != CONFIG
    with pytest.raises(LayerNotFoundError):
        store.layer(KEY)
    with pytest.raises(LayerNotFoundError):
        store.describe(KEY)
    assert len(quarantined(folder)) == 1


@pytest.mark.parametrize(("text", "instead"), [("0.01", "0.02"), ('"shape":[1,1', '"shape":[2,2')])
def test_a_header_that_contradicts_itself_is_not_even_described(folder: Path, text: str, instead: str) -> None:
    data = file_of(folder).read_bytes()
    for ask in (lambda store: store.describe(KEY), lambda store: store.page("", b"", 10)[0]):
        file_of(folder).write_bytes(data.replace(text.encode(), instead.encode()))
        with pytest.raises((LayerNotFoundError, IndexError)):
            ask(opened(folder))
    assert len(quarantined(folder)) == 2


def test_weights_in_another_type_of_the_same_values_are_not_served(folder: Path) -> None:
    """They would have the same digest once they were cast."""
    with safe_open(file_of(folder), "numpy") as file:
        metadata = file.metadata()
    tensors = {"kernel": LAYER.kernel.astype("f8"), "bias": LAYER.bias.astype("f8")}
    file_of(folder).write_bytes(save(tensors, metadata))
    with pytest.raises(LayerNotFoundError):
        opened(folder).layer(KEY)


def test_the_names_of_a_layer_that_is_gone_lead_nowhere_until_it_is_put_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(folder).unlink()
    store = opened(folder)
    assert "so lead nowhere: net/stem" in caplog.text
    with pytest.raises(LayerNotFoundError, match=rf"leads nowhere, until the layer {KEY.hex()}, which was lost"):
        store.digest_of("net/stem")
    assert store.put(LAYER)[0].names == ("net/stem",)
    file_of(folder).write_bytes(b"torn")
    store = opened(folder)
    with pytest.raises(LayerNotFoundError):
        store.layer(KEY)
    with pytest.raises(LayerNotFoundError):
        store.digest_of("net/stem")
    assert opened(folder).put(LAYER)[0].names == ("net/stem",)
    assert opened(folder).digest_of("net/stem") == KEY


def test_who_asks_for_a_name_is_told_of_the_name(folder: Path) -> None:
    file_of(folder).write_bytes(b"torn")
    store = opened(folder)
    for _ in range(2):
        with pytest.raises(LayerNotFoundError, match="'net/stem', which leads nowhere, until the layer") as error:
            store.describe("net/stem")
        assert error.value.layer == "net/stem"


def test_a_name_that_leads_nowhere_can_be_deleted_and_moved(folder: Path) -> None:
    opened(folder).put(LAYER, Move("other"))
    file_of(folder).unlink()
    store = opened(folder)
    store.delete("other")
    assert store.put(OTHER, Move("net/stem"))[0].names == ("net/stem",)
    assert store.put(LAYER)[0].names == ()
    assert opened(folder).describe(OTHER.digest).names == ("net/stem",)


def test_a_removed_name_that_a_bucket_had_leads_nowhere(folder: Path) -> None:
    (folder / "names" / name_file.path_of("b")).write_bytes(name_file.encode("b", None))
    assert opened(folder).names() == ("net/stem",)
    assert quarantined(folder) == []
    assert opened(folder).put(LAYER, Move("b"))[0].names == ("b", "net/stem")


@pytest.mark.parametrize("name", ["../../escape", "/escape", "a/b", "..", "x" * 2000, "\0"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Not even one that the store would refuse."""
    files = LayerFiles(tmp_path / "store", PLENTY)
    files.write_name(name, NameVersions((Version(KEY),)))
    assert list(files.names()) == [(name, NameVersions((Version(KEY),)))]
    written = {path.parent for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    assert written == {tmp_path / "store" / "names"}
    files.write_name(name, None)
    assert list(files.names()) == []
