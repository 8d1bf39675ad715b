"""Moves of names whose answer is lost: they are sent again, and made once, whatever others do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import (
    Conv2D,
    ConvserveError,
    Layer,
    NameConflictError,
    RetryRule,
    UnavailableError,
    UnimplementedError,
    initializers,
)
from convserve.protocol.status import to_status
from convserve.v1 import layer_service_pb2_grpc
from convserve_server.auth.identity import anyone
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
from convserve_server.observability.call_record import CURRENT_CALL, CallRecord
from convserve_server.services.layer_service import LayerService
from tests.support.either_client import EITHER_CLIENT
from tests.support.engines.numpy_engine import NumpyEngine

QUICK = RetryRule(attempts=3, initial_s=0.001, longest_s=0.01)
CONFIG = Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")
DRAWN = CONFIG.replace(kernel_initializer=initializers.Constant(2))  # as NEW
OLD, NEW, OTHER = (Layer(CONFIG, np.full((1, 1, 1, 1), number, "f4")) for number in (1, 2, 3))


class LosingServer:
    """A LayerService that loses answers.

    Attributes:
        store: Its layers: "name" leads to OLD.
        lost: What is done in place of each of the next answers, when the call has been carried out.
        unreached: How many of the next calls are lost before they are carried out.
        is_old: Whether it knows no moves in puts and updates.
        target: Its address.
    """

    def __init__(self) -> None:
        self.store = LayerStore(2**30)
        for layer in (OLD, NEW, OTHER):
            self.store.put(layer)
        self.store.put(OLD, Move("name"))
        self.lost: list[Callable[[], object]] = []
        self.unreached = 0
        self.is_old = False
        self._service = LayerService(LayerRegistry(NumpyEngine(), self.store, 2**30, 2**30, 2**30))
        self.server = grpc.server(ThreadPoolExecutor(4))
        layer_service_pb2_grpc.add_LayerServiceServicer_to_server(self, self.server)
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def __getattr__(self, method: str) -> Any:
        handler = getattr(self._service, method)

        def answer(request: Any, context: Any) -> Any:
            CURRENT_CALL.set(CallRecord(method, method, identity=anyone(context.peer())))
            if self.unreached:
                self.unreached -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            try:
                answered = handler(map(self._forgotten, request) if self.is_old else request, context)
            except ConvserveError as error:
                context.abort_with_status(to_status(error))
            if self.lost:
                self.lost.pop(0)()
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if self.is_old:
                answered.ClearField("version")
            return answered

        return answer

    def _forgotten(self, message: Any) -> Any:
        if message.HasField("start"):
            message.start.ClearField("move")
        return message

    @property
    def led_to(self) -> list[bytes]:
        """The digests to which the name has led."""
        return list(self.store.versions("name").digests)

    def move_back(self) -> None:
        """Moves the name, as another caller would, to where it led."""
        self.store.put(OLD, Move("name"))


@pytest.fixture
def losing() -> Iterator[LosingServer]:
    made = LosingServer()
    yield made
    made.server.stop(None).wait()


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, losing: LosingServer) -> Iterator[Any]:
    with request.param(losing.target, retry=QUICK) as connected:
        yield connected


# Of a client, and of the layer that the name leads to.
MOVES: dict[str, Callable[[Any, Any], Any]] = {
    "put": lambda client, _: client.put(NEW, name="name", expect=OLD),
    "put, drawn": lambda client, _: client.put(DRAWN, name="name", expect=OLD, input_channels=1),
    "move": lambda client, _: client.move("name", digest=NEW.digest, expect=OLD.digest),
    "move, whatever is there": lambda client, _: client.move("name", digest=NEW.digest),
    "update": lambda _, found: found.update_weights(NEW.kernel, expect=found)[0],
}
EVERY = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)


@EVERY
def test_a_move_whose_answer_is_lost_has_succeeded(client: Any, losing: LosingServer, move: Any) -> None:
    found = client.layer("name")
    losing.unreached, losing.lost = 1, [int]
    assert move(client, found).digest == NEW.digest
    assert losing.led_to == [OLD.digest, NEW.digest]


@EVERY
def test_a_retry_does_not_undo_what_another_caller_did(client: Any, losing: LosingServer, move: Any) -> None:
    """Though the name leads again where the move expects it."""
    found = client.layer("name")
    losing.lost = [losing.move_back, int]
    assert move(client, found).digest == NEW.digest
    assert losing.led_to == [OLD.digest, NEW.digest, OLD.digest]


@EVERY
@pytest.mark.parametrize("connect", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_no_other_server_is_asked_where_one_may_have_made_it(connect: Any, losing: LosingServer, move: Any) -> None:
    """Which has no such name, and would say that nothing was moved."""
    other = LosingServer()
    other.store.remove_name(Move("name"))
    with connect([losing.target, other.target], retry=QUICK) as client:
        found = client.layer("name")
        losing.lost = [int]
        assert move(client, found).digest == NEW.digest
    assert losing.led_to == [OLD.digest, NEW.digest]
    assert other.store.names() == ()
    other.server.stop(None).wait()


@pytest.mark.parametrize("connect", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_name_moves_where_callers_look_for_it_first(connect: Any, losing: LosingServer) -> None:
    """Though another server alone has the name that it is to follow."""
    other = LosingServer()
    other.store.remove_name(Move("name"))
    other.store.put(NEW, Move("followed"))
    with connect([losing.target, other.target], retry=QUICK) as client:
        assert client.move("name", "followed", expect=OLD).digest == NEW.digest
        assert client.layer("name").digest == NEW.digest
    assert losing.led_to == [OLD.digest, NEW.digest]
    assert other.store.names() == ("followed",)
    other.server.stop(None).wait()


def test_a_layer_is_drawn_once_however_often_it_is_asked_for(client: Any, losing: LosingServer) -> None:
    """The server draws other weights each time, for there is no seed."""
    losing.lost = [losing.move_back, int]
    drawn = client.put(CONFIG, name="name", expect=OLD, input_channels=1)
    assert losing.led_to == [OLD.digest, drawn.digest, OLD.digest]
    assert losing.store.usage().layers == 4
    np.testing.assert_array_equal(drawn.weights()[0], losing.store.layer(drawn.digest).kernel)


@EVERY
def test_a_retry_of_what_was_not_carried_out_expects_the_same(client: Any, losing: LosingServer, move: Any) -> None:
    found = client.layer("name")
    losing.store.put(OTHER, Move("name"))
    losing.unreached = 1
    if move is MOVES["move, whatever is there"]:
        assert move(client, found).digest == NEW.digest
        return
    with pytest.raises(NameConflictError) as refused:
        move(client, found)
    assert (refused.value.found, refused.value.version) == (OTHER.digest.hex(), 2)
    assert losing.led_to == [OLD.digest, OTHER.digest]


def test_a_name_that_was_moved_away_is_away(client: Any, losing: LosingServer) -> None:
    losing.lost = [int]
    client.move_away("name", expect=OLD)
    assert losing.store.names() == ()
    losing.store.put(OLD, Move("name"))
    losing.lost = [losing.move_back]  # somebody makes it again: what may undo this is not sent a second time
    with pytest.raises(UnavailableError) as caught:
        client.move_away("name")
    assert caught.value.may_be_done
    assert losing.store.names() == ("name",)


def test_a_server_that_knows_no_moves_moves_nothing(client: Any, losing: LosingServer) -> None:
    found = client.layer("name")
    losing.is_old = True
    for attempt in (
        lambda: client.put(NEW, name="name", expect=OLD),
        lambda: client.put(CONFIG, name="name", expect=OLD, input_channels=1, seed=0),
        lambda: found.update_weights(NEW.kernel, expect=OLD),
    ):
        with pytest.raises(UnimplementedError, match=r"knows expect=.*moved no name"):
            attempt()
    assert losing.led_to == [OLD.digest]
    assert client.put(NEW, name="name").digest == NEW.digest
