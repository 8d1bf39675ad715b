"""Writes whose answer is lost: what may have been done already is not done a second time, later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import Conv2D, Layer, LayerNotFoundError, OverloadedError, RetryRule, UnavailableError
from convserve.layers import messages
from convserve.protocol.status import to_status
from convserve.v1 import layer_pb2
from convserve.v1.layer_service_pb2 import (
    DeleteLayerResponse,
    MoveNameResponse,
    PutLayerResponse,
    UpdateWeightsResponse,
)
from tests.support.either_client import EITHER_CLIENT

QUICK = RetryRule(attempts=3, initial_s=0.001, longest_s=0.01)
LAYER = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32"), np.ones((1, 1, 1, 1), "f4"))
STORED = layer_pb2.StoredLayer(
    digest=LAYER.digest, conv2d=messages.to_message(LAYER.config), kernel_shape=(1, 1, 1, 1), names=["name"]
)
ANSWERS = {
    "DeleteLayer": DeleteLayerResponse(),
    "MoveName": MoveNameResponse(),
    "PutLayer": PutLayerResponse(layer=STORED),
    "UpdateWeights": UpdateWeightsResponse(layer=STORED),
}
LOST, NOT_FOUND = "lost", LayerNotFoundError("gone", layer="name", by_name=True)
REFUSALS = [OverloadedError("busy"), UnavailableError("starting")]


class ScriptedLayers:
    """A LayerService whose calls end as the script says, and succeed after its end."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.calls = 0
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, call: Any) -> Any:
        method = call.method.rpartition("/")[2]

        def answer(requests: Any, context: Any) -> Iterator[bytes]:
            self.calls += 1
            next(requests)
            step = self.script.pop(0) if self.script else None
            if step == LOST:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            elif step is not None:
                context.abort_with_status(to_status(step))
            context.send_initial_metadata((("convserve-weights", "held"),))
            list(requests)
            yield ANSWERS[method].SerializeToString()

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture
def scripted() -> Iterator[ScriptedLayers]:
    made = ScriptedLayers()
    yield made
    made.server.stop(None).wait()


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, scripted: ScriptedLayers) -> Iterator[Any]:
    with request.param(scripted.target, retry=QUICK) as connected:
        yield connected


def test_a_delete_that_may_have_been_done_finds_nothing_and_has_succeeded(client: Any, scripted: Any) -> None:
    scripted.script = [LOST, NOT_FOUND]
    client.delete("name")
    assert scripted.calls == 2


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_delete_that_was_refused_before_finds_nothing_and_says_so(client: Any, scripted: Any, refusal: Any) -> None:
    scripted.script = [refusal, NOT_FOUND]
    with pytest.raises(LayerNotFoundError):
        client.delete("name")


# What each of two servers says, and how often each of them is asked.
SEVERAL = {
    "the first has deleted it": ([None], [OverloadedError("busy"), NOT_FOUND], (1, 2)),
    "the first may have": ([LOST, NOT_FOUND], [NOT_FOUND, NOT_FOUND], (2, 2)),
    "the second may have": ([NOT_FOUND, NOT_FOUND], [LOST, NOT_FOUND], (2, 2)),
    "the first may have, and the second is busy": ([LOST, NOT_FOUND], [OverloadedError("busy"), NOT_FOUND], (2, 2)),
    "the first may have, and the second starts": ([LOST, NOT_FOUND], [UnavailableError("starting"), NOT_FOUND], (2, 2)),
}


@pytest.fixture
def beside() -> Iterator[ScriptedLayers]:
    made = ScriptedLayers()
    yield made
    made.server.stop(None).wait()


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def of_both(request: pytest.FixtureRequest, scripted: Any, beside: Any) -> Iterator[Any]:
    with request.param([scripted.target, beside.target], retry=QUICK) as connected:
        yield connected


@pytest.mark.parametrize("remove", [lambda of: of.delete("name"), lambda of: of.move_away("name", expect=LAYER)])
@pytest.mark.parametrize(("first", "second", "calls"), SEVERAL.values(), ids=SEVERAL)
def test_one_of_several_servers_may_have_removed_it_before(
    scripted: Any, beside: Any, of_both: Any, remove: Any, first: list[Any], second: list[Any], calls: tuple[int, int]
) -> None:
    scripted.script, beside.script = list(first), list(second)
    remove(of_both)
    assert (scripted.calls, beside.calls) == calls


@pytest.mark.parametrize("first", [NOT_FOUND, OverloadedError("busy")], ids=["found nothing", "was busy"])
def test_what_no_server_had_is_not_found(scripted: Any, beside: Any, of_both: Any, first: Any) -> None:
    scripted.script, beside.script = [first, NOT_FOUND], [NOT_FOUND, NOT_FOUND]
    with pytest.raises(LayerNotFoundError):
        of_both.delete("name")


def test_a_name_that_one_of_several_may_have_moved_away_is_not_moved_again(
    scripted: Any, beside: Any, of_both: Any
) -> None:
    """Another caller may have made it since."""
    scripted.script, beside.script = [LOST], [NOT_FOUND]
    with pytest.raises(UnavailableError) as caught:
        of_both.move_away("name")
    assert caught.value.may_be_done
    assert (scripted.calls, beside.calls) == (1, 1)
    scripted.script, beside.script = [None], [OverloadedError("busy")]
    of_both.move_away("name")
    assert (scripted.calls, beside.calls) == (2, 3)


WRITES: dict[str, Callable[[Any, str | None], Any]] = {
    "put": lambda client, name: client.put(LAYER, name=name),
    "put, drawn": lambda client, name: client.put(LAYER.config, input_channels=1, name=name),
    "update": lambda client, name: client.put(LAYER, name=name).update_weights(LAYER.kernel),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_may_have_moved_a_name_is_not_sent_again(client: Any, scripted: Any, write: Any) -> None:
    scripted.script = [LOST] if write is not WRITES["update"] else [None, LOST]
    before = len(scripted.script)
    with pytest.raises(UnavailableError) as caught:
        write(client, "name")
    assert caught.value.may_be_done
    assert scripted.calls == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_without_a_name_is_sent_again(client: Any, scripted: Any, write: Any) -> None:
    scripted.script = [LOST, None, LOST]
    write(client, None)
    assert not scripted.script or scripted.script == [LOST]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_was_refused_is_sent_again(client: Any, scripted: Any, write: Any, refusal: Any) -> None:
    scripted.script = [refusal, None, refusal]
    write(client, "name")


def test_a_server_that_was_not_reached_has_done_nothing() -> None:
    for make_client in EITHER_CLIENT.values():
        with make_client("127.0.0.1:1", retry=RetryRule(attempts=1)) as client:
            with pytest.raises(UnavailableError) as caught:
                client.put(LAYER, name="name")
            assert not caught.value.may_be_done
