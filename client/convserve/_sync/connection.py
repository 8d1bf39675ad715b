"""A blocking client's connection: it is made again after a fork, and calls are sent until they are answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from convserve._rpc import channel, retries
from convserve._rpc.credentials import TLS, Access
from convserve._rpc.forks import calls_under_way
from convserve._sync.replicas import LayerServers
from convserve._sync.transfer import TensorPath
from convserve.errors import ConvserveError, FieldViolation, InvalidRequestError
from convserve.v1 import convolution_service_pb2_grpc

Response = TypeVar("Response")


class Connection:
    """What `Client` makes its calls with."""

    def __init__(
        self,
        target: str | Sequence[str] = channel.DEFAULT_TARGET,
        *,
        timeout: float = retries.DEFAULT_TIMEOUT_S,
        retry: retries.RetryRule | None = None,
        shared_memory: bool = True,
        token: str | None = None,
        tls: TLS | bool | None = None,
    ) -> None:
        """Prepares a connection; it is made with the first call.

        Args:
            target: "host:port", "unix:///path", or several "ip:port", over which calls are spread.
            timeout: Seconds that a call may take, retries included, unless it says otherwise.
            retry: When to send a call again; by default up to 5 times within the timeout.
            shared_memory: Whether tensors go through shared memory where one server on this machine, by loopback or a
                Unix socket, allows it.
            token: What the server knows this caller by; None for CONVSERVE_TOKEN of the environment, "" for none.
            tls: How the connection is encrypted: True with gRPC's root certificates, or a `TLS`. None for not at all,
                which sends no token to another machine; False for not at all, and sends it.

        Raises:
            InvalidRequestError: For a target or timeout that makes no sense, a token that others could read on its way,
                or files of `tls` that cannot be used.
        """
        self._target = channel.channel_target(target)
        self._access = Access(self._target, token, tls)
        self._timeout = retries.checked_timeout(timeout, timeout)
        self._retry = retry or retries.RetryRule()
        self._budget = retries.RetryBudget(self._retry)
        self._shares_memory = shared_memory
        self._closed = False
        self._open()

    def _open(self) -> None:
        calls_under_way.check_process()
        self._channel = self._access.channel(self._target)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._tensors = TensorPath(self._channel, self._target, self._shares_memory)
        self._servers = LayerServers(self._channel, self._target, self._access)
        self._process = os.getpid()  # last: another thread may look at it to see whether the rest is there

    def _connected(self) -> Any:
        if self._closed:
            text = "Expected an open client. Received a call after it was closed."
            raise InvalidRequestError(FieldViolation("client", text))
        if self._process != os.getpid():
            self._open()  # a channel does not survive a fork
        return self._stub

    def _connected_tensors(self) -> TensorPath:
        self._connected()
        return self._tensors

    def _connected_layers(self) -> LayerServers:
        self._connected()
        return self._servers

    def _deadline(self, timeout: float | None) -> retries.Deadline:
        return retries.Deadline.of(timeout, self._timeout)

    def _call(
        self,
        method: Callable[..., Response],
        request: Any,
        timeout: retries.Timeout,
        retry: retries.RetryRule | None = None,
    ) -> Response:
        """Sends a request until it is answered."""
        call = retries.Call(retry or self._retry, retries.Deadline.of(timeout, self._timeout), self._budget)
        while True:
            try:
                calls_under_way.begin(call, call.remaining_s())
                answer = method(request, timeout=call.remaining_s())
                call.answered()
                return answer
            except (grpc.RpcError, ConvserveError) as failure:
                delay = call.delay_after(failure)
            finally:
                calls_under_way.end(call)
            time.sleep(delay)

    def close(self) -> None:
        """Closes the connection."""
        self._closed = True
        self._tensors.close()
        self._servers.close()
        self._channel.close()

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
