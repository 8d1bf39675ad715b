"""Moves of names on a condition: what is expected, a retry, many movers at once, back and away, over a restart."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from convserve import InvalidRequestError, LayerNotFoundError, NameConflictError, OverloadedError
from convserve_server.layer_store import names
from convserve_server.layer_store.durable.name_file import MAX_BYTES
from convserve_server.layer_store.name_moves import NameMoves
from convserve_server.layer_store.names import MAX_VERSIONS, Move, NameVersions, Version
from convserve_server.layer_store.store import LayerStore
from tests.support.layers.places import Place, opened
from tests.support.layers.tiny import key, layer

PLENTY = 2**30
ID, OTHER_ID = b"i" * 16, b"o" * 16
NOTHING = b""


@pytest.fixture(params=["memory", "folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return {"memory": None, "folder": tmp_path, "bucket": MemoryStore()}[request.param]


@pytest.fixture
def store(place: Place) -> LayerStore:
    """A store of layers 0 to 4, in which "a" leads to layer 0."""
    made = opened(place)
    for number in range(5):
        made.put(layer(number))
    made.put(layer(0), Move("a"))
    return made


def digests(store: LayerStore, name: str = "a") -> list[bytes]:
    return list(store.versions(name).digests)


# What is expected


@pytest.mark.parametrize(("expect", "found"), [(key(1), key(0)), (NOTHING, key(0))], ids=["a digest", "nothing"])
def test_a_name_that_leads_elsewhere_than_expected_stays(store: LayerStore, expect: bytes, found: bytes) -> None:
    move = Move("a", expect)
    for attempt in (lambda: store.move(move, key(2)), lambda: store.put(layer(2), move)):
        with pytest.raises(NameConflictError, match=f"leads to {found.hex()}, its version 1: nothing") as refused:
            attempt()
        assert (refused.value.name, refused.value.found, refused.value.version) == ("a", found.hex(), 1)
    assert digests(store) == [key(0)]


def test_a_name_that_is_not_there_is_no_layer(store: LayerStore) -> None:
    for attempt in (lambda: store.move(Move("b", key(0)), key(0)), lambda: store.put(layer(2), Move("b", key(0)))):
        with pytest.raises(NameConflictError, match=f"'b' to lead to {key(0).hex()}.*leads nowhere") as refused:
            attempt()
        assert (refused.value.found, refused.value.version) == ("absent", 0)
    assert store.names() == ("a",)


def test_a_name_that_leads_where_it_is_expected_moves(store: LayerStore) -> None:
    assert store.move(Move("a", key(0)), key(1))[1] == 2
    assert store.put(layer(2), Move("a", key(1)))[2] == 3
    assert store.put(layer(7), Move("a", key(2)))[1:] == (False, 4)
    assert store.move(Move("b", NOTHING), key(1))[0].names == ("b",)
    assert store.put(layer(8), Move("c", NOTHING))[1:] == (False, 1)
    assert digests(store) == [key(number) for number in (0, 1, 2, 7)]


def test_a_name_that_leads_there_already_is_no_conflict(store: LayerStore) -> None:
    for expect in (None, NOTHING, key(3), key(0)):
        assert store.move(Move("a", expect), key(0))[1] == 1
        assert store.put(layer(0), Move("a", expect))[1:] == (True, 1)
    assert digests(store) == [key(0)]


def test_a_put_that_is_refused_stores_nothing(store: LayerStore, place: Place) -> None:
    with pytest.raises(NameConflictError):
        store.put(layer(9), Move("a", key(1)))
    assert store.missing([key(9)]) == [key(9)]
    if isinstance(place, Path):
        assert len(list((place / "layers").iterdir())) == 5
    with pytest.raises(NameConflictError):
        store.check_move(Move("a", key(1)), key(9))
    store.check_move(Move("a", key(1)), key(0))  # where it leads


def test_a_put_of_a_name_gives_back_the_room_of_its_layer_only_if_it_moves() -> None:
    large = [layer(number, 2000) for number in range(3)]
    store = opened(None, 2 * (8000 + 4096))
    store.put(large[0], Move("a", NOTHING, ID))
    store.put(large[1], Move("b"))
    store.put(large[2], Move("a", large[0].digest, OTHER_ID))  # in the place of the first, which had no other name
    with pytest.raises(OverloadedError):
        store.put(large[0], Move("a", NOTHING, ID))  # a retry: it was moved on, and the layer is gone
    assert digests(store) == [large[0].digest, large[2].digest]
    assert store.usage().memory_bytes <= 2 * (8000 + 4096)


# A retry


def again(store: LayerStore, place: Place) -> LayerStore:
    """Returns the store, started again where it is durable."""
    return opened(place) if place else store


@pytest.mark.parametrize("expect", [key(0), None], ids=["expected", "whatever"])
def test_a_move_is_made_once_however_often_it_is_asked_for(
    store: LayerStore, place: Place, expect: bytes | None
) -> None:
    """Also if somebody has moved the name back meanwhile, so that it leads where the move expects it."""
    move = Move("a", expect, ID)
    assert store.move(move, key(1))[1] == 2
    assert store.move(Move("a", key(1), OTHER_ID), key(0))[1] == 3
    store = again(store, place)
    described, version = store.move(move, key(1))
    assert (described.digest, described.names, version) == (key(1), (), 2)
    assert store.put(layer(1), move)[1:] == (True, 2)
    assert digests(store) == [key(0), key(1), key(0)]
    assert store.move(Move("a", expect, b"n" * 16), key(1))[1] == 4


def test_a_retry_goes_where_its_first_attempt_went(store: LayerStore) -> None:
    store.put(layer(1), Move("b"))
    move, back = Move("a", None, ID), Move("a", None, OTHER_ID)
    store.move(move, "b")
    store.move(Move("b"), key(2))
    assert store.move(move, "b")[0].digest == key(1)
    store.delete("b")
    assert store.move(move, "b")[0].digest == key(1)
    assert store.move(back, 1)[0].digest == key(0)
    assert store.move(back, 1) == store.move(back, 1)
    assert digests(store) == [key(0), key(1), key(0)]


def test_a_retry_finds_its_move_where_the_name_forgot_the_version_for_it(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with as many versions as it may have forgets its first one when it moves back to its layer."""
    monkeypatch.setattr(names, "MAX_VERSIONS", 2)
    store.put(layer(1), Move("a"))
    move, find_version, made = Move("a", None, ID), NameMoves.version, []

    def moved_then(*asked: Any) -> bytes:
        found = find_version(*asked)
        monkeypatch.setattr(NameMoves, "version", find_version)
        made.append(store.move(move, 1))  # another attempt, by another thread
        return found

    monkeypatch.setattr(NameMoves, "version", moved_then)
    assert [store.move(move, 1)] == made
    assert (made[0][1], digests(store)) == (3, [key(1), key(0)])


