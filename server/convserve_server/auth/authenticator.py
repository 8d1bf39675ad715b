"""Which method needs which permission, and who may call it."""

from __future__ import annotations

import functools

import grpc

from convserve.errors import PermissionDeniedError, UnauthenticatedError, short_repr
from convserve_server.auth.identity import ALL, CERTIFICATE, CHANGE, COMPUTE, READ, Identity, anyone, certificate_name
from convserve_server.auth.tokens import Tokens

# By method, or by service where one permission is that of all its methods. What is in none of them needs all
# permissions, so that a method that is forgotten here is closed rather than open.
_OUR_METHODS = {
    **dict.fromkeys(("GetServerInfo", "Plan", "GetLayer", "ListLayers", "FindMissingLayers", "ReadWeights"), READ),
    "ListNameVersions": READ,
    **dict.fromkeys(("Convolve", "ConvolveStream", "Echo"), COMPUTE),
    **dict.fromkeys(("PutLayer", "UpdateWeights", "DeleteLayer", "MoveName"), CHANGE),
}
_INFERENCE_METHODS = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"), READ),
    **dict.fromkeys(("ModelConfig", "ModelStatistics", "RepositoryIndex"), READ),
    **dict.fromkeys(("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"), READ),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer"), COMPUTE),
    **dict.fromkeys(("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"), COMPUTE),
    **dict.fromkeys(("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"), COMPUTE),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), CHANGE),
}
_METHODS = {
    "convserve.v1.ConvolutionService": _OUR_METHODS,
    "convserve.v1.LayerService": _OUR_METHODS,
    "inference.GRPCInferenceService": _INFERENCE_METHODS,
}
_SERVICES = {
    "grpc.channelz.v1.Channelz": READ,
    "grpc.reflection.v1.ServerReflection": READ,
    "grpc.reflection.v1alpha.ServerReflection": READ,
}
_OPEN_SERVICE = "grpc.health.v1.Health"  # its callers, such as Kubernetes' probes, have no place for a token


class Authenticator:
    """Says who a call is from."""

    def __init__(self, tokens: Tokens | None = None, *, by_certificate: bool = False) -> None:
        """Asks for tokens, if there are any; `by_certificate`: whether callers are known by theirs (mutual TLS)."""
        self._tokens = tokens or None
        self._by_certificate = by_certificate

    def identify(self, method: str, context: grpc.ServicerContext) -> Identity:
        """Returns who a call of "/package.Service/Method" is from; `check` says whether it may be made.

        Raises UnauthenticatedError if the method needs a token and the call shows none that the server knows.
        """
        permissions = ALL
        if self._tokens is not None:
            if permissions_for(method):
                identity = self._tokens.caller(_token(context))
                if identity is None:
                    raise UnauthenticatedError("Expected a token that this server knows. Received another.")
                return identity
            permissions = frozenset()
        if self._by_certificate and (name := certificate_name(context.auth_context())):
            return Identity(name, permissions, CERTIFICATE)
        return anyone(context.peer(), permissions)


def check(identity: Identity, method: str) -> None:
    """Raises PermissionDeniedError if whoever calls a method of "/package.Service/Method" may not."""
    needed = permissions_for(method)
    if not needed <= identity.permissions:
        wanted, held = " and ".join(sorted(needed)), ", ".join(sorted(identity.permissions))
        expected = f"Expected a token with the permission {wanted} for {short_repr(method)}"
        raise PermissionDeniedError(f"{expected}. Received that of {identity.name}, which has {held}.")


@functools.lru_cache(maxsize=256)
def permissions_for(method: str) -> frozenset[str]:
    """Returns the permissions that "/package.Service/Method" needs; none if it is open to all."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == _OPEN_SERVICE:
        return frozenset()
    needed = _METHODS[service].get(name) if service in _METHODS else _SERVICES.get(service)
    return ALL if needed is None else frozenset((needed,))


def _token(context: grpc.ServicerContext) -> str:
    """Returns the token of a call. Raises UnauthenticatedError if it has none, or several."""
    headers = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token:
        received = "none" if not headers else f"{len(headers)} headers" if len(headers) > 1 else "another scheme"
        raise UnauthenticatedError(
            "Expected the header 'authorization: Bearer TOKEN'. "
            f"Received {received}: give the client token= (--token-file), or set CONVSERVE_TOKEN."
        )
    return token.strip()
