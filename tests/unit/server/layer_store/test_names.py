"""Names and the layers that they led to before: numbered versions, in memory and with a folder; pins."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from convserve import InvalidRequestError, LayerNotFoundError, OverloadedError
from convserve_server.layer_store import names as names_module
from convserve_server.layer_store.names import (
    MAX_NAMES_OF_A_LAYER,
    MAX_VERSIONS,
    LayerNames,
    Move,
    NameVersions,
    Version,
)
from convserve_server.layer_store.store import LayerStore
from tests.support.layers import tiny
from tests.support.layers.places import opened

# A layer of 4 KiB, as which the store counts 8 KiB.
layer = partial(tiny.layer, channels=1024)


def led_to(*keys: bytes) -> NameVersions:
    return NameVersions(tuple(map(Version, keys)))


@pytest.fixture(params=["memory", "folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "folder" else None


def test_a_name_that_is_moved_always_leads_somewhere() -> None:
    names, one, two = LayerNames(lambda _: 1, keep_named=True), b"\0", b"\1"
    names.set("a", led_to(one))

    def move() -> None:
        for number in range(10_000):
            names.set("a", led_to((one, two)[number % 2]))

    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        seen = set()
        while not moving.done():
            seen.add(names.digest_of("a"))
        moving.result()
    assert seen <= {one, two}


def test_pins_and_names_are_counted() -> None:
    names = LayerNames(lambda key: 10 ** key[0], keep_named=True)
    one, two = b"\0", b"\1"
    names.set("a", led_to(one))
    assert (names.kept_bytes, names.freed_by_moving("a"), names.freed_by_moving("b")) == (1, 1, 0)
    names.pin("a", one)
    names.pin("a", one)
    names.set("b", led_to(one))
    assert (names.kept_bytes, names.freed_by_moving("a")) == (1, 0)
    names.set("a", led_to(one, two))
    names.set("b", None)
    assert (names.kept_bytes, names.keeps(one), names.of(one)) == (11, True, ())
    names.unpin("a")
    assert (names.kept_bytes, names.keeps(one), names.keeps(two)) == (10, False, True)
    names.pin("b", two)
    names.set("a", None)
    names.unpin_layer(two)
    assert (names.kept_bytes, names.keeps(two), names.all()) == (0, False, ())


def test_whether_a_layer_is_kept_is_no_question_to_every_name() -> None:
    """Else an eviction among many layers that are pinned would take seconds, and the store's lock for as long."""
    asked = 0

    class Key(bytes):
        def __hash__(self) -> int:
            nonlocal asked
            asked += 1
            return bytes.__hash__(self)

    names = LayerNames(lambda _: 1, keep_named=False)
    for number in range(100):
        names.pin(f"name {number}", number.to_bytes(32, "big"))
    assert names.keeps(Key((99).to_bytes(32, "big")))
    assert asked == 1


def numbers(store: LayerStore, name: str) -> list[tuple[int, int]]:
    """Returns the versions of a name and the numbers of their layers."""
    known = {layer(number).digest: number for number in range(10)}
    return [
        (version, known[key]) for version, key in enumerate(store.versions(name).digests, store.versions(name).first)
    ]


def test_a_version_begins_with_each_move(folder: Path | None) -> None:
    store = opened(folder)
    for number in (5, 5, 3, 5, 4, 4):
        store.put(layer(number), Move("a"))
    assert numbers(store, "a") == [(1, 5), (2, 3), (3, 5), (4, 4)]
    assert store.versions("a").latest == 4
    assert [store.versions("a").of(number) for number in (0, 5, -1)] == [None] * 3
    assert store.digest_of("a") == layer(4).digest
    assert store.names() == ("a",)


def test_a_name_that_was_deleted_begins_anew(folder: Path | None) -> None:
    store = opened(folder)
    store.put(layer(1), Move("a"))
    store.put(layer(2), Move("a"))
    store.delete("a")
    with pytest.raises(LayerNotFoundError):
        store.versions("a")
    store.put(layer(3), Move("a"))
    assert numbers(store, "a") == [(1, 3)]
    store.delete(layer(3).digest)
    assert store.names() == ()


def test_versions_are_durable(tmp_path: Path) -> None:
    for number in (1, 2, 1):
        opened(tmp_path).put(layer(number), Move("a"))
    assert numbers(opened(tmp_path), "a") == [(1, 1), (2, 2), (3, 1)]


