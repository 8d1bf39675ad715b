"""The caller of a call, as the scheduler sees it."""

from __future__ import annotations

import grpc

from convserve_server.observability.call_record import current_identity
from convserve_server.scheduling.caller import Caller


def current_caller(context: grpc.ServicerContext) -> Caller:
    """Returns the caller of this thread's call; raises PermissionDeniedError if it was not authenticated."""
    identity = current_identity()
    name, is_identified = identity.caller, identity.is_one_caller
    return Caller(name, is_identified, context.is_active, context.time_remaining, context.add_callback)
