"""Names through both clients: their versions, moves on a condition, back and away; layers by digest and by prefix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest

import convserve
from convserve import Conv2D, InvalidRequestError, Layer, LayerNotFoundError, NameConflictError, importing
from convserve.v1 import layer_service_pb2_grpc
from convserve.v1.layer_service_pb2 import (
    ListNameVersionsRequest,
    MoveNameRequest,
    NameMove,
    PutLayerRequest,
    PutLayerStart,
    StoredLayerReference,
)
from tests.support.either_client import EITHER_CLIENT
from tests.support.raw.calls import checked, raw_caller
from tests.support.servers.counting_proxy import counting_proxy
from tests.support.servers.server_process import RunningServer, numpy_server

CONFIG = Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")
X = np.ones((1, 1, 1, 1), "f4")


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    with numpy_server() as running:
        yield running


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, own_server: RunningServer) -> Iterator[Any]:
    with request.param(own_server.target) as connected:
        yield connected


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"names/{uuid4().hex}"


def layer(number: int, channels: int = 1) -> Layer:
    return Layer(CONFIG, np.full((1, 1, channels, 1), number, "f4"))


def key(number: int) -> bytes:
    return layer(number).digest


def digests(client: Any, name: str) -> list[bytes]:
    return [version.digest for version in client.versions(name)]


def test_a_names_versions_are_told(client: Any, name: str) -> None:
    for number in (1, 2, 1):
        client.put(layer(number), name=name)
    versions = client.versions(name)
    assert [version.number for version in versions] == [1, 2, 3]
    assert [version.digest for version in versions] == [key(1), key(2), key(1)]
    assert [version.is_current for version in versions] == [False, False, True]
    now = datetime.now(UTC)
    for version in versions:
        assert now - timedelta(minutes=5) < version.moved_at < now + timedelta(minutes=5)
    assert [version.moved_at for version in versions] == sorted(version.moved_at for version in versions)
    client.delete(client.layer(digest=key(2)))
    assert [version.is_stored for version in client.versions(name)] == [True, False, True]
    with pytest.raises(LayerNotFoundError, match="leads nowhere"):
        client.versions(name + "/none")


def test_a_name_moves_without_weights_on_the_wire(own_server: RunningServer, name: str) -> None:
    with counting_proxy(own_server.target) as proxy:
        for make_client in EITHER_CLIENT.values():
            with make_client(proxy.target) as client:
                large = client.put(layer(1, 100_000))
                client.put(layer(2), name=name)
                before = proxy.sent_bytes + proxy.received_bytes
                moved = client.move(name, large)
                assert (moved.name, moved.digest, moved.kernel_shape) == (name, large.digest, (1, 1, 100_000, 1))
                client.move(name, version=1)
                client.move(f"{name}/other", name)
                client.move(name, digest=large.digest.hex())
                client.move_away(f"{name}/other", expect=layer(2))
                assert proxy.sent_bytes + proxy.received_bytes - before < 20_000
                assert digests(client, name) == [key(2), large.digest, key(2), large.digest]
                client.delete(large)


def test_a_name_moves_back_and_away(client: Any, name: str) -> None:
    for number in (1, 2, 3):
        client.put(layer(number), name=name)
    assert client.move(name, version=2)(X).item() == 2
    assert client.layer(name).digest == key(2)
    client.move_away(name)
    assert client.layer(digest=key(2))(X).item() == 2
    for ask in (client.layer, client.versions, client.move_away):
        with pytest.raises(LayerNotFoundError, match="leads nowhere"):
            ask(name)
    client.move(name, digest=key(1))
    assert [version.number for version in client.versions(name)] == [1]
    with pytest.raises(LayerNotFoundError, match="versions 1 to 1 of the name"):
        client.move(name, version=2)


EXPECTED = {
    "a stored layer": lambda client: client.layer(digest=key(1)),
    "a layer": lambda _: layer(1),
    "bytes": lambda _: key(1),
    "hexadecimal": lambda _: key(1).hex(),
    "upper case": lambda _: key(1).hex().upper(),
}


@pytest.mark.parametrize("expected", EXPECTED.values(), ids=EXPECTED)
def test_a_name_moves_only_from_where_it_is_expected(client: Any, name: str, expected: Any) -> None:
    client.put(layer(1), name=name, expect="absent")
    expect = expected(client)
    client.put(layer(2), name=name, expect=expect)
    client.put(layer(3), input_channels=1)
    attempts = [
        lambda: client.put(layer(4), name=name, expect=expect),
        lambda: client.put(layer(4), name=name, expect="absent"),
        lambda: client.put(CONFIG, name=name, expect=expect, input_channels=1, seed=0),
        lambda: client.move(name, digest=key(3), expect=expect),
        lambda: client.move_away(name, expect=expect),
        lambda: client.layer(name).update_weights(layer(5).kernel, expect=expect),
    ]
    for attempt in attempts:
        with pytest.raises(NameConflictError, match=f"{key(2).hex()}, its version 2") as refused:
            attempt()
        assert (refused.value.name, refused.value.found, refused.value.version) == (name, key(2).hex(), 2)
        assert refused.value.code is grpc.StatusCode.ABORTED
    assert len(client.missing([layer(4), layer(5)])) == 2
    assert digests(client, name) == [key(1), key(2)]
    client.put(layer(3), name=name, expect=refused.value.found)  # what the error says is what to expect
    made, _ = client.layer(name).update_weights(layer(6).kernel, expect=key(3))
    assert digests(client, name) == [key(1), key(2), key(3), made.digest]
    client.move_away(name, expect=made)
    with pytest.raises(NameConflictError) as refused:
        client.put(layer(1), name=name, expect=made)
    assert (refused.value.found, refused.value.version) == ("absent", 0)


def test_a_conflict_comes_before_the_weights(own_server: RunningServer, name: str) -> None:
    with counting_proxy(own_server.target) as proxy, convserve.Client(proxy.target) as client:
        client.put(layer(1), name=name)
        before = proxy.sent_bytes
        with pytest.raises(NameConflictError):
            client.put(layer(9, 300_000), name=name, expect=key(2))
        assert proxy.sent_bytes - before < 10_000


def test_a_layer_that_the_server_lost_is_sent_to_it_before_the_name_moves(client: Any, name: str) -> None:
    known = client.put(layer(7), name=name)
    client.put(layer(8), name=name)
    client.delete(client.layer(digest=key(7)))
    assert client.move(name, known).digest == key(7)
    client.delete(known)
    client.put(layer(8), name=name)
    with pytest.raises(LayerNotFoundError, match=f"{key(7).hex()}, which this server does not hold"):
        client.move(name, digest=key(7))


def test_layers_are_found_by_their_digest(client: Any, name: str) -> None:
    client.put(layer(1), name=name)
    for digest in (key(1), key(1).hex(), key(1).hex().upper()):
        found = client.layer(digest=digest)
        assert (found.digest, found.name) == (key(1), None)
        assert name in found.names
    with pytest.raises(LayerNotFoundError) as missing:
        client.layer(digest=bytes(32))
    assert missing.value.layer == "00" * 32


def test_what_is_under_a_prefix_is_deleted(client: Any, name: str) -> None:
    for number, each in enumerate(("m1/a", "m1/b", "m10/a", "m2/a")):
        client.put(layer(number + 20), name=f"{name}/{each}")
    client.put(layer(21), name=f"{name}/kept")
    assert client.delete_all(f"{name}/m1/") == [f"{name}/m1/a", f"{name}/m1/b"]
    assert [each.digest for each in client.missing([layer(number) for number in range(20, 24)])] == [key(20)]
    assert client.delete_all(f"{name}/m1/") == []
    left = sorted(each for found in client.layers(name) for each in found.names if each.startswith(name))
    assert left == [f"{name}/{each}" for each in ("kept", "m10/a", "m2/a")]
    for wrong in ("", None, 5):
        with pytest.raises(InvalidRequestError, match=r"^prefix: "):
            client.delete_all(wrong)


WRONG = {
    "nowhere": (lambda client: client.move("a"), "layer"),
    "two places": (lambda client: client.move("a", "b", version=1), "layer"),
    "no layer": (lambda client: client.move("a", 5), "layer"),
    "version 0": (lambda client: client.move("a", version=0), "version"),
    "version True": (lambda client: client.move("a", version=True), "version"),
    "version '1'": (lambda client: client.move("a", version="1"), "version"),
    "a short digest": (lambda client: client.move("a", digest="ab"), "digest"),
    "a name and a digest": (lambda client: client.layer("a", digest=bytes(32)), "digest"),
    "neither": (lambda client: client.layer(), "layer"),
    "a name that cannot be": (lambda client: client.move("../a", version=1), "name"),
    "away, a name that cannot be": (lambda client: client.move_away("a b"), "name"),
    "of a name that cannot be": (lambda client: client.versions(""), "name"),
    "a word": (lambda client: client.move_away("a", expect="none"), "expect"),
    "31 bytes": (lambda client: client.put(layer(1), name="a", expect=bytes(31)), "expect"),
    "a number": (lambda client: client.put(layer(1), name="a", expect=1), "expect"),
    "no digest yet": (lambda client: client.put(layer(1), name="a", expect=Layer(CONFIG)), "expect"),
    "expected of no name": (lambda client: client.put(layer(1), expect="absent"), "expect"),
}


@pytest.mark.parametrize(("call", "field"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_before_anything_is_sent(call: Any, field: str) -> None:
    for make_client in EITHER_CLIENT.values():
        refused = pytest.raises(InvalidRequestError, match=rf"^{field}: Expected .*Received ")
        with make_client("127.0.0.1:1") as nobody, refused:
            call(nobody)


def test_sixteen_clients_move_one_name(own_server: RunningServer, name: str) -> None:
    """Each moves it on from where it finds it; every move is a version, and none is lost or made twice."""
    rounds, movers = 3, 16
    with convserve.Client(own_server.target) as client:
        client.put(layer(0), name=name)
        goals = [client.put(layer(1000 + number)) for number in range(rounds * movers)]
    start = threading.Barrier(movers)

    def mover(number: int) -> None:
        with convserve.Client(own_server.target) as own:
            start.wait()
            for goal in goals[number * rounds : (number + 1) * rounds]:
                expect = own.layer(name).digest.hex()
                while True:
                    try:
                        own.move(name, goal, expect=expect)
                        break
                    except NameConflictError as conflict:
                        expect = conflict.found

    with ThreadPoolExecutor(movers) as pool:
        list(pool.map(mover, range(movers)))
    with convserve.Client(own_server.target) as client:
        found = digests(client, name)
        assert len(found) == 1 + rounds * movers
        assert sorted(found[1:]) == sorted(goal.digest for goal in goals)


def test_names_and_versions_are_there_after_a_restart(tmp_path: Path) -> None:
    with numpy_server("--store", str(tmp_path)) as server, convserve.Client(server.target) as client:
        for number in (1, 2):
            client.put(layer(number), name="a")
        client.move("a", version=1, expect=key(2))
        client.move("b", "a", expect="absent")
        client.move_away("b")
        before = client.versions("a")
    with numpy_server("--store", str(tmp_path)) as server, convserve.Client(server.target) as client:
        assert client.versions("a") == before
        assert len(before) == 3
        assert {each.digest for each in client.layers()} == {key(1), key(2)}
        assert {each.name for each in client.layers()} == {None, "a"}


# Past the client


def test_what_the_service_refuses(own_server: RunningServer) -> None:
    move, digest = NameMove(name="a"), StoredLayerReference(digest=key(1))
    wrong = {
        "a layer, a version or away": MoveNameRequest(move=move),
        "true, or not set": MoveNameRequest(move=NameMove(name="a", absent=False), layer=digest),
        "of them": MoveNameRequest(move=move, away=False),
        "Received 31 bytes": MoveNameRequest(move=NameMove(name="a", digest=bytes(31)), layer=digest),
        "16 bytes. Received 15": MoveNameRequest(move=NameMove(name="a", move_id=bytes(15)), layer=digest),
        "1 to 200": MoveNameRequest(layer=digest),
        "neither": MoveNameRequest(move=move, layer=StoredLayerReference()),
    }
    with raw_caller(own_server.target) as caller:
        stub: Any = layer_service_pb2_grpc.LayerServiceStub(caller.channel)
        for text, request in wrong.items():
            with pytest.raises(grpc.RpcError) as refused:
                stub.MoveName(request, timeout=60)
            assert text in checked(refused.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")[0]
        both = PutLayerRequest(start=PutLayerStart(name="a", move=move, expected_digest=key(1)))
        with pytest.raises(grpc.RpcError) as refused:
            stub.PutLayer(iter([both]), timeout=60)
        assert "both" in checked(refused.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")[0]
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListNameVersions(ListNameVersionsRequest(name="\0" * 100_000), timeout=60)
        checked(refused.value, grpc.StatusCode.NOT_FOUND, "LAYER_NOT_FOUND")


def test_a_conflict_is_told_to_programs(own_server: RunningServer, name: str) -> None:
    with convserve.Client(own_server.target) as client:
        client.put(layer(1), name=name)
    with raw_caller(own_server.target) as caller:
        stub: Any = layer_service_pb2_grpc.LayerServiceStub(caller.channel)
        request = MoveNameRequest(move=NameMove(name=name, absent=True), layer=StoredLayerReference(digest=key(2)))
        with convserve.Client(own_server.target) as client:
            client.put(layer(2))
        with pytest.raises(grpc.RpcError) as refused:
            stub.MoveName(request, timeout=60)
        checked(refused.value, grpc.StatusCode.ABORTED, "NAME_CONFLICT")
        request.move.digest = key(1)
        assert stub.MoveName(request, timeout=60).version == stub.MoveName(request, timeout=60).version == 2


def test_all_layers_under_a_prefix_are_saved_and_read_again(client: Any, name: str, tmp_path: Path) -> None:
    for key, number in {"m1/a": 1, "m1/deep/b": 2, "m1/c": 1, "m2/a": 3}.items():
        client.put(layer(number), name=f"{name}/{key}")
    files = client.save_all(f"{name}/m1/", tmp_path / "saved")
    assert list(files) == [f"{name}/m1/a", f"{name}/m1/c", f"{name}/m1/deep/b"]
    assert sorted((tmp_path / "saved").rglob("*.*")) == sorted(files.values())
    for each, number in zip(files, (1, 1, 2), strict=True):
        (read,) = importing.read(files[each]).layers.values()
        assert read.digest == layer(number).digest
    assert client.save_all(f"{name}/m3/", tmp_path) == {}
    for wrong in ("", None, b"m1/"):
        with pytest.raises(InvalidRequestError, match="prefix: Expected the beginning of names"):
            client.save_all(wrong, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="output: ") as caught:
        client.save_all(f"{name}/m1/", tmp_path / "file")
    assert caught.value.__notes__ == ["wrote 0 of 3 files; another attempt writes all again"]
    client.delete_all(name)
