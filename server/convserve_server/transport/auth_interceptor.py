"""Which method asks for which permission, and an interceptor that holds every call to it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import grpc

from convserve.errors import ConvserveError, PermissionDeniedError, UnauthenticatedError, short_repr
from convserve_server.auth.identity import CHANGE, COMPUTE, PERMISSIONS, READ, authenticate, name_by_certificate
from convserve_server.auth.tokens import Tokens
from convserve_server.observability.call_record import current_call
from convserve_server.transport.call_interceptor import refuse

log = logging.getLogger("convserve")

Handler = Any  # grpc.RpcMethodHandler, as in interceptors.py

# By method, or by service where one permission is that of all its methods. What is in none of them needs all
# permissions, so that a method that is forgotten here is closed rather than open.
_OF_METHOD = {
    **dict.fromkeys(("GetServerInfo", "Plan", "GetLayer", "ListLayers", "FindMissingLayers", "ReadWeights"), READ),
    **dict.fromkeys(("Convolve", "ConvolveStream", "Echo"), COMPUTE),
    **dict.fromkeys(("PutLayer", "UpdateWeights", "DeleteLayer"), CHANGE),
}
_OF_INFERENCE = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"), READ),
    **dict.fromkeys(("ModelConfig", "ModelStatistics", "RepositoryIndex"), READ),
    **dict.fromkeys(("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"), READ),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer"), COMPUTE),
    **dict.fromkeys(("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"), COMPUTE),
    **dict.fromkeys(("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"), COMPUTE),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), CHANGE),
}
_OF_METHODS = {
    "convserve.v1.ConvolutionService": _OF_METHOD,
    "convserve.v1.LayerService": _OF_METHOD,
    "inference.GRPCInferenceService": _OF_INFERENCE,
}
_OF_SERVICE = {
    "grpc.channelz.v1.Channelz": READ,
    "grpc.reflection.v1.ServerReflection": READ,
    "grpc.reflection.v1alpha.ServerReflection": READ,
}
_OPEN_SERVICE = "grpc.health.v1.Health"  # what asks for it, such as Kubernetes' probes, has no place for a token


class Authentication(grpc.ServerInterceptor):
    """Refuses calls without a token, or with one that does not allow them.

    It stands before the interceptor that receives requests, and refuses without receiving any: who may not call cannot
    make the server hold what it sends.
    """

    def __init__(self, tokens: Tokens) -> None:
        """Prepares to ask for one of these tokens."""
        self._tokens = tokens

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler, or one that refuses."""
        method = handler_call_details.method
        try:
            self.check(method, handler_call_details.invocation_metadata)
        except ConvserveError as error:
            log.debug("%s answered %s: %s", current_call().method_label, error.code.name, error)
            return _refusing(error)
        return continuation(handler_call_details)

    def check(self, method: str, metadata: Any) -> None:
        """Notes in this context whose token a call shows.

        Raises:
            UnauthenticatedError, PermissionDeniedError: If it shows none, or one that does not allow the method.
        """
        needed = permissions_for(method)
        if not needed:
            return
        caller = self._tokens.caller(_token(metadata))
        if caller is None:
            raise UnauthenticatedError("Expected a token that this server knows. Received another.")
        if not needed <= caller.permissions:
            raise PermissionDeniedError(
                f"Expected a token with the permission {' and '.join(sorted(needed))} for {short_repr(method)}. "
                f"Received that of {caller.name}, which has {', '.join(sorted(caller.permissions))}."
            )
        authenticate(caller)


class CertificateNames(grpc.ServerInterceptor):
    """Lets callers be known by the certificates that they showed; for mutual TLS alone, as asking gRPC takes time."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler."""
        self.check(handler_call_details.method, handler_call_details.invocation_metadata)
        return continuation(handler_call_details)

    def check(self, method: str, metadata: Any) -> None:  # noqa: ARG002 (as for tokens)
        """Has this context's caller known by its certificate."""
        name_by_certificate()


@functools.lru_cache(maxsize=256)
def permissions_for(method: str) -> frozenset[str]:
    """Returns the permissions that a method asks for; none for a method that is open to all.

    Args:
        method: Its path, "/package.Service/Method".
    """
    service, _, name = method.removeprefix("/").partition("/")
    if service == _OPEN_SERVICE:
        return frozenset()
    needed = _OF_METHODS[service].get(name) if service in _OF_METHODS else _OF_SERVICE.get(service)
    return frozenset(PERMISSIONS if needed is None else (needed,))


def _token(metadata: Any) -> str:
    """Returns the token of a call.

    Raises:
        UnauthenticatedError: If it has none, or several.
    """
    shown = [value for key, value in metadata if key == "authorization"]
    scheme, _, token = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token:
        received = "none" if not shown else f"{len(shown)} headers" if len(shown) > 1 else "another scheme"
        raise UnauthenticatedError(
            "Expected the header 'authorization: Bearer TOKEN'. "
            f"Received {received}: give the client token=, or set CONVSERVE_TOKEN."
        )
    return token.strip()


def _refusing(error: ConvserveError) -> Handler:
    """Returns a handler that answers with an error.

    It is that of a stream, whatever the method, because gRPC receives a lone request before it calls a handler.
    """
    return grpc.stream_unary_rpc_method_handler(lambda _, context: refuse(error, context))
