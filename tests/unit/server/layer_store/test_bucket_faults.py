"""A bucket that goes away, objects that are not what they should be, the cache beside it, and what was deleted."""

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from convserve import LayerNotFoundError, UnavailableError
from convserve_server import settings
from convserve_server.layer_store.durable import bucket_layers, opening, reachability
from convserve_server.layer_store.durable.layer_file import encode
from convserve_server.layer_store.durable.local_cache import LocalCache
from convserve_server.layer_store.durable.name_file import path_of
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from convserve_server.settings import SettingsError
from tests.support.layers.bucket_requests import BucketRequests
from tests.support.layers.places import opened
from tests.support.layers.tiny import key, layer, number_under
from tests.support.waiting import eventually


def path(number: int) -> str:
    return f"layers/{key(number).hex()}.safetensors"


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> BucketRequests:
    monkeypatch.setattr(reachability, "_PROBE_S", 0.005)
    return BucketRequests(monkeypatch)


def is_reachable(store: LayerStore) -> bool:
    usage = store.usage().durable
    return usage is not None and usage.is_reachable


# Away


def test_what_is_known_is_served_while_the_bucket_is_away(
    bucket: MemoryStore, requests: BucketRequests, caplog: pytest.LogCaptureFixture
) -> None:
    other, store = opened(bucket), opened(bucket)
    store.put(layer(1), Move("a"))
    store.put(layer(2), Move("b"))
    other.put(layer(3), Move("c"))
    requests.is_away = True
    for _ in range(3):
        assert number_under(store, "a") == 1
        assert store.describe("b").digest == key(2)
        assert store.versions("a").digest == key(1)
        assert {each.digest for each in store.page("", b"", 9)} >= {key(1), key(2)}
        assert store.names() == ("a", "b")
    assert not is_reachable(store)
    refused = [
        lambda: store.put(layer(4)),
        lambda: store.put(layer(1), Move("d")),
        lambda: store.put(layer(4), Move("a", key(1))),
        lambda: store.move(Move("b"), key(1)),
        lambda: store.remove_name(Move("a")),
        lambda: store.delete("a"),
        lambda: store.delete(key(1)),
        lambda: store.layer("c"),  # which may be there
        lambda: store.layer(key(3)),
    ]
    for attempt in refused:
        with pytest.raises(UnavailableError, match=r"s3://bucket, the server's --store.*are served meanwhile"):
            attempt()
    requests.is_away = False
    eventually(lambda: is_reachable(store))
    assert number_under(store, "c") == 3
    assert store.put(layer(4), Move("a", key(1)))[2] == 2
    eventually(lambda: "is back" in caplog.text)  # which it says once it serves again
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([text for text in logged if "is away" in text]) == 1
    assert len([text for text in logged if "is back" in text]) == 1
    assert "secret" not in caplog.text


def test_a_bucket_that_goes_away_during_a_call_is_not_noticed_by_it(
    bucket: MemoryStore, requests: BucketRequests
) -> None:
    store = opened(bucket)
    store.put(layer(1), Move("a"))
    requests.before(0, lambda: setattr(requests, "is_away", True))
    assert number_under(store, "a") == 1
    assert not is_reachable(store)
    requests.is_away = False
    eventually(lambda: is_reachable(store))


