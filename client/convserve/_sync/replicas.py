# Generated from convserve/_async/replicas.py by client/unasync.py (make sync): change that one.
"""The LayerService of every server that a client's target names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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
from convserve.v1.layer_service_pb2 import MoveNameRequest

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
        self._addresses: tuple[str, ...] = ()  # to which the target led last, if there were several
        self._replicas: dict[str, _Replica] = {}

    def first(self, request: Any, deadline: Deadline) -> Any:
        """Sends a request to one server after the other until one has what it is about, and returns the answer.

        A layer that is to get a name, and that the first to answer lacks, is no reason to ask the next one: it is to be
        put there, because callers look for the name there first.
        """
        is_move = request.is_move if isinstance(request, Upload) else isinstance(request, MoveNameRequest)
        names_layer = isinstance(request, MoveNameRequest) and request.HasField("layer")
        passed_over = (UnavailableError,) if names_layer else _PASSED_OVER
        ask = _sending(request, deadline)
        return (self._every(ask, deadline, passed_over, only_first=True, is_change=is_move))[0]

    def every(self, request: Any, deadline: Deadline) -> list[Any]:
        """Sends a request to every server that answers, and returns the answers of those that have what it is about."""
        return self._every(_sending(request, deadline), deadline)

    def remove(self, request: Any, deadline: Deadline, *, done: set[Any]) -> None:
        """Sends a request to remove something to every server that answers, but to none that is done; notes which are.

        Raises UnavailableError, rather than that there is none, if one may have removed it whose answer was lost.
        """
        send = _sending(request, deadline)

        def remove(server: Any) -> None:
            if server not in done:
                send(server)
                done.add(server)

        self._every(remove, deadline, is_change=True)

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

    def read(self, layer: StoredLayerBase, deadline: Deadline) -> Layer:
        """Returns a layer with its weights, from the first server that holds it."""
        request = layer_service_pb2.ReadWeightsRequest(layer=stored_reference(layer))

        # To the end in one attempt, so that a stream that breaks is read again like any call.
        def read(server: Any) -> Layer:
            return io.received(server.ReadWeights(request, timeout=deadline.remaining_s()), ReceivedWeights(layer))

        return (self._every(read, deadline, only_first=True))[0]

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

    def close(self) -> None:
        """Closes the connections."""
        for replica in list(self._replicas.values()):  # of which calls that end meanwhile may drop some
            replica.channel.close()

    def _every(
        self,
        ask: Callable[[Any], T],
        deadline: Deadline,
        passed_over: tuple[type[ConvserveError], ...] = _PASSED_OVER,
        *,
        only_first: bool = False,
        is_change: bool = False,
    ) -> list[T]:
        answers: list[T] = []
        why_not: ConvserveError | None = None
        lost: ConvserveError | None = None  # of a server that may have made the change
        replicas = self._in_use(deadline)
        try:
            for replica in replicas:
                try:
                    answers.append(ask(replica.stub))
                except (io.RpcError, ConvserveError) as failure:
                    error = from_rpc_error(failure)
                    if is_change and isinstance(error, UnavailableError) and error.may_be_done:
                        lost = error
                    # A server that may have made a move is asked again, for another one would make it too, or refuse
                    # it for what is there.
                    if (lost and only_first) or not isinstance(error, passed_over):
                        raise (lost or error) from None
                    why_not = why_not if isinstance(why_not, LayerNotFoundError) else error
                    log.debug("one of several servers is passed over: %s", error)
                    continue
                if only_first:
                    break
        finally:
            self._release(replicas)
        if not answers and (why_none := lost or why_not):
            raise why_none
        return answers

    def _in_use(self, deadline: Deadline) -> list[_Replica]:
        """Returns the servers that the target leads to now, until `_release`."""
        name = _channel.name_to_resolve(self._target)
        addresses = io.look_up(*name, deadline) if name else _channel.addresses(self._target)
        with self._lock:
            self._addresses = addresses if len(addresses) > 1 else ()
            for address in self._addresses:
                if address not in self._replicas:
                    self._replicas[address] = _Replica(self._access.channel(address, io.channels))
            replicas = [self._replicas[address] for address in self._addresses] or [self._only]
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


def _sending(request: Any, deadline: Deadline) -> Callable[[Any], Any]:
    """Returns what sends a request to a LayerService's stub, by the method that the request's message is named for."""
    message = request.start if isinstance(request, Upload) else request
    method = type(message).__name__.removesuffix("Request")
    send = io.upload if isinstance(request, Upload) else io.answer
    return lambda server: send(getattr(server, method), request, deadline)


class _Replica:
    """A server's channel and LayerService's stub on it, and how many calls use them."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.stub: Any = layer_service_pb2_grpc.LayerServiceStub(channel)  # type: ignore[no-untyped-call]
        self.users = 0