# By a version, by a name, away


def test_a_name_moves_back_and_after_another(store: LayerStore) -> None:
    store.put(layer(1), Move("a"))
    assert store.move(Move("a"), 1) == (store.describe(key(0)), 3)
    assert store.move(Move("b"), "a")[0].names == ("a", "b")
    assert digests(store) == [key(0), key(1), key(0)]
    for number in (0, 4, -1):
        with pytest.raises(LayerNotFoundError, match=f"versions 1 to 3 of the name 'a'. Received {number}") as missing:
            store.move(Move("a"), number)
        assert (missing.value.layer, missing.value.code_name) == ("a", "NOT_FOUND")


def test_what_is_not_there_is_nowhere_to_move_to(store: LayerStore) -> None:
    store.put(layer(1), Move("a"))
    store.delete(key(0))
    for to, text in ((key(9), "put it"), (1, key(0).hex()), ("none", "leads nowhere")):
        with pytest.raises(LayerNotFoundError, match=text):
            store.move(Move("a"), to)
    with pytest.raises(LayerNotFoundError, match="leads nowhere"):
        store.move(Move("none"), 1)
    for name in ("", "../x", "a b"):
        with pytest.raises(InvalidRequestError, match=r"^name: "):
            store.move(Move(name), key(1))


def test_a_name_moves_away_and_its_layer_stays(store: LayerStore, place: Place) -> None:
    with pytest.raises(NameConflictError, match=key(0).hex()):
        store.remove_name(Move("a", key(1)))
    store.pin("a")
    store.remove_name(Move("a", key(0)))
    assert not store._names.keeps(key(0))
    store = again(store, place)
    assert (store.names(), store.missing([key(0)])) == ((), [])
    with pytest.raises(LayerNotFoundError):
        store.remove_name(Move("a"))
    store.put(layer(1), Move("a"))
    store.remove_name(Move("a"))
    assert store.usage().layers == 5


