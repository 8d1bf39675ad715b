"""Several servers that share a bucket: what one sees of the others, whatever comes between their requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from convserve import LayerNotFoundError, NameConflictError
from convserve.v1 import layer_service_pb2
from convserve_server.layer_store.durable.bucket import Bucket, UnusableBucketError
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
from convserve_server.services.layer_service import LayerService
from tests.support.engines.numpy_engine import NumpyEngine
from tests.support.layers.bucket_requests import BucketRequests
from tests.support.layers.places import PLENTY, opened
from tests.support.layers.tiny import key, layer, number_under


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> BucketRequests:
    return BucketRequests(monkeypatch)


# What one sees of the others


def test_what_one_server_puts_all_have(bucket: MemoryStore) -> None:
    one, other = opened(bucket), opened(bucket)
    one.put(layer(1), Move("a"))
    assert number_under(other, "a") == 1
    assert other.put(layer(2), Move("a", key(1)))[1:] == (False, 2)
    assert number_under(one, "a") == 2
    assert one.versions("a") == other.versions("a")
    assert [each.names for each in one.page("a", b"", 9)] == [("a",)]
    assert one.missing([key(1), key(2), key(3)]) == [key(3)]
    with pytest.raises(NameConflictError, match=f"leads to {key(2).hex()}, its version 2"):
        one.put(layer(3), Move("a", key(1)))
    other.delete("a")
    for store in (one, other, opened(bucket)):
        with pytest.raises(LayerNotFoundError):
            store.layer("a")
        assert {each.digest for each in store.page("", b"", 9)} == {key(1)}
    assert one.put(layer(4), Move("a", b""))[2] == 1


def test_16_writers_of_4_servers_make_each_version_once(bucket: MemoryStore) -> None:
    stores = [opened(bucket) for _ in range(4)]

    def write(number: int) -> list[int]:
        store = stores[number % 4]
        return [store.put(layer(100 * number + turn), Move("a", None, os.urandom(16)))[2] for turn in range(4)]

    with ThreadPoolExecutor(16) as pool:
        made = [version for versions in pool.map(write, range(16)) for version in versions]
    assert sorted(made) == list(range(1, 65))
    assert sorted(stores[0].versions("a").digests) == sorted(key(100 * n + t) for n in range(16) for t in range(4))


def test_a_name_is_asked_for_once_it_is_old_and_is_rarely_read_again(
    bucket: MemoryStore, requests: BucketRequests
) -> None:
    one, other = opened(bucket), opened(bucket, age_s=1000)
    one.put(layer(1), Move("a"))
    assert number_under(other, "a") == 1
    requests.asked.clear()
    assert number_under(other, "a") == 1
    assert requests.asked == []
    one.put(layer(2), Move("a"))
    one.put(layer(2), Move("b"))
    assert number_under(other, "a") == 1  # as it was read less than 1000 s ago
    assert number_under(other, "b") == 2  # it was never read
    assert other.put(layer(3), Move("a"))[2] == 3  # who moves a name reads it first
    requests.asked.clear()
    assert number_under(one, "a") == 3
    assert number_under(one, "a") == 3
    assert requests.asked == ["get", "head", "get", "get"]  # the name, its layer, and that it did not move


def test_a_name_whose_layer_is_gone_is_asked_for_again(bucket: MemoryStore) -> None:
    one, other = opened(bucket), opened(bucket, memory_bytes=0, age_s=1000)
    one.put(layer(1), Move("a"))
    assert number_under(other, "a") == 1
    one.put(layer(2), Move("a"))
    one.delete(key(1))
    assert number_under(other, "a") == 2


def test_a_list_asks_for_its_layers_at_once(bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = opened(bucket), opened(bucket)
    for number in range(4):
        one.put(layer(number))
    get, all_ask = obstore.get, threading.Barrier(4)

    def together(*arguments: Any, **options: Any) -> Any:
        all_ask.wait(60)
        return get(*arguments, **options)

    monkeypatch.setattr(obstore, "get", together)
    assert len(other.page("", b"", 9)) == 4
    assert len(other.page("", b"", 9)) == 4  # it knows them


def test_the_versions_of_a_name_cost_one_list(bucket: MemoryStore, requests: BucketRequests) -> None:
    one, other = opened(bucket), opened(bucket, age_s=1000)
    for number in range(5):
        one.put(layer(number), Move("a"))
    for number in range(3):
        one.delete(key(number))
    service = LayerService(LayerRegistry(NumpyEngine(), other, PLENTY, PLENTY, PLENTY))
    requests.asked.clear()
    context: Any = None
    found = service.ListNameVersions(layer_service_pb2.ListNameVersionsRequest(name="a"), context)
    assert [version.stored for version in found.versions] == [False, False, False, True, True]
    assert requests.asked == ["get", "list"]


# Whatever comes between


def prepared(bucket: MemoryStore) -> LayerStore:
    store = opened(bucket)
    store.put(layer(1), Move("a"))
    return store


LEAD_THERE: dict[str, Callable[[LayerStore], Any]] = {
    "move": lambda store: store.move(Move("b"), key(1)),
    "put": lambda store: store.put(layer(1), Move("b")),
}


@pytest.mark.parametrize("led", LEAD_THERE)
@pytest.mark.parametrize("first", ["delete", "lead"])
def test_a_layer_to_which_a_name_comes_to_lead_is_never_deleted(requests: BucketRequests, led: str, first: str) -> None:
    """Before each request of one server's the other does all of what it does."""

    def delete(store: LayerStore) -> None:
        with suppress(LayerNotFoundError):
            store.delete(key(1))

    def lead(store: LayerStore) -> None:
        with suppress(LayerNotFoundError):
            LEAD_THERE[led](store)

    acts = (delete, lead) if first == "delete" else (lead, delete)
    kept = 0
    for step in range(100):
        bucket = MemoryStore()
        one, other = prepared(bucket), opened(bucket)
        requests.before(step, lambda: acts[1](other))  # noqa: B023
        acts[0](one)
        if len(requests.asked) <= step:
            break
        fresh = opened(bucket)
        for store in (fresh, one, other):
            if fresh.names():
                assert number_under(store, "b") == 1
        # Who has let the name lead there may store the layer once more after both are deleted: nothing is lost by that.
        assert fresh.names() or fresh.missing([key(1)]) or first == "lead"
        kept += bool(fresh.names())
        assert fresh.names() in ((), ("b",))
    assert step > 3
    assert kept


