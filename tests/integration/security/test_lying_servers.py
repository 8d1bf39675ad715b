"""A client of a server that lies: every lie is an InternalError, nothing is handed on, nothing grows without bound."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

import convserve
from convserve import Conv2D, Layer, cli
from convserve.bench.echo import Echo
from convserve.layers import messages
from convserve.protocol import layer_answers, status
from convserve.v1 import convolution_service_pb2 as cs
from convserve.v1 import layer_pb2, plan_pb2, server_info_pb2, tensor_pb2
from convserve.v1 import layer_service_pb2 as ls
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.lying_server import CONVOLUTION, LAYERS, LyingServer, lying_server
from tests.support.tensor_paths import WAYS
from tests.support.waiting import eventually

KERNEL = np.ones((3, 3, 3, 4), "f4")
LAYER = Layer(Conv2D(4, 3, use_bias=False, data_format="channels_last"), KERNEL)
X = np.ones((2, 8, 8, 3), "f4")
SHAPE = (2, 6, 6, 4)
HONEST = np.full(SHAPE, 27, "f4")
ESCAPES = "\x1b[2J\x07\u202e\x9b1m"


@pytest.fixture
def lies() -> Iterator[LyingServer]:
    with lying_server() as server:
        yield server


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, lies: LyingServer) -> Iterator[Any]:
    gc.disable()
    try:
        with request.param(lies.target, timeout=60, retry=convserve.RetryRule(attempts=1)) as connected:
            yield connected
        # Whatever errors came of it: a channel that stayed would try to connect to whoever gets the server's port.
        eventually(lambda: not is_connected(lies.target))
    finally:
        gc.enable()


def is_connected(target: str) -> bool:
    """Returns whether a connection leads to an address of this machine."""
    its, established = f":{int(target.rpartition(':')[2]):04X}", "01"
    tables = (Path("/proc/net", name) for name in ("tcp", "tcp6"))  # gRPC's sockets are of the second
    rows = (line.split() for table in tables if table.exists() for line in table.read_text().splitlines())
    return any(row[2].endswith(its) and row[3] == established for row in rows)


def response(shape: Any = SHAPE, dtype: int = 1, data: bytes | None = None, layers: int = 1) -> cs.ConvolveResponse:
    tensor = tensor_pb2.Tensor(dtype=dtype, shape=shape)
    if data != b"":
        tensor.data = HONEST.tobytes() if data is None else data
    return cs.ConvolveResponse(output=tensor, layers=[cs.LayerOutcome()] * layers)


def of_memory() -> cs.ConvolveResponse:
    answer = response(data=b"")
    answer.output.shared_memory.region = bytes(16)
    return answer


# What comes in one message, the same in pieces: the shape, the dtype and the layers of an answer.
OUTPUTS: dict[str, cs.ConvolveResponse] = {
    "another shape of as many elements": response((2, 4, 9, 4)),
    "another rank": response((288,)),
    "another batch": response((7, 6, 6, 4), data=bytes(7 * 6 * 6 * 4 * 4)),
    "another dtype": response(dtype=2, data=HONEST.astype("f2").tobytes()),
    "a dtype that is none": response(dtype=77),
    "a negative size": response((-2, 6, 6, 4)),
    "a huge shape": response((2**31, 2**31, 2**31, 1), data=b""),
    "no layers": response(layers=0),
    "two layers": response(layers=2),
    "a million layers": response(layers=1_000_000),
    "a configuration that is none": cs.ConvolveResponse(
        output=response().output, layers=[cs.LayerOutcome(conv2d={"filters": -1})]
    ),
}
OF_ONE_MESSAGE: dict[str, Any] = {
    "nothing": b"",
    "no protobuf": os.urandom(300),
    "too few bytes": response(data=b"123"),
    "shared memory that nobody gave": of_memory(),
    "bytes beside the output": response().SerializeToString() + b"\x7a\xc0\x84\x3d" + bytes(1_000_000),
    "a message without end": bytes(2**25),
}


@pytest.mark.parametrize("lie", OUTPUTS | OF_ONE_MESSAGE)
def test_an_answer_in_one_message(lies: LyingServer, client: Any, lie: str) -> None:
    lies.answer(CONVOLUTION + "Convolve", (OUTPUTS | OF_ONE_MESSAGE)[lie])
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.convolve(LAYER, X)
    lies.answer(CONVOLUTION + "Convolve", response())
    np.testing.assert_array_equal(client.convolve(LAYER, X).output, HONEST)


def result(answer: cs.ConvolveResponse, item: int = 0) -> bytes:
    head = cs.ConvolveResponse()
    head.CopyFrom(answer)
    head.output.ClearField("data")
    return cs.ConvolveStreamResponse(item_id=item, result=head).SerializeToString()


def piece(data: bytes, item: int = 0) -> bytes:
    return cs.ConvolveStreamResponse(item_id=item, piece=data).SerializeToString()


IN_PIECES: dict[str, list[Any]] = {
    "nothing": [],
    "no protobuf": [os.urandom(300)],
    "no result": [piece(HONEST.tobytes())],
    "no pieces": [result(response())],
    "the result of another item": [result(response(), 7)],
    "an error of 1 MB": [
        cs.ConvolveStreamResponse(error=cs.StreamItemError(code=3, message="x" * 2**20)).SerializeToString()
    ],
    "a result twice": [result(response()), piece(HONEST.tobytes()), result(response())],
    "a piece of another item": [result(response()), piece(HONEST.tobytes(), 1)],
    **{f"a head with {lie}": [result(answer), piece(HONEST.tobytes())] for lie, answer in OUTPUTS.items()},
}


def stream(lies: LyingServer, answers: Callable[[], Iterator[bytes]]) -> None:
    def accept(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata((("convserve-start", "accepted"),))
        list(requests)  # asyncio's gRPC says of a call that ends while it sends only that it did
        yield from answers()

    lies.let(CONVOLUTION + "ConvolveStream", accept)


@pytest.mark.parametrize("lie", IN_PIECES)
def test_an_answer_in_pieces(lies: LyingServer, client: Any, lie: str) -> None:
    together = WAYS["pieces, some samples in an item"]
    stream(lies, lambda: iter(IN_PIECES[lie]))
    with together.forced(), pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.convolve(Layer(LAYER.config.replace(activity_regularizer="l2"), KERNEL), X)


@pytest.mark.parametrize("data", [bytes(2**20), bytes(100)])
def test_pieces_without_end(lies: LyingServer, client: Any, data: bytes) -> None:
    stream(lies, lambda: itertools.chain([result(response())], itertools.repeat(piece(data))))
    with WAYS["pieces"].forced(), pytest.raises(convserve.InternalError):
        client.convolve(Layer(LAYER.config.replace(activity_regularizer="l2"), KERNEL), X)


def mapped(target: str, **options: Any) -> list[Any]:
    with convserve.Client(target, timeout=60) as client:
        return list(client.map(LAYER, [X[0]] * 6, **options))


def mapped_awaited(target: str, **options: Any) -> list[Any]:
    async def outputs() -> list[Any]:
        async with convserve.AsyncClient(target, timeout=60) as client:
            return [each async for each in client.map(LAYER, [X[0]] * 6, **options)]

    return asyncio.run(outputs())


@pytest.mark.parametrize("as_completed", [False, True])
@pytest.mark.parametrize("lie", ["another batch", "another dtype", "no layers", "another rank"])
@pytest.mark.parametrize("outputs", [mapped, mapped_awaited])
def test_map_ends(lies: LyingServer, outputs: Callable[..., list[Any]], lie: str, as_completed: bool) -> None:
    lies.answer(CONVOLUTION + "Convolve", OUTPUTS[lie])
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        outputs(lies.target, as_completed=as_completed)
    found = outputs(lies.target, errors="return")
    assert [type(each) for each in found] == [convserve.InternalError] * 6


def stored(digest: bytes = LAYER.digest, layer: Layer = LAYER, **fields: Any) -> layer_pb2.StoredLayer:
    parts = {"names": ["a"], "conv2d": messages.to_message(layer.config), "kernel_shape": KERNEL.shape} | fields
    return layer_pb2.StoredLayer(digest=digest, **parts)


OTHER = LAYER.config.replace(strides=2)
DESCRIPTIONS: dict[str, layer_pb2.StoredLayer] = {
    "a digest of 3 bytes": stored(b"abc"),
    "no configuration": layer_pb2.StoredLayer(digest=LAYER.digest),
    "a kernel that the configuration does not have": stored(kernel_shape=(5, 5, 3, 4)),
    "a kernel of negative size": stored(kernel_shape=(3, 3, -3, 4)),
    "a kernel of rank 9": stored(kernel_shape=[3] * 9),
    "a name that none may have": stored(names=[f"a{ESCAPES}"]),
    "a million names": stored(names=[""] * 1_000_000),
}
OF_ANOTHER: dict[str, layer_pb2.StoredLayer] = {
    "the digest of another layer": stored(bytes(32)),
    "another configuration": stored(layer=Layer(OTHER, KERNEL)),
    "another kernel": stored(kernel_shape=(3, 3, 5, 4)),
}


@pytest.mark.parametrize("lie", DESCRIPTIONS)
@pytest.mark.parametrize("method", ["GetLayer", "ListLayers"])
def test_a_description_that_is_none(lies: LyingServer, client: Any, method: str, lie: str) -> None:
    lies.answer(LAYERS + "GetLayer", ls.GetLayerResponse(layer=DESCRIPTIONS[lie]))
    lies.answer(LAYERS + "ListLayers", ls.ListLayersResponse(layers=[DESCRIPTIONS[lie]]))
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.layer("a") if method == "GetLayer" else client.layers()


@pytest.mark.parametrize("lie", DESCRIPTIONS | OF_ANOTHER)
def test_the_answer_to_a_put_and_an_update(lies: LyingServer, client: Any, lie: str) -> None:
    answered = (DESCRIPTIONS | OF_ANOTHER)[lie]
    lies.answer(LAYERS + "PutLayer", ls.PutLayerResponse(layer=answered))
    lies.answer(LAYERS + "UpdateWeights", ls.UpdateWeightsResponse(layer=answered))
    lies.answer(LAYERS + "GetLayer", ls.GetLayerResponse(layer=stored()))
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.put(LAYER, name="a")
    layer = client.layer("a")
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        layer.update_weights(KERNEL)


def test_a_layer_that_the_server_draws_is_the_one_that_was_asked_for(lies: LyingServer, client: Any) -> None:
    lies.answer(LAYERS + "PutLayer", ls.PutLayerResponse(layer=stored(bytes(32), Layer(OTHER, KERNEL))))
    with pytest.raises(convserve.InternalError, match="another configuration than was sent"):
        client.put(LAYER.config, input_channels=3)
    lies.answer(LAYERS + "PutLayer", ls.PutLayerResponse(layer=stored(bytes(32))))
    assert client.put(LAYER.config, input_channels=3).digest == bytes(32)


def header(shape: Any = KERNEL.shape, dtype: int = 1, has_bias: bool = False) -> ls.ReadWeightsResponse:
    return ls.ReadWeightsResponse(start=ls.WeightsHeader(dtype=dtype, kernel_shape=shape, has_bias=has_bias))


def weights(data: bytes) -> ls.ReadWeightsResponse:
    return ls.ReadWeightsResponse(piece=data)


WEIGHTS: dict[str, list[ls.ReadWeightsResponse]] = {
    "nothing": [],
    "no header": [weights(KERNEL.tobytes())],
    "a header alone": [header()],
    "a negative shape": [header((-3, 3, 3, 4)), weights(KERNEL.tobytes())],
    "another shape": [header((3, 3, 4, 3)), weights(KERNEL.tobytes())],
    "another dtype": [header(dtype=2), weights(KERNEL.tobytes())],
    "a bias that is none": [header(has_bias=True), weights(KERNEL.tobytes() + bytes(16))],
    "an odd number of bytes": [header(), weights(b"abc")],
    "a byte too many": [header(), weights(KERNEL.tobytes() + b"a")],
    "a byte too few": [header(), weights(KERNEL.tobytes()[1:])],
    "weights of another digest": [header(), weights((KERNEL * 7).tobytes())],
}


@pytest.mark.parametrize("lie", WEIGHTS)
def test_weights(lies: LyingServer, client: Any, lie: str) -> None:
    lies.answer(LAYERS + "GetLayer", ls.GetLayerResponse(layer=stored()))
    lies.answer(LAYERS + "ReadWeights", *WEIGHTS[lie])
    layer = client.layer("a")
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        layer.weights()
    lies.answer(LAYERS + "ReadWeights", header(), weights(KERNEL.tobytes()[:100]), weights(KERNEL.tobytes()[100:]))
    np.testing.assert_array_equal(layer.weights()[0], KERNEL)


def test_weights_without_end(lies: LyingServer, client: Any) -> None:
    """The client refuses the first piece that is too many; what was sent by then lies in buffers."""

    def endless(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        yield header()
        yield from itertools.repeat(weights(bytes(2**22)), 500)

    lies.answer(LAYERS + "GetLayer", ls.GetLayerResponse(layer=stored()))
    lies.let(LAYERS + "ReadWeights", endless)
    layer = client.layer("a")
    with pytest.raises(convserve.InternalError, match="weights that were not announced"):
        layer.weights()
    assert lies.sent < 250


def page(*digests: int, following: str = "", size: int = 32) -> ls.ListLayersResponse:
    layers = [stored(number.to_bytes(size)) for number in digests]
    return ls.ListLayersResponse(layers=layers, next_page_token=following)


PAGES: dict[str, Callable[[int], ls.ListLayersResponse]] = {
    "the same page again": lambda _: page(1, 2, following="00" * 32),
    "an earlier page": lambda number: page(9 - number, following=f"{number:064}"),
    "a layer twice": lambda number: page(number, number + 1, following=f"{number:064}"),
    "empty pages": lambda number: page(following=f"{number:064}"),
    "a page of more than was asked for": lambda _: page(*range(1001)),
    "pages without end": lambda number: ls.ListLayersResponse(
        layers=[stored(number.to_bytes(32), names=["a" * 200] * 1000)], next_page_token=f"{number:064}"
    ),
}


@pytest.mark.parametrize("lie", PAGES)
def test_lists(lies: LyingServer, client: Any, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_answers, "_MAX_LISTED_BYTES", 2**21)

    def answers(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)
        yield PAGES[lie](lies.sent + 1)

    lies.let(LAYERS + "ListLayers", answers)
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.layers()
    assert lies.sent < 40


PLANS: dict[str, Any] = {
    "nothing": b"",
    "two layers": cs.PlanResponse(plan=plan_pb2.Plan(layers=[plan_pb2.LayerPlan()] * 2, output_dtype=1)),
    "a million layers": cs.PlanResponse(plan=plan_pb2.Plan(layers=[plan_pb2.LayerPlan()] * 1_000_000)),
    "no dtype": cs.PlanResponse(plan=plan_pb2.Plan(layers=[plan_pb2.LayerPlan()])),
}
INFOS: dict[str, server_info_pb2.ServerInfo] = {
    "a million devices": server_info_pb2.ServerInfo(devices=[server_info_pb2.Device()] * 1_000_000),
    "a version of 1 MB": server_info_pb2.ServerInfo(version="x" * 2**20),
    "a dtype that is none": server_info_pb2.ServerInfo(input_dtypes=[77]),
}


@pytest.mark.parametrize("lie", PLANS)
def test_plans(lies: LyingServer, client: Any, lie: str) -> None:
    lies.answer(CONVOLUTION + "Plan", PLANS[lie])
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.plan(LAYER, X.shape)


@pytest.mark.parametrize("lie", INFOS)
def test_what_a_server_says_of_itself(lies: LyingServer, client: Any, lie: str) -> None:
    lies.answer(CONVOLUTION + "GetServerInfo", cs.GetServerInfoResponse(server_info=INFOS[lie]))
    with pytest.raises(convserve.InternalError, match="Expected an answer as the contract has it"):
        client.info()


def is_harmless(text: str) -> bool:
    return text.replace("\n", "").isprintable() and "x1b" in text


ERRORS: dict[str, convserve.ConvserveError] = {
    "a text": convserve.OutOfMemoryError(ESCAPES),
    "a field": convserve.InvalidTensorError(convserve.FieldViolation(ESCAPES, "wrong")),
    "a description": convserve.InvalidWeightsError(convserve.FieldViolation("kernel", ESCAPES)),
    "a layer": convserve.LayerNotFoundError("none", layer=ESCAPES),
    "an id": convserve.InternalError("none", error_id=ESCAPES),
}


def shown(error: convserve.ConvserveError) -> str:
    violations = getattr(error, "violations", ())
    parts = [str(error), getattr(error, "layer", ""), getattr(error, "error_id", "")]
    return "\n".join([*parts, *(f"{each.field}{each.description}" for each in violations)])


@pytest.mark.parametrize("where", ERRORS)
@pytest.mark.parametrize("way", ["one message", "pieces"])
def test_no_terminal_obeys_an_error(lies: LyingServer, client: Any, where: str, way: str) -> None:
    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if way == "one message":
            context.abort_with_status(status.to_status(ERRORS[where]))
        yield cs.ConvolveStreamResponse(error=status.to_item_error(ERRORS[where])).SerializeToString()

    lies.let(CONVOLUTION + "Convolve", refuse)
    stream(lies, lambda: refuse(iter(()), None))  # type: ignore[arg-type]
    with WAYS[way].forced(), pytest.raises(type(ERRORS[where])) as caught:
        client.convolve(LAYER, X)
    assert is_harmless(shown(caught.value))


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND])
@pytest.mark.parametrize("details", ["none", "no protobuf", "other details"])
def test_no_terminal_obeys_what_is_no_error_of_convserve(
    lies: LyingServer, client: Any, code: grpc.StatusCode, details: str
) -> None:
    other = status_pb2.Status(code=code.value[0], message=ESCAPES)
    other.details.add().Pack(error_details_pb2.DebugInfo(detail=ESCAPES))
    trailers = {"none": None, "no protobuf": os.urandom(200), "other details": other.SerializeToString()}

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if trailers[details]:
            context.set_trailing_metadata((("grpc-status-details-bin", trailers[details]),))
        context.abort(code, ESCAPES)
        yield b""

    lies.let(CONVOLUTION + "Convolve", refuse)
    with pytest.raises(convserve.ConvserveError) as caught:
        client.convolve(LAYER, X)
    assert is_harmless(shown(caught.value))


def test_no_terminal_obeys_what_a_server_says_of_itself_or_of_a_call(lies: LyingServer, client: Any) -> None:
    device = server_info_pb2.Device(name=ESCAPES, kind=ESCAPES, description=ESCAPES)
    info = server_info_pb2.ServerInfo(version=ESCAPES, tensorflow_version=ESCAPES, devices=[device])
    lies.answer(CONVOLUTION + "GetServerInfo", cs.GetServerInfoResponse(server_info=info))
    answer = response()
    answer.device = ESCAPES
    lies.answer(CONVOLUTION + "Convolve", answer)
    plan = plan_pb2.Plan(layers=[plan_pb2.LayerPlan()], output_dtype=1)
    refused = cs.PlanResponse(plan=plan, admission={"admitted": False, "refusal": ESCAPES})
    lies.answer(CONVOLUTION + "Plan", refused)
    said, planned = client.info(), client.plan(LAYER, X.shape)
    for text in (said.version, said.devices[0].description, client.convolve(LAYER, X).device, planned.refusal):
        assert is_harmless(text)


COMMANDS = {
    "info": ["info"],
    "conv2d": ["conv2d", "x.npy", "--filters", "4", "--kernel-size", "3", "--output", "y.npy"],
    "layers list": ["layers", "list"],
    "layers get": ["layers", "get", "a"],
    "layers put": ["layers", "put", "--name", "a", "--kernel", "sobel-x", "--input-channels", "3"],
    "batch": ["batch", "x.npy", "--layer", "a", "--output", "outputs"],
    "bench": ["bench", "--seconds", "1", "--no-in-process", "--input-shape", "2,8,8,3", "--layer", "a"],
    "health": ["health"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("says", ["an error", "a lie"])
def test_no_terminal_obeys_a_server_by_a_command(
    lies: LyingServer,
    command: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests, None)
        if says == "an error":
            context.abort(grpc.StatusCode.INTERNAL, ESCAPES)
        yield lies_of_commands.get(method, b"\x0a\x05")

    lies_of_commands = {
        "Convolve": response((1, 1, 1, 1)),
        "GetLayer": ls.GetLayerResponse(layer=stored(names=[ESCAPES])),
        "ListLayers": ls.ListLayersResponse(layers=[stored(names=[ESCAPES])]),
    }
    for service in (CONVOLUTION, LAYERS, "/grpc.health.v1.Health/"):
        for called in ("GetServerInfo", "Convolve", "GetLayer", "ListLayers", "PutLayer", "Check"):
            lies.let(service + called, functools.partial(refuse, called))
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    assert cli.main([*COMMANDS[command], "--target", lies.target]) == 1
    out, error = capsys.readouterr()
    assert (out + error).replace("\n", "").isprintable()


def test_an_echo_is_as_long_as_it_was_asked_for(lies: LyingServer) -> None:
    """`convserve bench` asks for as many bytes as a tensor has."""
    lies.answer(CONVOLUTION + "Echo", bytes(2**25))
    with convserve.Client(lies.target) as client:
        assert len(Echo(client._connected()._channel, 60)(Echo.request(0, 2**25))) == 2**25
