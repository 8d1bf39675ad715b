"""The LayerService of every server that a blocking client's target names."""

from __future__ import annotations

import concurrent.futures
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from convserve._rpc import channel as _channel
from convserve._rpc import retries
from convserve._rpc.credentials import Access
from convserve.errors import ConvserveError
from convserve.protocol import layer_messages
from convserve.v1 import layer_service_pb2, layer_service_pb2_grpc

T = TypeVar("T")


class LayerServers:
    """Each server by itself, because which of several holds a layer can only be found by asking all of them.

    They are asked in the order of the target's addresses, so every client looks for a name where others put it. A
    server that does not answer is passed over if another one does.

    Each method makes one attempt, within the seconds of `timeout`. Where one server is enough, it raises
    LayerNotFoundError if none of those that answer holds the layer. It raises UnavailableError if none answers, and
    ConvserveError or grpc.RpcError for anything else that one of them says.
    """

    def __init__(self, channel: grpc.Channel, target: str, access: Access) -> None:
        """Prepares for a channel to a target of gRPC's, and for such channels to each of its servers."""
        self._access = access
        self._only = layer_service_pb2_grpc.LayerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._target = target
        self._channels: dict[str, grpc.Channel] = {}

    def put(self, given: layer_messages.Sent, timeout: float) -> Any:
        """Puts a layer on the first server that answers."""
        return self._first(lambda server, deadline: _send(server.PutLayer, given, deadline), timeout)

    def offer(self, given: layer_messages.Sent, timeout: float) -> bool:
        """Puts a layer on every server that does not hold it; returns whether all of them keep it."""

        def is_kept(server: Any, deadline: retries.Deadline) -> bool:
            try:
                _send(server.PutLayer, given, deadline)
            except (grpc.RpcError, ConvserveError) as failure:
                retries.check_cannot_keep(failure)
                return False
            return True

        return all(self._every(is_kept, timeout))

    def update(self, given: layer_messages.Sent, timeout: float) -> Any:
        """Updates the weights of a layer on the first server that holds it."""
        return self._first(lambda server, deadline: _send(server.UpdateWeights, given, deadline), timeout)

    def get(self, request: layer_service_pb2.GetLayerRequest, timeout: float) -> Any:
        """Returns the description of the first server that holds a layer."""
        return self._first(lambda server, deadline: server.GetLayer(request, timeout=deadline.remaining_s()), timeout)

    def read(self, request: layer_service_pb2.ReadWeightsRequest, timeout: float) -> list[Any]:
        """Returns the messages with a layer's weights, from the first server that holds it."""
        # As a list, so that a stream that breaks is read again like any call.
        return self._first(
            lambda server, deadline: list(server.ReadWeights(request, timeout=deadline.remaining_s())), timeout
        )

    def delete(self, request: layer_service_pb2.DeleteLayerRequest, timeout: float) -> None:
        """Deletes a layer or a name on every server."""
        self._every(lambda server, deadline: server.DeleteLayer(request, timeout=deadline.remaining_s()), timeout)

    def all_layers(self, request: layer_service_pb2.ListLayersRequest, timeout: float) -> list[list[Any]]:
        """Returns every server's layers, all pages of each."""

        def pages(server: Any, deadline: retries.Deadline) -> list[Any]:
            found: list[Any] = []
            following = layer_service_pb2.ListLayersRequest()
            following.CopyFrom(request)
            while True:
                page = server.ListLayers(following, timeout=deadline.remaining_s())
                found += page.layers
                following.page_token = page.next_page_token
                if not following.page_token:
                    return found

        return self._every(pages, timeout)

    def find_missing(
        self, requests: Sequence[layer_service_pb2.FindMissingLayersRequest], timeout: float
    ) -> set[bytes]:
        """Returns the digests that no server holds."""

        def missing(server: Any, deadline: retries.Deadline) -> set[bytes]:
            found: set[bytes] = set()
            for each in requests:
                answer = server.FindMissingLayers(each, timeout=deadline.remaining_s())
                found.update(answer.missing_digests)
            return found

        return set.intersection(*self._every(missing, timeout))

    def close(self) -> None:
        """Closes the connections."""
        for each in self._channels.values():
            each.close()

    def _first(self, ask: Callable[[Any, retries.Deadline], T], timeout: float) -> T:
        return self._answers(ask, timeout, every=False)[0]

    def _every(self, ask: Callable[[Any, retries.Deadline], T], timeout: float) -> list[T]:
        return self._answers(ask, timeout, every=True)

    def _answers(self, ask: Callable[[Any, retries.Deadline], T], timeout: float, *, every: bool) -> list[T]:
        deadline = retries.Deadline(timeout)
        answers: list[T] = []
        why_not: ConvserveError | None = None
        for stub in self._stubs():
            try:
                answers.append(ask(stub, deadline))
            except (grpc.RpcError, ConvserveError) as failure:
                why_not = retries.skip_replica(failure, why_not)
                continue
            if not every:
                break
        if not answers and why_not:
            raise why_not
        return answers

    def _stubs(self) -> list[Any]:
        name = _channel.name_to_resolve(self._target)
        if name is None:
            addresses = _channel.addresses(self._target)
        else:
            try:
                found = socket.getaddrinfo(*name, type=socket.SOCK_STREAM)
            except OSError:  # gRPC may know more of the name, or will say what is wrong
                found = []
            addresses = _channel.resolved(found)
        if len(addresses) < 2:
            return [self._only]
        channels = map(self._channel_to, addresses)
        return [layer_service_pb2_grpc.LayerServiceStub(each) for each in channels]  # type: ignore[no-untyped-call]

    def _channel_to(self, address: str) -> grpc.Channel:
        known = self._channels.get(address)
        if known is None:
            made = self._access.channel(address)
            known = self._channels.setdefault(address, made)  # another thread may have been faster
            if known is not made:
                made.close()
        return known


def _send(method: Any, given: layer_messages.Sent, deadline: retries.Deadline) -> Any:
    """Sends a start, and a layer's weights if there are any and the server wants them; returns the answer."""
    said: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def messages() -> Iterator[Any]:
        yield given.start
        if given.has_weights and said.result() == layer_messages.WANTED:
            yield from given.pieces()

    try:
        call = method.future(messages(), timeout=deadline.remaining_s())
        if given.has_weights:
            said.set_result(layer_messages.negotiated(call.initial_metadata()))
        return call.result()
    finally:
        said.cancel()  # if it came to no answer, so that nothing waits for one
