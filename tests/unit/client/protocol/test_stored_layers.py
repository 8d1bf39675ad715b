"""What both clients refuse of calls about stored layers before anything is sent; nobody listens at the target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, InvalidArgumentError, InvalidRequestError, InvalidWeightsError, Layer
from convserve._rpc import channel
from convserve.protocol import layer_messages as messages
from convserve.v1 import layer_pb2
from tests.support.either_client import EITHER_CLIENT

CONFIG = Conv2D(4, 3, use_bias=False, data_format="channels_last", dtype="float32")
KERNEL = np.ones((3, 3, 3, 4), "f4")


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    with request.param("127.0.0.1:1", timeout=5) as made:
        yield made


@pytest.mark.parametrize("name", [5, b"x", "", "../x", ["a"], "a b"])
def test_a_name_is_a_text_of_the_allowed_characters(client: Any, name: Any) -> None:
    for given in ({"kernel": KERNEL}, {"input_channels": 3}):
        with pytest.raises(InvalidRequestError, match=r"^name: Expected 1 to 200 letters"):
            client.put(CONFIG, name=name, **given)


@pytest.mark.parametrize("channels", ["3", 2.5, True, 2**40, 0, -3])
def test_channels_are_a_number(client: Any, channels: Any) -> None:
    for given in ({}, {"kernel": KERNEL}):
        with pytest.raises(InvalidWeightsError, match=r"^input_channels: Expected the number.*above 0. Received"):
            client.put(CONFIG, input_channels=channels, **given)


def test_what_contradicts_weights_is_refused(client: Any) -> None:
    with pytest.raises(InvalidWeightsError, match="input of 7 channels"):
        client.put(CONFIG, kernel=KERNEL, input_channels=7)
    with pytest.raises(InvalidRequestError, match=r"^seed: Expected no seed beside weights.*Received seed=7"):
        client.put(CONFIG, kernel=KERNEL, seed=7)
    with pytest.raises(InvalidRequestError, match="seed"):
        client.put(Layer(CONFIG, KERNEL), seed=7)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("layers", (5,)),
        ("layers", (b"x",)),
        ("layer", (5,)),
        ("delete", (None,)),
        ("missing", ([CONFIG],)),
        ("missing", (["name"],)),
        ("missing", ([Layer(CONFIG)],)),
        ("put", ("name",)),
        ("missing", (5,)),
        ("save_all", ("m1/", 5)),
        ("save_all", ("m1/", "a\0b")),
        ("layers", ("\udc80",)),
        ("layer", ("\udc80",)),
        ("delete", ("\udc80",)),
        ("move", ("name", "\udc80")),
        ("move", ("name", np.arange(2))),
    ],
)
def test_other_arguments_are_refused_too(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Expected .*"):
        getattr(client, call)(*arguments)


def test_a_closed_client_says_so(client: Any) -> None:
    client.close()
    for call in (lambda: client.put(CONFIG, KERNEL), client.info, lambda: client.conv2d(KERNEL, 1, 1)):
        with pytest.raises(InvalidRequestError, match=r"^client: Expected an open client\."):
            call()


# Several servers


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("10.0.0.1:1, localhost:2", ("ipv4:10.0.0.1:1", "ipv4:127.0.0.1:2")),
        ("[::1]:1,[::2]:2", ("ipv6:[::1]:1", "ipv6:[::2]:2")),
        ("10.0.0.1:1", ("dns:///10.0.0.1:1",)),
        ("unix:///run/a.sock", ("unix:///run/a.sock",)),
    ],
)
def test_each_address_is_a_target_of_its_own(target: str, expected: tuple[str, ...]) -> None:
    assert channel.addresses(channel.channel_target(target)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("convserve.svc:50051", ("convserve.svc", "50051")),
        ("dns://8.8.8.8/convserve.svc:1", ("convserve.svc", "1")),
        ("localhost:50051", None),
        ("127.0.0.1:50051", None),
        ("[::1]:50051", None),
        ("unix:///a/b:1", None),
        ("10.0.0.1:1,10.0.0.2:1", None),
    ],
)
def test_only_a_name_is_to_be_resolved(target: str, expected: tuple[str, str] | None) -> None:
    assert channel.name_to_resolve(channel.channel_target(target)) == expected


def test_a_names_addresses_have_one_order() -> None:
    found = [(2, 1, 6, "", ("10.0.0.2", 1)), (10, 1, 6, "", ("::1", 1, 0, 0)), (2, 1, 6, "", ("10.0.0.1", 1))]
    expected = ("ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1", "ipv6:[::1]:1")
    assert channel.resolved(found) == channel.resolved([*found[::-1], found[0]]) == expected


def stored(number: int, *names: str) -> layer_pb2.StoredLayer:
    conv2d = Layer(CONFIG).to_message().conv2d
    return layer_pb2.StoredLayer(digest=bytes([number]) * 32, names=names, conv2d=conv2d, kernel_shape=KERNEL.shape)


def test_lists_of_several_servers_are_one() -> None:
    from convserve.protocol.stored_layers import known_parts, listed_parts

    def of(servers: Any) -> Any:
        return [[known_parts(message, None) for message in listed] for listed in servers]

    servers = [[stored(3, "a", "net/b"), stored(1)], [stored(3, "0", "net/a"), stored(2, "net/c")]]
    parts = listed_parts(of(servers), "net/")
    assert [(each["digest"][0], each["name"], each["names"]) for each in parts] == [
        (1, None, ()),
        (2, "net/c", ("net/c",)),
        (3, "net/a", ("0", "a", "net/a", "net/b")),
    ]
    assert [each["name"] for each in listed_parts(of(servers), "")] == [None, "net/c", "0"]


def test_many_digests_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_DIGESTS", 2)
    layers = [Layer(CONFIG, KERNEL * number) for number in range(5)]
    requests = messages.missing_requests(layers)
    assert [len(each.digests) for each in requests] == [2, 2, 1]
    assert [digest for each in requests for digest in each.digests] == [each.digest for each in layers]
