"""The layer store: what it keeps, what it lets go and what it refuses, in memory and with a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from obstore.store import MemoryStore

from convserve import Conv2D, InvalidRequestError, Layer, LayerNotFoundError, OverloadedError, TooLargeError
from convserve.layers.digest import digest
from convserve.tensors.aligned import ALIGNMENT, aligned_empty
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import StoreUsage
from tests.support.layers.places import opened

PLENTY = 2**30


def layer(number: int, kilobytes: int = 4, **config: Any) -> Layer:
    """Returns a layer that differs from that of every other number."""
    kernel = np.full((1, 1, kilobytes * 256, 1), number, "f4")
    return Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32", **config), kernel)


def size_of(*layers: Layer) -> int:
    """Returns what layers take of a budget of memory."""
    store = LayerStore(PLENTY)
    for each in layers:
        store.put(each)
    return store.usage().memory_bytes


def held(store: LayerStore) -> set[int]:
    """Returns the numbers of the layers in a store."""
    return {int(store.layer(each.digest).kernel.flat[0]) for each in store.page("", b"", 1000)}


@pytest.fixture(params=["memory", "folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LayerStore:
    return opened({"memory": None, "folder": tmp_path, "bucket": MemoryStore()}[request.param])


# What all kinds do


def test_what_is_put_comes_back(store: LayerStore) -> None:
    config = Conv2D(3, (2, 1), data_format="channels_last", dtype="float32", name="stem", kernel_regularizer="l2")
    given = Layer(config, np.arange(24, dtype="f4").reshape(2, 1, 4, 3), np.float32([1, 2, 3]))
    described, existed, _ = store.put(given, Move("net/stem"))
    assert not existed
    assert described == store.describe(given.digest)
    assert (described.digest, described.names, described.config) == (given.digest, ("net/stem",), config)
    assert described.kernel_shape == (2, 1, 4, 3)
    back = store.layer(store.digest_of("net/stem"))
    np.testing.assert_array_equal(back.kernel, given.kernel)
    np.testing.assert_array_equal(back.bias, given.bias)


def test_putting_again_changes_nothing(store: LayerStore) -> None:
    first, *_ = store.put(layer(1, name="first"))
    usage = store.usage()
    again, existed, _ = store.put(layer(1, name="second", kernel_initializer="ones"))
    assert existed
    assert again == first
    assert again.config.name == "first"
    assert store.usage()[:3] == usage[:3]


def test_weights_are_kept_aligned_and_read_only_and_digested_once(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests: list[bytes] = []

    def seen_digest(*arguments: Any) -> bytes:
        digests.append(digest(*arguments))
        return digests[-1]

    monkeypatch.setattr("convserve.layers.layer.digest", seen_digest)
    memory = aligned_empty((1, 1, 256, 2), "f4")
    memory[...] = 1
    aligned, other = Layer(layer(0).config.replace(filters=2), memory), layer(1)
    assert other.kernel is not None
    unaligned = np.frombuffer(b"1234" + other.kernel.tobytes(), "f4")[1:].reshape(other.kernel.shape)
    for given in (aligned, Layer(other.config, unaligned)):
        digests.clear()
        stored = store.layer(store.put(given, Move("a"))[0].digest)
        assert len(digests) == 1
        assert stored.kernel is not None
        assert not stored.kernel.flags.writeable
        assert stored.kernel.ctypes.data % ALIGNMENT == 0
        store.put(stored, Move("b"), stored.digest)
        assert len(digests) == 1
    assert np.shares_memory(store.layer(aligned.digest).kernel, memory)


def test_several_names_lead_to_one_layer_and_a_name_moves(store: LayerStore) -> None:
    one, two = layer(1).digest, layer(2).digest
    for name in ("b", "a", "c"):
        store.put(layer(1), Move(name))
    assert store.describe(one).names == ("a", "b", "c")
    assert store.put(layer(2), Move("b"))[0].names == ("b",)
    assert store.describe(one).names == ("a", "c")
    assert (store.digest_of("a"), store.digest_of("b")) == (one, two)


def test_deleting_names_keeps_the_layer_until_the_last(store: LayerStore) -> None:
    store.put(layer(1), Move("a"))
    store.put(layer(1), Move("b"))
    store.delete("a")
    assert store.describe(layer(1).digest).names == ("b",)
    store.delete("b")
    assert held(store) == set()
    with pytest.raises(LayerNotFoundError):
        store.delete("b")


def test_deleting_a_layer_deletes_its_names(store: LayerStore) -> None:
    store.put(layer(1), Move("a"))
    store.put(layer(2), Move("b"))
    store.delete(layer(1).digest)
    with pytest.raises(LayerNotFoundError):
        store.digest_of("a")
    assert held(store) == {2}
    store.delete(layer(2).digest)
    assert store.usage()[:3] == StoreUsage(0, 0, 0)[:3]


@pytest.mark.parametrize("ask", [LayerStore.layer, LayerStore.describe, LayerStore.delete])
def test_a_digest_that_is_not_held_is_to_be_put(store: LayerStore, ask: Callable[..., Any]) -> None:
    store.put(layer(1))
    key = layer(2).digest
    with pytest.raises(LayerNotFoundError, match="put it") as missing:
        ask(store, key)
    assert (missing.value.code, missing.value.layer) == (grpc.StatusCode.FAILED_PRECONDITION, key.hex())


@pytest.mark.parametrize("ask", [LayerStore.digest_of, LayerStore.delete])
def test_a_name_that_leads_nowhere_is_not_found(store: LayerStore, ask: Callable[..., Any]) -> None:
    with pytest.raises(LayerNotFoundError, match="'sobel', which leads nowhere") as missing:
        ask(store, "sobel")
    assert (missing.value.code, missing.value.layer) == (grpc.StatusCode.NOT_FOUND, "sobel")


@pytest.mark.parametrize("name", ["a", "9", "resnet50/conv1_conv", "v1.2/x-y_z.", "A" * 200, "a//b", "a/"])
def test_names_of_these_characters_are_taken(store: LayerStore, name: str) -> None:
    store.put(layer(1), Move(name))
    assert store.digest_of(name) == layer(1).digest


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "../x",
        "a/../b",
        "/etc/passwd",
        "-a",
        "a b",
        "a\n",
        "a\0b",
        "ä",
        "a\\b",
        "a:b",
        "A" * 201,
        " a",
        "a..b",
    ],
)
def test_other_names_are_refused_and_nothing_is_stored(store: LayerStore, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"letters, digits, '-', '_', '\.' or '/'") as refused:
        store.put(layer(1), Move(name))
    assert refused.value.violations[0].field == "name"
    assert store.usage().layers == 0


def test_missing_keeps_the_order_of_what_was_asked(store: LayerStore) -> None:
    keys = [layer(number).digest for number in range(6)]
    for number in (1, 4):
        store.put(layer(number))
    assert store.missing(keys[::-1]) == [keys[5], keys[3], keys[2], keys[0]]
    assert store.missing([]) == []


def test_pages_are_in_the_order_of_the_digests(store: LayerStore) -> None:
    for number in range(10):
        store.put(layer(number), Move(f"{'even' if number % 2 == 0 else 'odd'}/{number}"))
    keys = sorted(layer(number).digest for number in range(10))
    assert [each.digest for each in store.page("", b"", 1000)] == keys
    assert [each.digest for each in store.page("", keys[3], 4)] == keys[4:8]
    assert [each.digest for each in store.page("", keys[9], 4)] == []
    evens = sorted(layer(number).digest for number in range(0, 10, 2))
    assert [each.digest for each in store.page("even/", b"", 1000)] == evens
    assert [each.digest for each in store.page("even/", evens[1], 2)] == evens[2:4]
    assert store.page("eve/", b"", 10) == []


# Budgets


def test_what_was_used_longest_ago_goes_first() -> None:
    store = LayerStore(size_of(layer(0), layer(1), layer(2)))
    for number in range(3):
        store.put(layer(number))
    store.layer(layer(0).digest)  # used: now 1 is the oldest
    store.put(layer(1))  # and putting again is a use too: now 2 is
    store.describe(layer(2).digest)  # looking at it is not
    store.put(layer(3))
    assert held(store) == {0, 1, 3}
    assert store.usage().evictions == 1
    assert store.usage().memory_bytes == size_of(layer(0), layer(1), layer(3))


def test_a_large_layer_takes_the_place_of_several() -> None:
    store = LayerStore(size_of(*map(layer, range(4))))
    for number in range(4):
        store.put(layer(number))
    store.put(layer(9, kilobytes=10))
    assert held(store) == {2, 3, 9}


def test_layers_with_a_name_stay() -> None:
    store = LayerStore(size_of(layer(0), layer(1), layer(2)))
    store.put(layer(0), Move("kept"))
    for number in range(1, 20):
        store.put(layer(number))
    assert held(store) == {0, 18, 19}
    store.put(layer(19), Move("kept"))  # the name moves, and with it what it holds on to
    store.put(layer(20))
    store.put(layer(21))
    assert held(store) == {19, 20, 21}
    store.put(layer(20), Move("other"))
    store.delete("other")
    assert held(store) == {19, 21}


def test_a_named_layer_makes_room_for_the_one_that_takes_its_name() -> None:
    store = LayerStore(size_of(layer(0)))
    store.put(layer(0), Move("a"))
    store.put(layer(1), Move("a"))
    assert held(store) == {1}
    assert store.usage() == StoreUsage(1, size_of(layer(1)), 1)
    with pytest.raises(OverloadedError):
        store.put(layer(2), Move("b"))
    store.put(layer(1), Move("b"))
    with pytest.raises(OverloadedError):
        store.put(layer(2), Move("b"))  # the layer has another name still
    assert held(store) == {1}
    assert (store.digest_of("a"), store.digest_of("b")) == (layer(1).digest,) * 2


def test_a_full_store_says_what_to_raise_and_keeps_what_it_has() -> None:
    store = LayerStore(size_of(layer(0), layer(1)))
    store.put(layer(0), Move("a"))
    store.put(layer(1), Move("b"))
    with pytest.raises(OverloadedError, match=r"--layer-memory-bytes of \d+\b.*layers with a name.*delete some"):
        store.put(layer(2))
    assert held(store) == {0, 1}
    assert store.put(layer(1), Move("again"))[1]  # what is there already needs no room
    store.delete("a")
    store.put(layer(2), Move("a"))
    assert held(store) == {1, 2}


def test_what_is_larger_than_the_store_can_never_be_put(tmp_path: Path) -> None:
    for store, setting in (
        (LayerStore(5000), "layer-memory-bytes"),
        (LayerStore(5000, LayerFiles(tmp_path, 5000)), "store-bytes"),
    ):
        with pytest.raises(TooLargeError, match=rf"at most 5000 bytes, the server's --{setting}"):
            store.put(layer(0))
        assert store.usage()[:3] == StoreUsage(0, 0, 0)[:3]


def test_with_a_folder_layers_leave_the_memory_only(tmp_path: Path) -> None:
    store = LayerStore(size_of(layer(0), layer(1)), LayerFiles(tmp_path, PLENTY))
    for number in range(6):
        store.put(layer(number), Move(f"n{number}"))
    usage = store.usage()
    assert (usage.layers, usage.memory_bytes, usage.evictions) == (6, size_of(layer(0), layer(1)), 4)
    assert held(store) == set(range(6))


def test_with_a_folder_a_layer_may_be_larger_than_the_memory_which_then_does_not_keep_it(tmp_path: Path) -> None:
    store = LayerStore(size_of(layer(0)), LayerFiles(tmp_path, PLENTY))
    store.put(layer(0))
    assert store.put(layer(1, kilobytes=64), Move("large"))[0].names == ("large",)
    assert store.usage().memory_bytes <= size_of(layer(0))
    assert held(store) == {0, 1}
    assert store.usage().memory_bytes <= size_of(layer(0))


def test_by_default_the_layers_may_take_nine_tenths_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    first = LayerStore(PLENTY, LayerFiles(tmp_path, 0))
    first.put(layer(0))
    with pytest.raises(OverloadedError, match=r"--store-bytes of 9000\b"):
        first.put(layer(1))
    del first
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=8000))
    again = LayerStore(PLENTY, LayerFiles(tmp_path, 0))
    with pytest.raises(OverloadedError, match=r"--store-bytes of \d+\b"):
        again.put(layer(1))
    assert held(again) == {0}, "what the layers take already counts in"


@pytest.mark.parametrize(("budget", "is_told"), [(30_001, True), (30_000, False), (0, False)])
def test_more_than_the_volume_has_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, budget: int, is_told: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=30_000))
    LayerFiles(tmp_path, budget)
    assert [record.message for record in caplog.records] == (
        [f"--store-bytes is {budget}, but {tmp_path} holds 0 and has 30000 free"] if is_told else []
    )


def test_the_disks_budget_holds(tmp_path: Path) -> None:
    store = LayerStore(PLENTY, LayerFiles(tmp_path, 15_000))
    store.put(layer(0))
    store.put(layer(1))
    with pytest.raises(OverloadedError, match=r"--store-bytes of 15000\b.*the layers on disk take"):
        store.put(layer(2))
    store.delete(layer(0).digest)
    store.put(layer(2))
    assert held(store) == {1, 2}