@pytest.mark.parametrize("led", LEAD_THERE)
def test_who_deletes_a_name_leaves_the_one_that_another_server_gave_the_layer(
    requests: BucketRequests, led: str
) -> None:
    outcomes = set()
    for step in range(100):
        bucket, is_led = MemoryStore(), []
        one, other = prepared(bucket), opened(bucket)

        def lead() -> None:
            with suppress(LayerNotFoundError):
                LEAD_THERE[led](other)  # noqa: B023
                is_led.append(True)  # noqa: B023

        requests.before(step, lead)
        one.delete("a")
        if len(requests.asked) <= step:
            break
        fresh = opened(bucket)
        assert fresh.names() == (("b",) if is_led else ())
        assert not is_led or number_under(fresh, "b") == 1
        outcomes.add(bool(is_led))
    assert step > 3
    assert outcomes == ({True} if led == "put" else {True, False})


@pytest.mark.parametrize("act", ["delete", "remove_name"])
def test_a_name_that_another_server_removes_does_not_come_back_with_its_own_version(
    requests: BucketRequests, act: str
) -> None:
    outcomes = set()
    for step in range(100):
        bucket = MemoryStore()
        one, other = prepared(bucket), opened(bucket)
        one.put(layer(2), Move("a"))
        requests.before(step, lambda: getattr(other, act)("a" if act == "delete" else Move("a")))  # noqa: B023
        try:
            one.move(Move("a"), 1)
            outcomes.add("moved")
        except LayerNotFoundError:
            outcomes.add("gone")
        if len(requests.asked) <= step:
            break
        assert opened(bucket).names() == one.names() == ()
    assert outcomes == {"moved", "gone"}


class Killed(BaseException):
    """A server ends here."""


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("act", ["put", "move", "delete", "delete by name", "away"])
def test_killed_before_any_request_a_server_leaves_the_old_or_the_new(requests: BucketRequests, act: str) -> None:
    acts: dict[str, Callable[[LayerStore], Any]] = {
        "put": lambda store: store.put(layer(2), Move("a", key(1), b"i" * 16)),
        "move": lambda store: store.move(Move("a", key(1), b"i" * 16), key(3)),
        "delete": lambda store: store.delete(key(1)),
        "delete by name": lambda store: store.delete("a"),
        "away": lambda store: store.remove_name(Move("a")),
    }
    for step in range(100):
        bucket = MemoryStore()
        one = prepared(bucket)
        one.put(layer(3))
        requests.before(step, killed)
        try:
            acts[act](one)
        except Killed:
            pass
        else:
            break
        after = opened(bucket)
        if after.names():
            assert number_under(after, "a") in (1, 2, 3)
        try:  # whoever asks again, not knowing whether it was done, has it done once
            acts[act](after)
        except LayerNotFoundError:
            assert act.startswith(("delete", "away"))
        assert after.names() == (("a",) if act in ("put", "move") else ())
        if after.names():
            assert len(after.versions("a").digests) == 2
    assert step > 1


def test_a_write_whose_answer_was_lost_is_known_again(bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the store writes again, and is told that somebody else wrote: that was itself."""
    store, put = opened(bucket), obstore.put

    def twice(*arguments: Any, **options: Any) -> Any:
        put(*arguments, **options)
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", twice)
    assert store.put(layer(1), Move("a", b""))[1:] == (False, 1)
    assert store.put(layer(2), Move("a", key(1)))[1:] == (False, 2)
    store.delete("a")
    assert store.put(layer(2), Move("a", b""))[2] == 1
    assert opened(bucket).versions("a").digests == (key(2),)


# What a bucket has to do


def test_a_bucket_that_does_not_hold_to_conditions_is_refused(
    bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, path, content, **_: put(store, path, content))
    with pytest.raises(UnusableBucketError, match="names would be lost"):
        Bucket(bucket, bucket, bucket, "s3://b").begin()


def test_a_bucket_of_another_format_is_refused(bucket: MemoryStore) -> None:
    obstore.put(bucket, "convserve.json", b'{"format": 2}')
    with pytest.raises(UnusableBucketError, match="choose another prefix"):
        opened(bucket)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FileNotFoundError("Server returned non-2xx status code: 404 Not Found"), "Make the bucket"),
        (RuntimeError("status code: 403 Forbidden: <?xml v><Error><Message>No.</Message></Error>"), "credentials"),
        (RuntimeError("403 Forbidden: <Error><Message>No token.</Message><Id>secret</Id></Error>"), "credentials"),
        (RuntimeError("Error performing PUT http://host/b?X-Amz-Signature=secret in 2s"), "can be reached"),
        (RuntimeError("Error performing PUT https://me:secret@host/b in 2s"), "can be reached"),
    ],
)
def test_a_bucket_that_cannot_be_used_says_what_to_do(
    bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(obstore, "put", refused)
    with pytest.raises(UnusableBucketError, match=advice) as raised:
        opened(bucket)
    assert "secret" not in str(raised.value)
    assert "<" not in str(raised.value)
