"""The layer store against a dictionary that says what it should hold, and with many threads at once."""

from __future__ import annotations

import random
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from obstore.store import MemoryStore

from convserve import Layer, LayerNotFoundError, NameConflictError, OverloadedError, TooLargeError
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from tests.support.layers import tiny
from tests.support.layers.places import opened

OVERHEAD_BYTES = 4096  # what the store counts beside a layer's weights
MEMORY_BYTES, DISK_BYTES = 40_000, 2**30
# The last two are larger than the whole memory.
LAYERS = [tiny.layer(*each) for each in enumerate([1, 1, 10, 1000, 2000, 2500, 5000, 8000, 12_000, 15_000])]
SIZES = {each.digest: each.kernel.nbytes + OVERHEAD_BYTES for each in LAYERS}

layers = st.sampled_from(LAYERS)
names = st.sampled_from(["a", "b", "net/a", "net/b", "net/c"])


class StoreModel(RuleBasedStateMachine):
    """A store, and a dictionary, tables of names and pins, and an order of use that it is held against."""

    def __init__(self) -> None:
        super().__init__()
        self.place: tempfile.TemporaryDirectory[str] | MemoryStore | None = None
        self.held: dict[bytes, Layer] = {}
        self.leads_to: dict[str, bytes] = {}
        self.versions: dict[str, list[bytes]] = {}
        self.pins: dict[str, set[bytes]] = {}
        self.in_memory: OrderedDict[bytes, None] = OrderedDict()

    @initialize(kind=st.sampled_from(["memory", "folder", "bucket"]))
    def open(self, kind: str) -> None:
        self.place = None
        if kind != "memory":
            self.place = tempfile.TemporaryDirectory() if kind == "folder" else MemoryStore()
        self.store = self.opened()

    def opened(self) -> LayerStore:
        place = Path(self.place.name) if isinstance(self.place, tempfile.TemporaryDirectory) else self.place
        return opened(place, MEMORY_BYTES, DISK_BYTES)

    def teardown(self) -> None:
        if isinstance(self.place, tempfile.TemporaryDirectory):
            self.place.cleanup()

    # What the model does

    def memory_bytes(self) -> int:
        return sum(SIZES[key] for key in self.in_memory)

    def used(self, key: bytes) -> None:
        """Makes a layer the last used; with a folder that may bring it back from there."""
        self.in_memory[key] = None
        self.in_memory.move_to_end(key)
        for oldest in list(self.in_memory):
            if self.memory_bytes() <= MEMORY_BYTES:
                return
            if oldest in self.pinned():
                continue
            if self.place or (oldest != key and oldest not in self.leads_to.values()):
                del self.in_memory[oldest]
                if not self.place:
                    del self.held[oldest]

    def pinned(self) -> set[bytes]:
        return {key for keys in self.pins.values() for key in keys}

    def gone(self, key: bytes) -> None:
        del self.held[key]
        self.in_memory.pop(key, None)
        for name in [name for name, each in self.leads_to.items() if each == key]:
            self.name_gone(name)
        for keys in self.pins.values():
            keys.discard(key)

    def name_gone(self, name: str) -> None:
        del self.leads_to[name], self.versions[name]
        self.pins.pop(name, None)

    def refusal(self, key: bytes, name: str) -> type[Exception] | None:
        if key in self.held or self.place:
            return None
        if SIZES[key] > MEMORY_BYTES:
            return TooLargeError
        named = {key for other, key in self.leads_to.items() if other != name}
        pinned = sum(SIZES[each] for each in named | self.pinned())
        return OverloadedError if pinned + SIZES[key] > MEMORY_BYTES else None

    # What is done to both

    @rule(layer=layers, name=st.one_of(st.just(""), names))
    def put(self, layer: Layer, name: str) -> None:
        key = layer.digest
        refusal = self.refusal(key, name)
        if refusal:
            with pytest.raises(refusal):
                self.store.put(layer, Move(name))
            return
        described, existed, version = self.store.put(layer, Move(name))
        assert existed == (key in self.held)
        self.held[key] = layer
        if name:
            if self.leads_to.get(name) != key:
                self.versions.setdefault(name, []).append(key)
            self.leads_to[name] = key
        assert version == (len(self.versions[name]) if name else 0)
        self.used(key)
        assert described.digest == key
        self.described(key, described)

    @rule(layer=layers)
    def get(self, layer: Layer) -> None:
        key = layer.digest
        if key not in self.held:
            with pytest.raises(LayerNotFoundError):
                self.store.layer(key)
            return
        np.testing.assert_array_equal(self.store.layer(key).kernel, layer.kernel)
        self.used(key)

    @rule(layer=layers)
    def describe(self, layer: Layer) -> None:
        key = layer.digest
        if key not in self.held:
            with pytest.raises(LayerNotFoundError):
                self.store.describe(key)
            return
        self.described(key, self.store.describe(key))

    def described(self, key: bytes, found: Any) -> None:
        assert found.names == tuple(sorted(name for name, each in self.leads_to.items() if each == key))
        assert found.kernel_shape == self.held[key].kernel.shape

    @rule(layer=layers)
    def delete(self, layer: Layer) -> None:
        if layer.digest in self.held:
            self.store.delete(layer.digest)
            self.gone(layer.digest)
        else:
            with pytest.raises(LayerNotFoundError):
                self.store.delete(layer.digest)

    @rule(name=names)
    def delete_name(self, name: str) -> None:
        key = self.leads_to.get(name)
        if key is None:
            with pytest.raises(LayerNotFoundError):
                self.store.delete(name)
            return
        self.store.delete(name)
        self.name_gone(name)
        if key not in self.leads_to.values():
            self.gone(key)

    @rule(name=names, layer=layers, expected=st.one_of(st.none(), st.just(b""), layers.map(lambda each: each.digest)))
    def move(self, name: str, layer: Layer, expected: bytes | None) -> None:
        key, move = layer.digest, Move(name, expected)
        if key not in self.held:
            with pytest.raises(LayerNotFoundError):
                self.store.move(move, key)
        elif self.leads_to.get(name) != key and expected not in (None, self.leads_to.get(name, b"")):
            with pytest.raises(NameConflictError):
                self.store.move(move, key)
        else:
            described, version = self.store.move(move, key)
            if self.leads_to.get(name) != key:
                self.versions.setdefault(name, []).append(key)
            self.leads_to[name] = key
            assert version == len(self.versions[name])
            self.described(key, described)

    @rule(name=names, number=st.integers(0, 3))
    def move_back(self, name: str, number: int) -> None:
        versions = self.versions.get(name, [])
        if not 0 < number <= len(versions) or versions[number - 1] not in self.held:
            with pytest.raises(LayerNotFoundError):
                self.store.move(Move(name), number)
            return
        key = versions[number - 1]
        assert self.store.move(Move(name), number)[0].digest == key
        if versions[-1] != key:
            versions.append(key)
        self.leads_to[name] = key

    @rule(name=names, expected=st.one_of(st.none(), layers.map(lambda each: each.digest)))
    def move_away(self, name: str, expected: bytes | None) -> None:
        key = self.leads_to.get(name)
        refusal = LayerNotFoundError if key is None else NameConflictError if expected not in (None, key) else None
        if refusal:
            with pytest.raises(refusal):
                self.store.remove_name(Move(name, expected))
            return
        self.store.remove_name(Move(name, expected))
        self.name_gone(name)

    @rule(name=names)
    def pin(self, name: str) -> None:
        key = self.leads_to.get(name)
        if key is None:
            with pytest.raises(LayerNotFoundError):
                self.store.pin(name)
            return
        if self.place and key not in self.pinned():
            beside = sum(SIZES[each] for each in self.pinned())
            if beside + SIZES[key] > MEMORY_BYTES:
                with pytest.raises((OverloadedError, TooLargeError)):
                    self.store.pin(name)
                if key in self.in_memory:
                    self.used(key)
                return
        self.store.pin(name)
        self.pins.setdefault(name, set()).add(key)
        self.used(key)

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.store.unpin(name)
        self.pins.pop(name, None)

    @rule(prefix=st.sampled_from(["", "a", "net/", "none"]), after=layers, size=st.integers(0, 12))
    def page(self, prefix: str, after: Layer, size: int) -> None:
        keys = set(self.held)
        if prefix:
            keys = {key for name, key in self.leads_to.items() if name.startswith(prefix)}
        expected = sorted(key for key in keys if key > after.digest)[:size]
        assert [each.digest for each in self.store.page(prefix, after.digest, size)] == expected

    @precondition(lambda self: self.place)
    @rule()
    def reopen(self) -> None:
        self.store = self.opened()
        self.in_memory.clear()
        self.pins.clear()

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "store"):
            return
        usage = self.store.usage()
        assert (usage.layers, usage.memory_bytes) == (len(self.held), self.memory_bytes())
        assert usage.memory_bytes <= MEMORY_BYTES
        every = [each.digest for each in LAYERS]
        assert self.store.missing(every) == [key for key in every if key not in self.held]
        for name, key in self.leads_to.items():
            assert self.store.digest_of(name) == key
            assert self.store.versions(name).digests == tuple(self.versions[name])
            assert self.store.versions(name).first == 1
        assert self.store.names() == tuple(sorted(self.leads_to))


StoreModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestStoreModel = StoreModel.TestCase


def test_threads_may_use_it_at_once(tmp_path: Path) -> None:
    """Every layer is the right one at any time, and the books are right at the end."""
    shared = [tiny.layer(number, 256) for number in range(12)]
    budget = 5 * (1024 + OVERHEAD_BYTES)
    for store in (opened(None, budget), opened(tmp_path, budget)):

        def work(seed: int, store: LayerStore = store) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                number = rng.randrange(12)
                key = shared[number].digest
                try:
                    if rng.random() < 0.4:
                        store.put(shared[number], Move(rng.choice(["", "", f"n{rng.randrange(3)}"])))
                    elif rng.random() < 0.1:
                        store.delete(key)
                    elif rng.random() < 0.1:
                        store.delete(f"n{rng.randrange(3)}")
                    elif rng.random() < 0.2:
                        store.page("n", b"", 5)
                    else:
                        assert store.layer(key).kernel.flat[0] == number
                        assert store.describe(key).digest == key
                except (LayerNotFoundError, OverloadedError):
                    pass

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))  # which raises what a thread raised
        assert 0 < store.usage().memory_bytes <= budget
        for each in store.page("", b"", 100):
            store.delete(each.digest)
        assert (store.usage().layers, store.usage().memory_bytes) == (0, 0)
