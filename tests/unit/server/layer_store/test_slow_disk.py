"""A store whose disk is slow: who waits for what, and what is read for what."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from obstore.store import LocalStore, MemoryStore

from convserve import Conv2D, Layer, LayerNotFoundError
from convserve_server.layer_store.durable import files as layer_files
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from tests.support.layers.places import opened

PLENTY = 2**30
CONFIG = Conv2D(64, 1, use_bias=False, data_format="channels_last", dtype="float32")


def layer(number: int, channels: int = 4) -> Layer:
    return Layer(CONFIG, np.full((1, 1, channels, 64), number, "f4"))


class Held:
    """Replaces a function, whose first call then waits to be let go.

    Attributes:
        reached: Whether it was called.
        free: Lets it go.
    """

    def __init__(self, replaced: Any) -> None:
        self.reached, self.free = threading.Event(), threading.Event()
        self._replaced, self._first = replaced, threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        if self._first.acquire(blocking=False):
            self.reached.set()
            assert self.free.wait(60)
        return self._replaced(*arguments)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def begun(pool: ThreadPoolExecutor, held: Held, *call: Any) -> Future[Any]:
    """Starts a call, and returns once it is held."""
    future = pool.submit(*call)
    assert held.reached.wait(60)
    return future


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    """A store after a restart, with layers 0 to 3, of which nothing was read yet."""
    before = LayerStore(PLENTY, LayerFiles(tmp_path, PLENTY))
    for number in range(4):
        before.put(layer(number), Move(f"n{number}"))
    return LayerStore(PLENTY, LayerFiles(tmp_path, PLENTY))


@pytest.mark.parametrize("which", [1, 2, 3, 4], ids=["layer", "layers' folder", "name", "names' folder"])
def test_a_put_that_the_disk_holds_up_holds_up_nobody_else(
    store: LayerStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    held, count, fsync = Held(os.fsync), iter(range(1, 100)), os.fsync

    def seen_fsync(descriptor: int) -> None:
        held(descriptor) if next(count) == which else fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    put = begun(pool, held, store.put, layer(9), Move("n9"))

    def others() -> list[Any]:
        cold = store.layer("n0").kernel.flat[0]
        named = [each.names for each in store.page("", b"", 10) if each.digest != layer(9).digest]
        store.put(layer(5), Move("n5"))
        store.put(layer(5), Move("n1"))
        store.pin("n2")
        store.delete("n3")
        return [cold, len(named), store.missing([layer(0).digest, b""]), store.versions("n1").latest]

    try:
        assert pool.submit(others).result(30) == [0, 4, [b""], 2]
        assert not put.done()
    finally:
        held.free.set()
    assert put.result(30)[0].names == ("n9",)
    assert (store.digest_of("n9"), store.usage().layers) == (layer(9).digest, 5)


def test_a_layer_that_is_being_written_is_there_once_it_is_durable(
    store: LayerStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", held := Held(os.fsync))
    first = begun(pool, held, store.put, layer(9))
    second = pool.submit(store.put, layer(9), Move("again"))
    try:
        assert store.missing([layer(9).digest]) == [layer(9).digest]
        with pytest.raises(LayerNotFoundError):
            store.layer(layer(9).digest)
        assert not second.done()
    finally:
        held.free.set()
    assert (first.result(30)[1], second.result(30)[1]) == (False, True)
    assert store.digest_of("again") == layer(9).digest


def test_a_layer_that_is_being_read_holds_up_neither_others_nor_a_list(
    store: LayerStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_files, "read_layer", held := Held(layer_files.read_layer))
    cold = begun(pool, held, store.layer, "n0")
    same = pool.submit(store.layer, "n0")
    try:
        assert pool.submit(store.layer, "n1").result(30).kernel.flat[0] == 1
        assert len(pool.submit(store.page, "", b"", 10).result(30)) == 4
    finally:
        held.free.set()
    assert cold.result(30) is same.result(30)  # read once


def bytes_read() -> int:
    """Returns what this process has read so far, whether the disk or the kernel's memory had it."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_list_reads_headers_and_weights_are_read_once(tmp_path: Path) -> None:
    large = [layer(number, 4096) for number in range(8)]
    before = LayerStore(0, LayerFiles(tmp_path, PLENTY))
    for each in large:
        before.put(each)
    store = LayerStore(PLENTY, LayerFiles(tmp_path, PLENTY))
    size = sum(each.kernel.nbytes for each in large)
    start = bytes_read()
    assert len(store.page("", b"", 10)) == 8
    listed = bytes_read()
    assert listed - start < size / 50
    store.page("", b"", 10)
    assert bytes_read() - listed < size / 1000
    start = bytes_read()
    for each in large:
        store.layer(each.digest)
        store.layer(each.digest)
    assert size <= bytes_read() - start < 1.1 * size


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_layer_that_is_read_is_there_once(tmp_path: Path, kind: str) -> None:
    """It is received where it stays: with its file beside it, it would take twice the memory that is counted for it."""
    large = layer(1, 2**16)
    opened(tmp_path).put(large)
    store: Any = opened(tmp_path)
    if kind == "bucket":
        opened(bucket := MemoryStore()).put(large)
        store = opened(bucket)
        store._storage._bucket._large = LocalStore(tmp_path)  # which gives it in pieces, as a network does
    tracemalloc.start()
    try:
        assert store.layer(large.digest).digest == large.digest
        assert tracemalloc.get_traced_memory()[1] < 1.2 * large.kernel.nbytes
    finally:
        tracemalloc.stop()
