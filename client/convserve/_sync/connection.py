# Generated from convserve/_async/connection.py by client/unasync.py (make sync): change that one.
"""A client's connection: it is made where it is used, and calls are sent until they are answered."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from convserve._rpc import channel, credentials, retries
from convserve._rpc.credentials import TLS, Access
from convserve._rpc.forks import calls_under_way
from convserve._rpc.requests import ConvolveRequest
from convserve._sync import io
from convserve._sync.replicas import LayerServers
from convserve._sync.transfer import TensorPath
from convserve.errors import (
    ConvserveError,
    InvalidArgumentError,
    InvalidRequestError,
    LayerNotFoundError,
    UnavailableError,
)
from convserve.layers.layer import Layer
from convserve.protocol import layer_messages
from convserve.protocol.call_arguments import checked_timeout
from convserve.protocol.results import Result
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors.freed_memory import reuse_freed_memory
from convserve.v1 import convolution_service_pb2_grpc


class Connection:
    """What `Client`, its stored layers and `map` make their calls with."""

    def __init__(
        self,
        target: channel.Target | None = None,
        *,
        timeout: float | None = channel.DEFAULT_TIMEOUT_S,
        retry: retries.RetryRule | None = None,
        shared_memory: bool = True,
        token: str | None = None,
        tls: TLS | bool | None = None,
    ) -> None:
        """Prepares a connection; the first call makes it.

        Args:
            target: "host:port", "unix:///path", or several "ip:port", over which calls are spread. None for
                CONVSERVE_TARGET of the environment, else "localhost:50051".
            timeout: Seconds that a call may take, retries included, unless it says otherwise; None for as long as it
                takes.
            retry: When to send a call again; by default up to 5 times within the timeout.
            shared_memory: Whether tensors go through shared memory where one server on this machine, by loopback or a
                Unix socket, allows it.
            token: What the server knows this caller by; None for CONVSERVE_TOKEN of the environment, "" for none.
            tls: How the connection is encrypted: True with the CAs that the system trusts, or a `TLS`. None for not at
                all, which sends no token to another machine; False for not at all, and sends it.

        Raises:
            InvalidRequestError: For a target, timeout or rule that makes no sense, a token that others could read on
                its way, or files of `tls` that cannot be used.
        """
        target, self._target = channel.given_target(target)
        self._arguments: dict[str, Any] = {"target": target, "timeout": timeout, "retry": retry}
        self._arguments |= {"shared_memory": shared_memory, "token": token, "tls": tls}
        self._refusal: ConvserveError | None = None
        self._closed = False
        self._home: Any = None  # where the channel is used
        self._channel: Any = None
        self._timeout = checked_timeout(timeout)
        self._retry = retries.checked_rule(retry)
        self._budget = retries.RetryBudget(self._retry)
        self._shares_memory = shared_memory
        self._access = Access(
            self._target, token, tls
        )  # last: of a copy elsewhere it may be refused, by the first call

    def __getstate__(self) -> dict[str, Any]:
        """Returns the settings, with which the copy connects anew; a token that was given is left behind.

        Raises InvalidRequestError for a private key that was given as bytes.
        """
        token, tls = self._arguments["token"], self._arguments["tls"]
        if isinstance(tls, TLS) and isinstance(tls.key, bytes):
            expected = "the path of a file where the client goes to another process"
            raise InvalidRequestError.for_field("tls.key", expected, "bytes: make the client there")
        return self._arguments | {"token": credentials.TOKEN_LEFT_BEHIND if token else token}

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        """Prepares a connection."""
        try:
            Connection.__init__(self, **arguments)
        except ConvserveError as error:  # the first call raises it: pools of processes hang on what cannot be read
            self._refusal = error

    def __copy__(self) -> Self:
        """Returns a client with the same settings, token included, that connects anew."""
        copied = type(self).__new__(type(self))
        Connection.__init__(copied, **self._arguments)
        return copied

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        """Returns a client with the same settings, token included, that connects anew."""
        return copy.copy(self)

    def _connected(self) -> Self:
        """Returns itself, with a channel that can be used here.

        Raises:
            InvalidRequestError: If it is closed, or in use elsewhere.
        """
        if self._closed:
            raise self._closed_error()
        if self._refusal is not None:
            raise self._refusal
        if self._home != io.home():
            with calls_under_way.setup:
                if self._home != io.home():
                    self._open()
        return self

    def _closed_error(self) -> InvalidRequestError:
        return InvalidRequestError.for_field("client", "an open client", "a call after it was closed")

    def _open(self) -> None:
        calls_under_way.check_process()
        io.check_home(self._home)
        reuse_freed_memory()
        self._channel = self._access.channel(self._target, io.channels)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._tensors = TensorPath(self._channel, self._target, self._shares_memory)
        self._servers = LayerServers(self._channel, self._target, self._access)
        self._upload_locks: weakref.WeakValueDictionary[bytes, io.Lock] = weakref.WeakValueDictionary()
        io.connected.add(self)
        self._home = io.home()  # last: another thread may look at it to see whether the rest is there

    def _deadline(self, timeout: retries.Timeout, rule: retries.RetryRule | None = None) -> retries.Deadline:
        if isinstance(timeout, retries.Deadline):
            return timeout
        return retries.Deadline(self._timeout if timeout is None else checked_timeout(timeout), rule=rule)

    def _call(
        self, method: Callable[..., Any], request: Any, timeout: retries.Timeout, retry: retries.RetryRule | None = None
    ) -> Any:
        """Sends a request until it is answered, but not again once it may have moved a name."""
        deadline = self._deadline(timeout)
        rule = retry or deadline.rule
        budget = retries.RetryBudget(rule) if rule else self._budget
        call = retries.Call(rule or self._retry, deadline, budget)
        call.moves_name = isinstance(request, layer_messages.Upload) and request.moves_name
        call.is_divisible = isinstance(request, ConvolveRequest)
        return self._attempt(call, method, request)

    def _first(self, request: Any, timeout: retries.Timeout) -> Any:
        """Sends a request of LayerService to the first server that has what it is about, and returns the answer."""
        return self._call(self._connected()._servers.first, request, timeout)

    def _attempt(self, call: retries.Call, method: Callable[..., Any], request: Any) -> Any:
        while True:
            try:
                with io.attempt(call.deadline.remaining_s()):
                    answer = method(request, call.deadline)
                self._budget.record_success()
                return answer
            except (io.RpcError, ConvserveError) as failure:
                try:
                    delay_s = call.delay_after(failure)
                except UnavailableError:
                    if self._closed:
                        raise self._closed_error() from None
                    raise
            except io.ClosedChannelError:
                if self._closed and not io.is_cancelled():
                    raise self._closed_error() from None
                raise
            io.sleep(delay_s)

    def _convolve(self, request: ConvolveRequest, deadline: retries.Deadline) -> Result:
        """Makes a forward pass' call; uploads its stored layers to servers that lack them."""
        stored = [layer for layer in request.layers if isinstance(layer, StoredLayerBase)]
        for is_uploaded in (False, True):
            uploads = [layer.uploads for layer in stored]
            try:
                return self._call(self._connected()._tensors.convolve, request, deadline)  # type: ignore[no-any-return]
            except LayerNotFoundError:
                if not stored:
                    raise
            if is_uploaded or not self._upload(stored, uploads, deadline):
                break
        for layer in stored:
            self._fetch(layer, deadline)  # the call brings them along, for servers that cannot keep them
        whole = request.carrying_layers()
        return self._call(self._connected()._tensors.convolve, whole, deadline)  # type: ignore[no-any-return]

    def _upload(self, layers: list[StoredLayerBase], uploads: list[int], deadline: retries.Deadline) -> bool:
        """Uploads layers to every server that lacks them; returns whether all servers can keep them.

        A layer is left out that was uploaded more often than `uploads` says, which is from before the call that found
        it missing: another call has done so meanwhile.
        """
        for layer, uploads_before in zip(layers, uploads, strict=True):
            with calls_under_way.setup:
                lock = self._upload_locks.setdefault(layer.digest, io.Lock())
            with io.held(lock, deadline):
                if layer.uploads != uploads_before:
                    continue
                upload = layer_messages.layer_upload(self._fetch(layer, deadline), None)
                try:
                    is_kept = self._call(self._servers.offer, upload, deadline, retries.NO_RETRIES)
                except UnavailableError:
                    return False
                layer.uploads += 1
                if not is_kept:
                    return False
        return True

    def _fetch(self, layer: StoredLayerBase, deadline: retries.Deadline) -> Layer:
        """Returns a layer with its weights, read if they are not known here, and initialized again if they are lost."""
        if layer.local is None:
            servers = self._connected()._servers
            try:
                weights = self._call(servers.read, layer, deadline)
            except LayerNotFoundError as lost:
                try:
                    self._first(layer_messages.reinitialization(layer), deadline)
                except InvalidArgumentError:  # other weights came out: a caller had given these
                    raise lost from None
                weights = self._call(servers.read, layer, deadline)
            layer.local = weights
        return layer.local

    def close(self) -> None:
        """Closes the connection."""
        io.check_home(self._home)
        self._closed = True
        if self._channel is not None:
            self._tensors.sharing.close()
            self._servers.close()
            self._channel.close()
            self._channel = None
            io.connected.discard(self)

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    def __repr__(self) -> str:
        """Returns the client's target and timeout."""
        return f"<convserve.{type(self).__name__} {self._target} timeout={self._timeout:g}s>"
