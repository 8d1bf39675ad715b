"""Calls fail closed: where nothing is known of a caller it may do nothing, in any form and by either protocol."""

from contextvars import Context
from types import SimpleNamespace

import grpc
import pytest

from convserve import PermissionDeniedError
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.auth.authenticator import Authenticator
from convserve_server.auth.tokens import Tokens
from convserve_server.backend import Backend
from convserve_server.health import Health
from convserve_server.layer_store.store import LayerStore
from convserve_server.observability.call_record import CURRENT_CALL, CallRecord, CallRecorder
from convserve_server.open_inference.inference_service import InferenceService
from convserve_server.open_inference.v2 import inference_service_pb2 as inference
from convserve_server.open_inference.wire import InferRequest
from convserve_server.services.convolution_service import ConvolutionService
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.connections import Connections
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots
from tests.support.servers.in_process_servers import FORMS

IDLE = IdleTimeouts(60)


class AbortError(Exception):
    """A call that a context has ended."""


class CallContext:
    """A call's context, as far as interceptor and services ask. A call that is aborted has ended."""

    def __init__(self):
        self.status, self.trailers, self.callbacks = None, (), []

    def set_trailing_metadata(self, metadata):
        self.trailers = metadata

    def trailing_metadata(self):
        return self.trailers

    def invocation_metadata(self):
        return ()

    def code(self):
        return self.status

    def abort(self, code, details):
        self.status = code
        for callback in self.callbacks:
            callback()
        raise AbortError(details)

    def add_callback(self, callback):
        self.callbacks.append(callback)
        return True

    def peer(self):
        return "ipv4:10.0.0.1:5"

    def is_active(self):
        return True

    def time_remaining(self):
        return 60.0


def reached(request, context):
    raise AssertionError("the method was called")


def called(form, authenticator, *, has_record):
    """Calls a method through the interceptor; returns the code that it is refused with."""
    handler = getattr(grpc, f"{form}_rpc_method_handler")(reached)
    connections = Connections(8, 16)
    interceptor = CallInterceptor(
        CallRecorder(), authenticator, StreamSlots(2), ReceivingSlots(2), IDLE, {}, connections
    )
    details = SimpleNamespace(method="/convserve.v1.ConvolutionService/Convolve", invocation_metadata=())
    context, own = CallContext(), Context()
    wrapped = own.run(interceptor.intercept_service, lambda _: handler, details)
    behaviour = wrapped.stream_stream or wrapped.stream_unary

    def answer():
        answers = behaviour(iter((b"",)), context)
        return list(answers) if wrapped.response_streaming else answers

    with pytest.raises(AbortError):
        (own if has_record else Context()).run(answer)
    return context.status


@pytest.mark.parametrize("form", FORMS)
def test_a_call_in_a_context_without_a_record_is_refused(form):
    assert called(form, Authenticator(), has_record=False) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("form", FORMS)
def test_a_call_without_a_token_is_refused_where_there_are_tokens(form):
    tokens = Tokens(token="s3cret-0123456789")  # noqa: S106
    assert called(form, Authenticator(tokens), has_record=True) is grpc.StatusCode.UNAUTHENTICATED


def test_where_no_tokens_are_asked_for_everybody_may_do_everything():
    identity = Authenticator(Tokens()).identify("/convserve.v1.LayerService/PutLayer", CallContext())
    assert (identity.caller, identity.permissions) == ("ipv4:10.0.0.1", {"read", "compute", "change"})


@pytest.mark.parametrize("is_recorded", [False, True])
def test_services_of_both_protocols_refuse_whoever_was_not_authenticated(is_recorded):
    backend = Backend(None, SimpleNamespace(plan=None), None, LayerStore(0), None)
    ours = ConvolutionService(backend, None, None, IDLE, 1)
    theirs = InferenceService(backend, Health(()), None, IDLE, None)
    start = messages.ConvolveStreamRequest(start=messages.StreamStart())
    infer = InferRequest(inference.ModelInferRequest(), ())
    calls = [
        lambda: ours.Plan(messages.PlanRequest(), CallContext()),
        lambda: ours.Convolve((messages.ConvolveRequest(), None), CallContext()),
        lambda: list(ours.ConvolveStream(iter((start,)), CallContext())),
        lambda: theirs.ModelInfer(infer, CallContext()),
        lambda: list(theirs.ModelStreamInfer(iter((infer,)), CallContext())),
    ]
    for call in calls:
        context = Context()
        if is_recorded:
            context.run(CURRENT_CALL.set, CallRecord("m", "m"))
        with pytest.raises(PermissionDeniedError):
            context.run(call)