def test_a_bucket_that_was_removed_is_away_and_not_empty(
    bucket: MemoryStore, requests: BucketRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for is then not found, and a listing fails."""
    store = opened(bucket)
    store.put(layer(1), Move("a"))

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("NoSuchBucket")

    def failing(*_: object, **__: object) -> None:
        raise OSError("NoSuchBucket")

    with monkeypatch.context() as patched:
        for name in ("get", "head", "put"):
            patched.setattr(obstore, name, missing)
        patched.setattr(obstore, "list", failing)
        assert number_under(store, "a") == 1
        with pytest.raises(UnavailableError):
            store.put(layer(2), Move("b"))
    eventually(lambda: is_reachable(store))
    assert store.versions("a").digests == (key(1),)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_bucket_that_refuses_writes_alone_is_not_away(
    bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_slow: bool
) -> None:
    """Also where it refuses a large one once all of it has come."""
    if is_slow:
        monkeypatch.setattr(reachability, "_REFUSAL_S", 0)
    store, other = opened(bucket), opened(bucket)
    other.put(layer(1), Move("a"))

    def refused(*_: object, **__: object) -> None:
        raise GenericError("status code: 403 Forbidden")

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "put", refused)
        for _ in range(3):
            with pytest.raises(UnavailableError, match="Received a refusal, which is in the server's log"):
                store.put(layer(2), Move("b"))
            assert number_under(store, "a") == 1
            assert is_reachable(store)
    assert store.put(layer(2), Move("b"))[2] == 1
    assert [record.getMessage() for record in caplog.records] == ["s3://bucket refuses put: status code: 403 Forbidden"]


# Objects that are not what they should be


@pytest.mark.parametrize(
    ("content", "has_header"),
    [(b"", 0), (b"hello", 0), (encode(layer(2)), 1), (encode(layer(1))[:-1], 0), (encode(layer(1))[:-1] + b"\1", 1),
     (b"\xff" * 100_000, 0)],
    ids=["empty", "foreign", "another layer", "cut", "a bit", "large"],
)  # fmt: skip
def test_a_layers_object_that_is_none_is_reported_and_never_served(
    bucket: MemoryStore, content: bytes, has_header: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A list reads but the header."""
    opened(bucket).put(layer(1), Move("a"))
    obstore.put(bucket, path(1), content)
    store = opened(bucket)
    for _ in range(3):
        assert len(store.page("", b"", 9)) == (0 if store.usage().durable.damaged else has_header)  # type: ignore[union-attr]
        with pytest.raises(LayerNotFoundError, match=key(1).hex()):
            store.layer("a")
        for ask in (store.layer, store.describe):
            with pytest.raises(LayerNotFoundError):
                ask(key(1))
        assert store.missing([key(1)]) == [key(1)]
    assert caplog.text.count("is not that layer, and not served until it is put again") == 1
    assert store.usage().durable.damaged == 1  # type: ignore[union-attr]
    assert store.put(layer(1))[1] is False  # who has it puts it
    assert number_under(opened(bucket), "a") == number_under(store, "a") == 1
    (kept,) = [meta["path"] for chunk in obstore.list(bucket, "quarantine") for meta in chunk]
    assert bytes(obstore.get(bucket, kept).bytes()) == content


def test_another_server_that_mends_a_layer_mends_it_for_all(bucket: MemoryStore) -> None:
    one = opened(bucket)
    one.put(layer(1), Move("a"))
    obstore.put(bucket, path(1), b"foreign")
    store, healer = opened(bucket), opened(bucket)
    with pytest.raises(LayerNotFoundError):
        store.layer("a")
    healer.put(layer(1))
    assert number_under(store, "a") == 1


def test_a_put_mends_a_layer_that_its_server_has_in_memory(bucket: MemoryStore) -> None:
    store = opened(bucket)
    store.put(layer(1), Move("a"))
    obstore.put(bucket, path(1), encode(layer(2)))
    assert store.put(layer(1))[1] is True
    assert number_under(opened(bucket), "a") == 1


def test_a_names_object_that_is_none_leads_nowhere_until_it_is_put(
    bucket: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    one = opened(bucket)
    one.put(layer(1), Move("a"))
    one.put(layer(2), Move("b"))
    at = f"names/{path_of('a')}"
    foreign = [b"hello", b'{"name": "b", "digest": "00"}', b"{}", b"x" * 200_000, b" " * 2**21]
    for content in foreign:
        obstore.put(bucket, at, content)
        for store in (one, opened(bucket)):
            with pytest.raises(LayerNotFoundError):
                store.layer("a")
            assert store.names() == ("b",)
    obstore.put(bucket, "names/README", b"nobody's")
    assert opened(bucket).names() == ("b",)
    assert caplog.text.count("is no name") == 2 * len(foreign) + 2  # and by whoever starts
    assert one.put(layer(3), Move("a"))[2] == 1
    assert number_under(opened(bucket), "a") == 3


def test_a_name_whose_object_somebody_deleted_is_gone(bucket: MemoryStore) -> None:
    store = opened(bucket)
    store.put(layer(1), Move("a"))
    obstore.delete(bucket, f"names/{path_of('a')}")
    assert store.names() == ()
    assert store.put(layer(2), Move("a", b""))[2] == 1


# The cache


def test_what_was_fetched_is_read_from_the_cache_and_verified(
    bucket: MemoryStore, requests: BucketRequests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(bucket).put(layer(1), Move("a"))
    for _ in range(2):  # two servers of one folder
        store = opened(bucket, memory_bytes=0, cache=tmp_path, age_s=1000)
        requests.asked.clear()
        assert number_under(store, "a") == 1
    assert "get" not in requests.asked
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"tampered with")
    assert number_under(store, "a") == 1
    assert "is removed from the cache" in caplog.text
    usage = store.usage().durable
    assert usage is not None
    assert (usage.cache_hits, usage.cache_misses, usage.cache_bytes) == (1, 1, file.stat().st_size)
    requests.is_away = True
    assert number_under(store, "a") == 1


def test_a_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    contents = {number: encode(layer(number, 1000)) for number in range(4)}
    size = len(contents[0])
    cache = LocalCache(tmp_path, 2 * size)
    for number in (0, 1):
        cache.write(layer(number, 1000).digest, contents[number])
        os.utime(tmp_path / f"{layer(number, 1000).digest.hex()}.safetensors", (number, number))
    (old := tmp_path / "x.partial").touch()
    os.utime(old, (0, 0))
    assert cache.read(layer(0, 1000).digest) is not None  # now the last used
    cache.write(layer(2, 1000).digest, contents[2])
    assert [cache.read(layer(number, 1000).digest) is not None for number in range(3)] == [True, False, True]
    assert cache.size == 2 * size
    assert not old.exists()
    small = LocalCache(tmp_path, size - 1)
    small.write(layer(3, 1000).digest, contents[3])
    assert list(tmp_path.iterdir()) == []


# What was deleted


def test_what_was_deleted_is_kept_for_a_day_and_then_removed(
    bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(bucket)
    store.put(layer(1), Move("a"))
    store.put(layer(2), Move("b"))
    store.delete("a")
    store.sweep()
    assert store.missing([key(1)]) == [key(1)]
    assert len([meta for chunk in obstore.list(bucket, "deleted") for meta in chunk]) == 1
    monkeypatch.setattr(bucket_layers, "_KEPT", timedelta(seconds=-1))
    store.sweep()
    assert [meta for chunk in obstore.list(bucket, "deleted") for meta in chunk] == []


def test_what_was_deleted_under_a_name_by_a_server_that_ended_comes_back(
    bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended between its deletion and its second look at the names."""
    for way in ("read", "sweep"):
        opened(bucket).put(layer(1), Move("a"))
        obstore.copy(bucket, path(1), f"deleted/{key(1).hex()}/{way}")
        obstore.delete(bucket, path(1))
        if way == "sweep":
            monkeypatch.setattr(bucket_layers, "_KEPT", timedelta(seconds=-1))
            opened(bucket).sweep()
            assert [meta for chunk in obstore.list(bucket, "deleted") for meta in chunk] == []
        assert number_under(opened(bucket), "a") == 1


def test_a_server_that_fell_asleep_before_it_deleted_makes_a_new_copy(
    bucket: MemoryStore, requests: BucketRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = opened(bucket), time.monotonic
    store.put(layer(1))
    slept = iter([0.0, 10_000.0])
    copy = obstore.copy

    def asleep(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        later = next(slept, 10_000.0)
        monkeypatch.setattr(bucket_layers.time, "monotonic", lambda: clock() + later)

    next(slept)
    monkeypatch.setattr(obstore, "copy", asleep)
    store.delete(key(1))
    assert len([meta for chunk in obstore.list(bucket, "deleted") for meta in chunk]) == 2
    assert store.missing([key(1)]) == [key(1)]


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "convserve_server.layer_store.durable.bucket")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        SettingsError, match=r"--store: --store s3://bucket/prefix needs obstore: .*convserve\[object-storage\]"
    ):
        opening.opened(settings.read({"store": "s3://bucket/prefix"}))
