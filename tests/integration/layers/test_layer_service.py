"""LayerService past the client: what each RPC answers, and what it refuses."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from convserve import Conv2D, Layer
from convserve.layers import messages as conv2d_message
from convserve.tensors.codec import itemsize
from convserve.v1 import conv2d_pb2, layer_service_pb2_grpc
from convserve.v1.layer_service_pb2 import (
    DeleteLayerRequest,
    FindMissingLayersRequest,
    GetLayerRequest,
    ListLayersRequest,
    PutLayerRequest,
    PutLayerStart,
    ReadWeightsRequest,
    StoredLayerReference,
    UpdateWeightsRequest,
    UpdateWeightsStart,
    WeightsHeader,
)
from tests.support.raw.calls import checked, raw_caller
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer

VECTORS: list[dict[str, Any]] = json.loads(Path(ROOT, "proto/convserve/v1/digest_test_vectors.json").read_text("utf-8"))
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "float64": 4}
CONFIG = Conv2D(2, 1, data_format="channels_last", dtype="float32", groups=2)
MESSAGE = conv2d_message.to_message(CONFIG)
HEADER = {"dtype": 1, "kernel_shape": (1, 1, 1, 2), "has_bias": True}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[Any]:
    with raw_caller(server.target) as caller:
        yield layer_service_pb2_grpc.LayerServiceStub(caller.channel)


def weights() -> tuple[bytes, Layer]:
    """Returns the 16 bytes of weights that fit CONFIG and HEADER and that no other call has, and their layer."""
    values = np.random.default_rng(uuid4().int).normal(size=4).astype("<f4")
    return values.tobytes(), Layer(CONFIG, values[:2].reshape(1, 1, 1, 2), values[2:])


def start(header: dict[str, Any] | None = None, **changes: Any) -> PutLayerRequest:
    """Returns the first message of a put of weights that fit CONFIG."""
    fields = {"conv2d": MESSAGE, "weights": WeightsHeader(**HEADER | (header or {}))} | changes
    return PutLayerRequest(start=PutLayerStart(**{key: value for key, value in fields.items() if value is not None}))


def put(stub: Any, *messages: PutLayerRequest | bytes) -> Any:
    listed = [PutLayerRequest(piece=each) if isinstance(each, bytes) else each for each in messages]
    return stub.PutLayer(iter(listed), timeout=60)


def stored(stub: Any, name: str = "") -> Layer:
    data, layer = weights()
    put(stub, start(name=name), data)
    return layer


def refusal(call: Any, *arguments: Any, reason: str = "INVALID_REQUEST", code: grpc.StatusCode = INVALID) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        list(answer) if hasattr(answer := call(*arguments), "__next__") else answer
    return checked(refused.value, code, reason)[0]


def by(layer: Layer) -> StoredLayerReference:
    return StoredLayerReference(digest=layer.digest)


# PutLayer


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["shows"] for vector in VECTORS])
def test_the_server_computes_the_digests_of_the_test_vectors(stub: Any, vector: dict[str, Any]) -> None:
    kernel, bias = vector["kernel"], vector["bias"]
    pieces = [bytes.fromhex(weight["data"]) for weight in (kernel, bias) if weight]
    header = {"dtype": DTYPES[kernel["dtype"]], "kernel_shape": kernel["shape"], "has_bias": bool(bias)}
    conv2d = json_format.ParseDict(vector["conv2d"], conv2d_pb2.Conv2D())
    digest = bytes.fromhex(vector["digest"])
    answer = put(stub, start(header, conv2d=conv2d, expected_digest=digest), *pieces)
    assert answer.layer.digest == digest
    assert answer.layer.parameter_count == math.prod(kernel["shape"]) + (kernel["shape"][3] if bias else 0)
    dtype = conv2d_message.from_message(conv2d).variable_dtype
    assert answer.layer.weight_bytes == answer.layer.parameter_count * itemsize(dtype)


@pytest.mark.parametrize("cuts", [(16,), (8, 8), (1,) * 16, (5, 0, 0, 7, 4), (0, 16, 0)], ids=str)
def test_weights_may_be_cut_anywhere(stub: Any, cuts: tuple[int, ...]) -> None:
    data, layer = weights()
    ends = np.cumsum(cuts)
    pieces = [data[end - cut : end] for cut, end in zip(cuts, ends, strict=True)]
    answer = put(stub, start(expected_digest=layer.digest), *pieces)
    assert (answer.layer.digest, answer.existed) == (layer.digest, False)
    assert put(stub, start(), data).existed
    assert stub.GetLayer(GetLayerRequest(layer=by(layer)), timeout=60).layer == answer.layer


ENOUGH = bytes(16)
MANY = 2**40
ORDERS: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "nothing": ((), "INVALID_REQUEST", "a start as the first message. Received none"),
    "a piece first": ((ENOUGH, start()), "INVALID_REQUEST", "a start as the first message. Received a piece"),
    "an empty message first": ((PutLayerRequest(), ENOUGH), "INVALID_REQUEST", "Received a message without content"),
    "two starts": ((start(), start(), ENOUGH), "INVALID_REQUEST", "a piece after the start"),
    "a start after the pieces": ((start(), ENOUGH, start()), "INVALID_REQUEST", "a piece after the start"),
    "no pieces": ((start(),), "INVALID_REQUEST", "16 bytes of weights, as the start announced. Received 0"),
    "too few": ((start(), bytes(15)), "INVALID_REQUEST", "16 bytes of weights, as the start announced. Received 15"),
    "too many": ((start(), ENOUGH, b"1"), "INVALID_REQUEST", "announced. Received at least 17"),
    "another digest": ((start(expected_digest=bytes(32)), ENOUGH), "INVALID_REQUEST", "digest 0000"),
    "a digest of 31 bytes": ((start(expected_digest=bytes(31)), ENOUGH), "INVALID_REQUEST", "32 bytes. Received 31"),
    "no source": ((start(weights=None),), "INVALID_REQUEST", "weights, input_channels or the expected_digest"),
    "a short digest alone": ((start(weights=None, expected_digest=b"1"),), "INVALID_REQUEST", "32 bytes"),
    "a digest with a piece": ((start(weights=None, expected_digest=bytes(32)), b"1"), "INVALID_REQUEST", "no pieces"),
    "drawn, with a piece": ((start(weights=None, input_channels=2), b"1"), "INVALID_REQUEST", "no pieces"),
    "drawn for 0 channels": ((start(weights=None, input_channels=0),), "INVALID_WEIGHTS", "Received 0 channels"),
    "drawn for -2 channels": ((start(weights=None, input_channels=-2),), "INVALID_WEIGHTS", "Received -2 channels"),
    "drawn for 3 channels": ((start(weights=None, input_channels=3),), "INVALID_WEIGHTS", "groups=2"),
    "drawn for too many": (
        (start(weights=None, conv2d=conv2d_message.to_message(CONFIG.replace(filters=2**30)), input_channels=2**30),),
        "TOO_LARGE", "--layer-memory-bytes",
    ),
    "no configuration": ((start(conv2d=None), ENOUGH), "INVALID_CONFIGURATION", "filters"),
    "rank 3": ((start({"kernel_shape": (1, 1, 2)}), ENOUGH), "INVALID_WEIGHTS", "Received shape (1, 1, 2)"),
    "another window": ((start({"kernel_shape": (1, 2, 1, 2)}), ENOUGH), "INVALID_WEIGHTS", "shape (1, 2, 1, 2)"),
    "other filters": ((start({"kernel_shape": (1, 1, 1, 4)}), ENOUGH), "INVALID_WEIGHTS", "shape (1, 1, 1, 4)"),
    "no channels": ((start({"kernel_shape": (1, 1, 0, 2)}), ENOUGH), "INVALID_WEIGHTS", "Received 0 channels"),
    "negative channels": ((start({"kernel_shape": (1, 1, -1, 2)}), ENOUGH), "INVALID_WEIGHTS", "-2 channels"),
    "too many channels": ((start({"kernel_shape": (1, 1, MANY, 2)}), ENOUGH), "TOO_LARGE", "--layer-memory-bytes"),
    "more channels than there are numbers": (
        (start({"kernel_shape": (1, 1, 2**63 - 1, 2)}), ENOUGH), "TOO_LARGE", "--layer-memory-bytes",
    ),
    "no bias": ((start({"has_bias": False}), bytes(8)), "INVALID_WEIGHTS", "Expected a bias"),
    "no dtype": ((start({"dtype": 0}), ENOUGH), "INVALID_WEIGHTS", "Expected a dtype out of"),
    "an integer dtype": ((start({"dtype": 5}), ENOUGH), "INVALID_WEIGHTS", "Received uint8"),
    "an unknown dtype": ((start({"dtype": 77}), ENOUGH), "INVALID_WEIGHTS", "Received 77"),
    "path traversal": ((start(name="../../etc/passwd"), ENOUGH), "INVALID_REQUEST", "1 to 200 letters, digits"),
    "an empty part": ((start(name="/etc"), ENOUGH), "INVALID_REQUEST", "1 to 200 letters, digits"),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "reason", "text"), ORDERS.values(), ids=ORDERS)
def test_a_wrong_put_is_refused_and_nothing_is_stored(
    stub: Any, messages: tuple[Any, ...], reason: str, text: str
) -> None:
    assert text in refusal(lambda: put(stub, *messages), reason=reason)
    zeros = Layer(CONFIG, np.zeros((1, 1, 1, 2), "f4"), np.zeros(2, "f4"))
    request = FindMissingLayersRequest(digests=[zeros.digest])
    assert len(stub.FindMissingLayers(request, timeout=60).missing_digests) == 1


def test_a_put_of_what_is_held_needs_no_weights(stub: Any) -> None:
    data, layer = weights()
    name = f"raw/{uuid4().hex}"
    alone = start(weights=None, conv2d=None, name=name, expected_digest=layer.digest)
    missing = {"reason": "LAYER_NOT_FOUND", "code": grpc.StatusCode.FAILED_PRECONDITION}
    assert layer.digest.hex() in refusal(lambda: put(stub, alone), **missing)
    put(stub, start(), data)
    answer = put(stub, alone)
    assert (answer.existed, answer.layer.digest, list(answer.layer.names)) == (True, layer.digest, [name])
    # A digest that is held does not stand for weights that are others.
    assert "digest" in refusal(lambda: put(stub, start(expected_digest=layer.digest), bytes(16)))


# GetLayer, DeleteLayer, ReadWeights, UpdateWeights

UPDATE = WeightsHeader(**HEADER)


def update(stub: Any, layer: StoredLayerReference | None, *pieces: bytes, header: Any = UPDATE, name: str = "") -> Any:
    messages = [UpdateWeightsRequest(start=UpdateWeightsStart(layer=layer, weights=header, name=name))]
    return stub.UpdateWeights(iter([*messages, *(UpdateWeightsRequest(piece=each) for each in pieces)]), timeout=60)


CALLS = {
    "GetLayer": lambda stub, layer: stub.GetLayer(GetLayerRequest(layer=layer), timeout=60),
    "DeleteLayer": lambda stub, layer: stub.DeleteLayer(DeleteLayerRequest(layer=layer), timeout=60),
    "ReadWeights": lambda stub, layer: stub.ReadWeights(ReadWeightsRequest(layer=layer), timeout=60),
    "UpdateWeights": lambda stub, layer: update(stub, layer, bytes(16)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_layer_is_referred_to_by_digest_or_name(stub: Any, call: Any) -> None:
    reference = StoredLayerReference
    assert "a digest or a name. Received neither" in refusal(call, stub, reference())
    assert "a digest or a name. Received neither" in refusal(call, stub, None)
    assert "32 bytes. Received 31" in refusal(call, stub, reference(digest=bytes(31)))
    unknown = {"reason": "LAYER_NOT_FOUND", "code": grpc.StatusCode.FAILED_PRECONDITION}
    assert "0101" in refusal(call, stub, reference(digest=b"\1" * 32), **unknown)
    unknown["code"] = grpc.StatusCode.NOT_FOUND
    for name in ("unknown", "", "../x", "\0", "n" * 100_000):
        assert "leads nowhere" in refusal(call, stub, reference(name=name), **unknown)


def test_weights_are_read_in_pieces(stub: Any) -> None:
    layer = stored(stub)
    first, *rest = stub.ReadWeights(ReadWeightsRequest(layer=by(layer)), timeout=60)
    assert first.start == WeightsHeader(**HEADER)
    assert b"".join(each.piece for each in rest) == layer.kernel.tobytes() + layer.bias.tobytes()


def test_a_wrong_update_is_refused(stub: Any) -> None:
    layer = by(stored(stub))
    assert "Received 15" in refusal(lambda: update(stub, layer, bytes(15)))
    assert "at least 17" in refusal(lambda: update(stub, layer, bytes(17)))
    assert "a start" in refusal(lambda: stub.UpdateWeights(iter([UpdateWeightsRequest(piece=bytes(16))]), timeout=60))
    wrong = {"reason": "INVALID_WEIGHTS"}
    for change in ({"kernel_shape": (1, 1, 2)}, {"has_bias": False}, {"dtype": 6}, {"kernel_shape": (1, 1, 0, 2)}):
        header = WeightsHeader(**HEADER | change)
        assert refusal(lambda header=header: update(stub, layer, bytes(16), header=header), **wrong)
    large = WeightsHeader(**HEADER | {"kernel_shape": (1, 1, MANY, 2)})
    assert refusal(lambda: update(stub, layer, bytes(16), header=large), reason="TOO_LARGE")
    assert stub.GetLayer(GetLayerRequest(layer=layer), timeout=60).layer.digest == layer.digest


def test_an_update_names_its_result_and_starts_from_the_layer_that_is_referred_to(stub: Any) -> None:
    name = f"raw/{uuid4().hex}"
    old = stored(stub, name)
    assert list(update(stub, by(old), weights()[0]).layer.names) == []
    assert list(update(stub, StoredLayerReference(name=name), weights()[0]).layer.names) == []
    other, _ = weights()
    put(stub, start(name=name, conv2d=conv2d_message.to_message(CONFIG.replace(activation="relu"))), other)
    updated = update(stub, by(old), weights()[0], name=name).layer
    assert (list(updated.names), updated.conv2d) == ([name], MESSAGE)
    assert stub.GetLayer(GetLayerRequest(layer=StoredLayerReference(name=name)), timeout=60).layer == updated
    for wrong in ("../x", "n" * 201):
        assert "letters, digits" in refusal(lambda wrong=wrong: update(stub, by(old), weights()[0], name=wrong))


def test_what_cannot_be_is_refused_before_weights_are_asked_for(stub: Any) -> None:
    """The initial metadata asks for them."""
    layer, float64 = by(stored(stub)), {"dtype": 4}
    for header, digest, is_asked in ((float64, b"", True), ({"dtype": 5}, b"", False), ({}, b"1", False)):
        calls = [stub.PutLayer.future(iter([start(header, expected_digest=digest)]), timeout=60)]
        if not digest:
            begin = UpdateWeightsStart(layer=layer, weights=WeightsHeader(**HEADER | header))
            calls.append(stub.UpdateWeights.future(iter([UpdateWeightsRequest(start=begin)]), timeout=60))
        for call in calls:
            assert (("convserve-weights", "wanted") in [tuple(each) for each in call.initial_metadata()]) is is_asked
            assert call.code() is INVALID


# ListLayers, FindMissingLayers


def test_all_layers_are_walked_in_pages(stub: Any) -> None:
    prefix = f"raw/{uuid4().hex}/"
    digests = sorted(stored(stub, f"{prefix}{number}").digest for number in range(25))
    sizes, walked, token = [], [], ""
    while True:
        request = ListLayersRequest(page_size=7, page_token=token, name_prefix=prefix)
        page = stub.ListLayers(request, timeout=60)
        sizes.append(len(page.layers))
        walked += [each.digest for each in page.layers]
        token = page.next_page_token
        if not token:
            break
    assert sizes == [7, 7, 7, 4]
    assert walked == digests
    for size, expected in ((0, 25), (25, 25), (2**31 - 1, 25)):
        page = stub.ListLayers(ListLayersRequest(page_size=size, name_prefix=prefix), timeout=60)
        assert (len(page.layers), page.next_page_token) == (expected, "")


@pytest.mark.parametrize(
    "token", ["garbage", "zz", "ab", "ab " * 32, "00" * 31, "00" * 33, "AB" * 32, "ä", "0" * 10**6]
)
def test_a_page_token_of_somebody_else_is_refused(stub: Any, token: str) -> None:
    assert "a token that this server gave" in refusal(stub.ListLayers, ListLayersRequest(page_token=token))


def test_a_negative_page_size_is_refused(stub: Any) -> None:
    assert "at least 0. Received -1" in refusal(stub.ListLayers, ListLayersRequest(page_size=-1))


def test_missing_layers_of_many_are_found_in_one_call(stub: Any) -> None:
    held = [stored(stub).digest for _ in range(3)]
    absent = [number.to_bytes(32, "big") for number in range(10_000 - 3)]
    asked = [*absent[:5000], *held, *absent[5000:]]
    request = FindMissingLayersRequest(digests=asked)
    assert list(stub.FindMissingLayers(request, timeout=60).missing_digests) == absent
    request.digests.append(bytes(32))
    assert "at most 10000 digests. Received 10001" in refusal(stub.FindMissingLayers, request)
    short = FindMissingLayersRequest(digests=[bytes(32), bytes(31)])
    assert "32 bytes. Received 31" in refusal(stub.FindMissingLayers, short)
    assert list(stub.FindMissingLayers(FindMissingLayersRequest(), timeout=60).missing_digests) == []


def test_puts_that_stall_leave_the_server_to_others(stub: Any, server: RunningServer) -> None:
    released = threading.Event()

    def stalling() -> Iterator[PutLayerRequest]:
        yield start()
        released.wait()

    stalled = [stub.PutLayer.future(stalling(), timeout=60) for _ in range(70)]  # more than there are threads
    try:
        assert all(each.initial_metadata() for each in stalled[:20])
        with raw_caller(server.target) as other:
            other.check_service()
        request = FindMissingLayersRequest(digests=[bytes(32)])
        assert len(stub.FindMissingLayers(request, timeout=20).missing_digests) == 1
        data, layer = weights()
    finally:
        released.set()
        for each in stalled:
            each.cancel()
    assert put(stub, start(), data).layer.digest == layer.digest