def test_a_name_of_before_there_were_versions_has_one(tmp_path: Path) -> None:
    opened(tmp_path).put(layer(1), Move("a"))
    (file,) = (tmp_path / "names").iterdir()
    file.write_text(json.dumps({"name": "a", "digest": layer(1).digest.hex()}))
    store = opened(tmp_path)
    store.put(layer(2), Move("a"))
    assert numbers(opened(tmp_path), "a") == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    "changed",
    [
        {"first": 0}, {"first": "1"}, {"first": True}, {"before": ["00"]}, {"before": 5}, {"before": [7]},
        {"moves": 5}, {"moves": [[1, ""], [2, ""]]}, {"moves": [[1]]}, {"moves": [["1", ""]]}, {"moves": [[1.5, ""]]},
        {"moves": [[-1, ""]]}, {"moves": [[2**63, ""]]}, {"moves": [[1, "x"]]}, {"moves": [[1, 2]]},
    ],
)  # fmt: skip
def test_a_name_whose_versions_make_no_sense_is_quarantined(tmp_path: Path, changed: dict[str, object]) -> None:
    opened(tmp_path).put(layer(1), Move("a"))
    (file,) = (tmp_path / "names").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert opened(tmp_path).names() == ()


def test_only_so_many_versions_are_remembered_and_their_numbers_go_on(tmp_path: Path) -> None:
    keys = [number.to_bytes(32, "big") for number in range(MAX_VERSIONS + 5)]
    versions = led_to(keys[0])
    for key in keys[1:]:
        versions = versions.moved_to(Version(key))
    assert (versions.first, versions.latest, len(versions.digests)) == (6, MAX_VERSIONS + 5, MAX_VERSIONS)
    assert (versions.of(6), versions.of(5), versions.digest) == (keys[5], None, keys[-1])
    store = opened(tmp_path)
    store.put(layer(1), Move("a"))
    store._storage.write_name("a", versions)
    assert opened(tmp_path).versions("a") == versions


def test_a_pinned_layer_stays_in_memory(folder: Path | None) -> None:
    store = opened(folder, 20_000)  # room for two
    store.put(layer(1), Move("a"))
    store.pin("a")
    for number in (2, 3, 4):
        store.put(layer(number), Move("a"))
        assert store._recall(layer(1).digest) is not None
    store.unpin("a")
    store.put(layer(5), Move("a"))
    store.put(layer(6), Move("a"))
    assert store._recall(layer(1).digest) is None


def put_and_pin(store: LayerStore, number: int) -> None:
    store.put(layer(number), Move("a"))
    store.pin("a")


def test_what_is_pinned_takes_room(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        store = opened(folder, 20_000)
        put_and_pin(store, 1)
        put_and_pin(store, 2)
        with pytest.raises(OverloadedError, match="layer-memory-bytes"):
            put_and_pin(store, 3)
        store.unpin("a")
        put_and_pin(store, 3)


def test_pins_end_with_the_name_and_with_the_layer(folder: Path | None) -> None:
    store = opened(folder, 20_000)
    for end in (lambda: store.delete("a"), lambda: store.delete(layer(2).digest)):
        store.put(layer(1), Move("a"))
        store.pin("a")
        store.put(layer(2), Move("a"))
        end()
        for number in (3, 4, 5):
            store.put(layer(number))
        assert store._recall(layer(1).digest) is None
    with pytest.raises(LayerNotFoundError):
        store.pin("a")


def test_a_layer_has_a_bounded_number_of_names(folder: Path | None) -> None:
    store = opened(folder)
    for number in range(MAX_NAMES_OF_A_LAYER):
        store.put(layer(1), Move(f"name-{number}"))
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=f"fewer than {MAX_NAMES_OF_A_LAYER}. Received one more"):
            store.put(layer(1), Move("further"))
    assert len(store.describe(layer(1).digest).names) == MAX_NAMES_OF_A_LAYER
    assert store.put(layer(1), Move("name-0"))[1]  # which it has
    store.put(layer(2), Move("name-0"))
    store.put(layer(1), Move("further"))
    assert store.digest_of("further") == layer(1).digest


def test_all_names_have_a_bounded_number_of_versions(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MAX_NAMES", 3)
    monkeypatch.setattr(names_module, "MAX_ALL_VERSIONS", 6)
    store = opened(folder)
    for number in (1, 2, 3, 4, 5):
        store.put(layer(number), Move("a"))
    store.put(layer(1), Move("b"))
    assert store.versions_of_all == 6
    store.put(layer(6), Move("a"))
    store.put(layer(2), Move("c"))
    assert (numbers(store, "a"), store.versions_of_all) == ([(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)], 7)
    with pytest.raises(OverloadedError, match="at most 3 names"):
        store.put(layer(3), Move("d"))
    store.delete("a")
    assert store.versions_of_all == 2
    store.put(layer(3), Move("d"))
    if folder is not None:
        assert opened_again(folder).versions_of_all == 3


def opened_again(folder: Path) -> LayerStore:
    """Opens a folder beside the store that has it."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return opened(copy)