@pytest.mark.parametrize("is_put_again", [False, True])
def test_a_name_that_is_removed_meanwhile_does_not_come_back_with_its_own_version(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch, is_put_again: bool
) -> None:
    find_version = NameMoves.version

    def removed_then(*asked: Any) -> bytes:
        found = find_version(*asked)
        store.remove_name(Move("a"))
        if is_put_again:
            store.put(layer(1), Move("a"))
        return found

    monkeypatch.setattr(NameMoves, "version", removed_then)
    with pytest.raises(LayerNotFoundError, match="'a', which leads nowhere"):
        store.move(Move("a"), 1)
    assert store.names() == (("a",) if is_put_again else ())
    assert not is_put_again or digests(store) == [key(1)]


def test_the_name_of_a_lost_layer_is_there(tmp_path: Path) -> None:
    opened(tmp_path).put(layer(0), Move("a"))
    (tmp_path / "layers" / f"{key(0).hex()}.safetensors").unlink()
    store = opened(tmp_path)
    with pytest.raises(NameConflictError, match=key(0).hex()):
        store.put(layer(1), Move("a", NOTHING))
    store.put(layer(1), Move("a", key(0)))
    store.remove_name(Move("a", key(1)))


# Many at once


def test_each_of_many_movers_has_its_own_versions(store: LayerStore) -> None:
    """Each reads where the name leads, and moves it on from there, until it has done so a few times."""
    for number in range(100, 164):
        store.put(layer(number))
    made: list[int] = []

    def mover(first: int) -> None:
        for number in range(first, first + 4):
            while True:
                try:
                    made.append(store.move(Move("a", store.versions("a").digest, os.urandom(16)), key(number))[1])
                    break
                except NameConflictError:
                    continue

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(mover, range(100, 164, 4)))
    assert sorted(made) == list(range(2, 66))
    assert sorted(digests(store)[1:]) == sorted(map(key, range(100, 164)))


def test_of_many_who_expect_no_name_one_makes_it(store: LayerStore) -> None:
    start = threading.Barrier(16)

    def maker(number: int) -> bool:
        start.wait()
        try:
            store.put(layer(number), Move("new", NOTHING))
        except NameConflictError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(maker, range(100, 116))) == 1
    assert len(digests(store, "new")) == 1


# On the disk


def test_moves_are_durable_with_their_times(store: LayerStore, place: Place) -> None:
    before = time.time_ns() // 1000
    store.move(Move("a", key(0), ID), key(1))
    (first, second) = again(store, place).versions("a").versions
    assert second == Version(key(1), second.moved_us, ID)
    assert before - 10**8 < first.moved_us <= second.moved_us <= time.time_ns() // 1000


def test_a_folder_of_before_moves_were_noted_goes_on(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in (0, 1):
        store.put(layer(number), Move("a"))
    (file,) = (tmp_path / "names").iterdir()
    entry = json.loads(file.read_text())
    del entry["moves"]
    file.write_text(json.dumps(entry))
    store = opened(tmp_path)
    assert store.versions("a") == NameVersions((Version(key(0)), Version(key(1))))
    store.move(Move("a", key(1), ID), 1)
    versions = opened(tmp_path).versions("a")
    assert [version.moved_us > 0 for version in versions.versions] == [False, False, True]
    assert versions.made_by(Move("a", None, ID)) == 3


def test_a_file_of_a_name_is_as_before_for_those_who_know_no_moves(tmp_path: Path) -> None:
    """A server may be replaced by an older one, which quarantines files that are larger than this."""
    files = opened(tmp_path)._storage
    versions = tuple(Version(os.urandom(32), 2**52, os.urandom(16)) for _ in range(MAX_VERSIONS))
    files.write_name("n" * 200, NameVersions(versions, 2**40))
    (file,) = (tmp_path / "names").iterdir()
    assert file.stat().st_size < MAX_BYTES == 2**12 + 2**7 * 1000
    entry = json.loads(file.read_text())
    assert (entry["name"], entry["first"], entry["digest"]) == ("n" * 200, 2**40, versions[-1].digest.hex())
    assert entry["before"] == [version.digest.hex() for version in versions[:-1]]
    assert dict(files.names()) == {"n" * 200: NameVersions(versions, 2**40)}


def test_a_move_that_the_disk_refuses_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    for number in (0, 1):
        store.put(layer(number))
    store.move(Move("a"), key(0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        with pytest.raises(OverloadedError, match="No space left"):
            store.move(Move("a", key(0), ID), key(1))
    assert digests(store) == digests(opened(tmp_path)) == [key(0)]
    assert store.move(Move("a", key(0), ID), key(1))[1] == 2
