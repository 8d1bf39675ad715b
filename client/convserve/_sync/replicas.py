# Generated from convserve/_async/replicas.py by client/unasync.py (make sync): change that one.
"""The LayerService of every server that a client's target names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from convserve._rpc import channel as _channel
from convserve._rpc.credentials import Access
from convserve._rpc.retries import Deadline
from convserve._sync import io
from convserve.errors import (
    ConvserveError,
    LayerNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
)
from convserve.layers.layer import Layer
from convserve.protocol.layer_answers import Listing, ReceivedWeights
from convserve.protocol.layer_messages import Upload, stored_reference
from convserve.protocol.status import from_rpc_error
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.v1 import layer_service_pb2, layer_service_pb2_grpc

T = TypeVar("T")
log = logging.getLogger("convserve")

_PASSED_OVER = (LayerNotFoundError, UnavailableError)


class LayerServers:
    """Each server by itself, because which of several holds a layer can only be found by asking all of them.

    They are asked in the order of the target's addresses, so every client looks for a name where others put it. A
    server that does not answer is passed over if another one does.

    Each method makes one attempt. Where one server is enough, it raises LayerNotFoundError if none of those that answer
    holds the layer. It raises UnavailableError if none answers, DeadlineExceededError if they could not be found in
    time, and ConvserveError or grpc.RpcError for anything else that one of them says.
    """

    def __init__(self, channel: Any, target: str, access: Access) -> None:
        self._access = access
        self._target = target
        self._only = _Replica(channel)
        self._lock = threading.Lock()
        self._addresses: tuple[str, ...] = ()  # to which the target led last
        self._replicas: dict[str, _Replica] = {}

    def put(self, upload: Upload, deadline: Deadline) -> Any:
        """Puts a layer on the first server that answers."""
        return self._first(
            lambda server: io.upload(server.PutLayer, upload, deadline), deadline, is_move=upload.is_move
        )

    def offer(self, upload: Upload, deadline: Deadline) -> bool:
        """Puts a layer on every server that does not hold it; returns whether all of them keep it."""

        def is_kept(server: Any) -> bool:
            try:
                io.upload(server.PutLayer, upload, deadline)
            except (io.RpcError, ConvserveError) as failure:
                error = from_rpc_error(failure)
                if isinstance(error, OverloadedError | PermissionDeniedError | TooLargeError):
                    return False  # it has no room, or keeps none for this caller
                raise error from None
            return True

        return all(self._every(is_kept, deadline))

    def update(self, upload: Upload, deadline: Deadline) -> Any:
        """Updates the weights of a layer on the first server that holds it."""
        return self._first(
            lambda server: io.upload(server.UpdateWeights, upload, deadline), deadline, is_move=upload.is_move
        )

    def get(self, request: layer_service_pb2.GetLayerRequest, deadline: Deadline) -> Any:
        """Returns the description of the first server that holds a layer."""
        return self._first(lambda server: server.GetLayer(request, timeout=deadline.remaining_s()), deadline)

    def versions(self, request: layer_service_pb2.ListNameVersionsRequest, deadline: Deadline) -> Any:
        """Returns the versions of a name on the first server that has it."""
        return self._first(lambda server: server.ListNameVersions(request, timeout=deadline.remaining_s()), deadline)

    def move(self, request: layer_service_pb2.MoveNameRequest, deadline: Deadline) -> Any:
        """Moves a name on the first server that answers; to one of its versions on the first that has it.

        A layer that the first server lacks, or knows by no such name, is to be put there, because callers look for the
        name there first.
        """
        passed_over = (UnavailableError,) if request.HasField("layer") else _PASSED_OVER
        return self._first(
            lambda server: server.MoveName(request, timeout=deadline.remaining_s()), deadline, passed_over, is_move=True
        )

    def move_away(self, request: layer_service_pb2.MoveNameRequest, deadline: Deadline) -> None:
        """Removes a name from every server that answers."""
        self._every(lambda server: server.MoveName(request, timeout=deadline.remaining_s()), deadline)

    def read(self, layer: StoredLayerBase, deadline: Deadline) -> Layer:
        """Returns a layer with its weights, from the first server that holds it."""
        request = layer_service_pb2.ReadWeightsRequest(layer=stored_reference(layer))

        # To the end in one attempt, so that a stream that breaks is read again like any call.
        def read(server: Any) -> Layer:
            return io.received(server.ReadWeights(request, timeout=deadline.remaining_s()), ReceivedWeights(layer))

        return self._first(read, deadline)

    def delete(self, request: layer_service_pb2.DeleteLayerRequest, deadline: Deadline) -> None:
        """Deletes a layer or a name on every server that answers."""
        self._every(lambda server: server.DeleteLayer(request, timeout=deadline.remaining_s()), deadline)

    def all_layers(
        self, request: layer_service_pb2.ListLayersRequest, deadline: Deadline
    ) -> list[list[dict[str, Any]]]:
        """Returns what every server says of its layers, all pages of each."""

        def pages(server: Any) -> list[dict[str, Any]]:
            listing = Listing(request)
            while not listing.is_whole:
                listing.take(server.ListLayers(listing.following, timeout=deadline.remaining_s()))
            return listing.layers

        return self._every(pages, deadline)

    def find_missing(
        self, requests: Sequence[layer_service_pb2.FindMissingLayersRequest], deadline: Deadline
    ) -> set[bytes]:
        """Returns the digests that no server holds."""

        def missing(server: Any) -> set[bytes]:
            answers = [server.FindMissingLayers(part, timeout=deadline.remaining_s()) for part in requests]
            return {digest for answer in answers for digest in answer.missing_digests}

        return set.intersection(*self._every(missing, deadline))

    def close(self) -> None:
        """Closes the connections."""
        for replica in self._replicas.values():
            replica.channel.close()

    def _first(
        self,
        ask: Callable[[Any], T],
        deadline: Deadline,
        passed_over: tuple[type[ConvserveError], ...] = _PASSED_OVER,
        *,
        is_move: bool = False,
    ) -> T:
        return (self._every(ask, deadline, passed_over, only_first=True, is_move=is_move))[0]

    def _every(
        self,
        ask: Callable[[Any], T],
        deadline: Deadline,
        passed_over: tuple[type[ConvserveError], ...] = _PASSED_OVER,
        *,
        only_first: bool = False,
        is_move: bool = False,
    ) -> list[T]:
        answers: list[T] = []
        why_not: ConvserveError | None = None
        replicas = self._in_use(deadline)
        try:
            for replica in replicas:
                try:
                    answers.append(ask(replica.stub))
                except (io.RpcError, ConvserveError) as failure:
                    error = from_rpc_error(failure)
                    # A server that may have made a move is asked again, for another one would make it too, or refuse
                    # it for what is there.
                    is_open = is_move and isinstance(error, UnavailableError) and error.may_be_done
                    if is_open or not isinstance(error, passed_over):
                        raise error from None
                    why_not = why_not if isinstance(why_not, LayerNotFoundError) else error
                    log.debug("one of several servers is passed over: %s", error)
                    continue
                if only_first:
                    break
        finally:
            self._release(replicas)
        if not answers and why_not:
            raise why_not
        return answers

    def _in_use(self, deadline: Deadline) -> list[_Replica]:
        """Returns the servers that the target leads to now, until `_release`."""
        name = _channel.name_to_resolve(self._target)
        addresses = io.look_up(*name, deadline) if name else _channel.addresses(self._target)
        if len(addresses) < 2:
            return [self._only]
        with self._lock:
            self._addresses = addresses
            for address in addresses:
                if address not in self._replicas:
                    self._replicas[address] = _Replica(self._access.channel(address, io.channels))
            replicas = [self._replicas[address] for address in addresses]
            for replica in replicas:
                replica.users += 1
        return replicas

    def _release(self, replicas: list[_Replica]) -> None:
        """Closes the channels to servers that the target no longer leads to, unless other calls use them still."""
        with self._lock:
            for replica in replicas:
                replica.users -= 1
            gone = self._replicas.keys() - self._addresses
            closing = [self._replicas.pop(address) for address in gone if not self._replicas[address].users]
        for replica in closing:
            replica.channel.close()


class _Replica:
    """A server's channel and LayerService's stub on it, and how many calls use them."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.stub: Any = layer_service_pb2_grpc.LayerServiceStub(channel)  # type: ignore[no-untyped-call]
        self.users = 0
