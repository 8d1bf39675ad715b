"""The caller of a call, as the scheduler sees it."""

from __future__ import annotations

import grpc

from convserve_server.observability.call_record import current_identity
from convserve_server.scheduling.caller import Caller


def current_caller(context: grpc.ServicerContext) -> Caller:
    """Returns the caller of the call that this thread answers.

    Raises:
        PermissionDeniedError: If it was not authenticated.
    """
    identity = current_identity()
    return Caller(
        identity.caller,
        identity.is_one_caller,
        context.is_active,
        context.time_remaining,
        context.add_callback,
    )
