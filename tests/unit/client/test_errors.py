"""The tree of errors: what the server raises is what the caller catches, and no text can break gRPC's metadata."""

import ast
import base64
import copy
import gc
import importlib.util
import pickle
import urllib.parse
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

import convserve
import convserve.importing  # whose own reasons are none of the tree
from convserve import errors
from convserve.errors import FieldViolation, printable, short_repr
from convserve.protocol.status import from_rpc_error, to_status
from convserve.v1 import error_pb2
from tests.support.repository import modules

TRAILER = "grpc-status-details-bin"
TWO = (FieldViolation("filters", "Expected 1. Received -1."), FieldViolation("strides", "Expected 2. Received 0."))
EXAMPLES = {
    errors.ConvserveError: errors.ConvserveError("text"),
    errors.InvalidArgumentError: errors.InvalidRequestError(*TWO),  # it comes back as its most general subclass
    errors.InvalidRequestError: errors.InvalidRequestError(*TWO),
    errors.InvalidConfigurationError: errors.InvalidConfigurationError(*TWO),
    errors.InvalidTensorError: errors.InvalidTensorError(*TWO),
    errors.InvalidWeightsError: errors.InvalidWeightsError(*TWO),
    errors.TooLargeError: errors.TooLargeError(*TWO),
    errors.LayerNotFoundError: errors.LayerNotFoundError("text", layer="sobel", by_name=True),
    errors.NameConflictError: errors.NameConflictError("text", name="a/b", found="00" * 32, version=7),
    errors.OverloadedError: errors.OverloadedError("text", retry_after_s=1.25),
    errors.OutOfMemoryError: errors.OutOfMemoryError("text"),
    errors.DeadlineExceededError: errors.DeadlineExceededError("text"),
    errors.UnauthenticatedError: errors.UnauthenticatedError("text"),
    errors.PermissionDeniedError: errors.PermissionDeniedError("text"),
    errors.UnavailableError: errors.UnavailableError("text"),
    errors.SharedMemoryLostError: errors.SharedMemoryLostError("text"),
    errors.UnimplementedError: errors.UnimplementedError("text"),
    errors.InternalError: errors.InternalError("text", error_id="0123456789ab"),
    errors.MissingDependencyError: errors.MissingDependencyError("text"),
}
LOCAL = {errors.MissingDependencyError}
WIRE = pytest.mark.parametrize("error", [each for kind, each in EXAMPLES.items() if kind not in LOCAL], ids=repr)
EVERY = pytest.mark.parametrize("error", EXAMPLES.values(), ids=repr)


@dataclass
class Failure:
    """A failed call as stubs raise it."""

    status: grpc.StatusCode
    text: str | None
    trailers: tuple = ()

    def code(self):
        return self.status

    def details(self):
        return self.text

    def trailing_metadata(self):
        return self.trailers


def crossed(error):
    """Returns the exception that a caller gets where a server raises this one."""
    status = to_status(error)
    return from_rpc_error(Failure(status.code, status.details, tuple(status.trailing_metadata)))


def family(kind):
    return {kind}.union(*(family(each) for each in kind.__subclasses__()))


def state(error):
    return type(error), str(error), error.code, {k: v for k, v in vars(error).items() if k != "code_name"}


def packed(*messages):
    """Returns a status' trailers with these details."""
    status = status_pb2.Status(code=3, message="text")
    for each in messages:
        status.details.add().Pack(each)
    return ((TRAILER, status.SerializeToString()),)


# The tree


def test_a_class_of_a_callers_own_is_not_what_servers_raise():
    class Own(errors.OverloadedError):
        pass

    try:
        spec = importlib.util.find_spec(
            "convserve.protocol.status"
        )  # as where it is loaded late, with the first client
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.CLASS_OF_REASON["OVERLOADED"] is errors.OverloadedError
    finally:
        del Own
        gc.collect()  # the tree is as it was


def test_every_class_of_the_tree_has_an_example():
    assert set(EXAMPLES) == family(errors.ConvserveError)


def test_no_other_module_adds_a_class_to_the_tree():
    tree = {kind.__name__ for kind in EXAMPLES}
    classes = {
        (module, node.name): {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {module for (module, _), bases in classes.items() if bases & tree} == {"convserve.errors"}


def test_every_class_of_the_tree_is_public_and_drawn():
    for kind in EXAMPLES:
        assert getattr(convserve, kind.__name__) is kind
        assert kind.__name__ in errors.__doc__
        assert kind.__doc__


def test_every_reason_of_the_contract_has_one_class():
    of_reason = {}
    for kind in set(EXAMPLES) - {errors.InvalidArgumentError}:
        of_reason.setdefault(kind.reason, []).append(kind)
    assert {reason for reason in of_reason if reason} == set(error_pb2.ErrorReason.values()) - {0}
    assert all(len(kinds) == 1 for reason, kinds in of_reason.items() if reason)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.InvalidTensorError, ValueError),
        (errors.TooLargeError, ValueError),
        (errors.LayerNotFoundError, LookupError),
        (errors.DeadlineExceededError, TimeoutError),
        (errors.UnavailableError, ConnectionError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_a_caller_may_catch_the_builtin_kind(kind, base):
    with pytest.raises(base) as caught:
        raise EXAMPLES[kind]
    assert isinstance(caught.value, errors.ConvserveError)


# Across the wire


@WIRE
def test_the_caller_gets_what_the_server_raised(error):
    assert state(crossed(error)) == state(error)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_missing_layer_says_whether_a_name_or_a_digest_is_missing(by_name):
    error = errors.LayerNotFoundError("text", layer="x", by_name=by_name)
    expected = grpc.StatusCode.NOT_FOUND if by_name else grpc.StatusCode.FAILED_PRECONDITION
    assert to_status(error).code is crossed(error).code is expected
    assert crossed(error).layer == "x"


@pytest.mark.parametrize("error", [errors.InvalidWeightsError(*TWO), errors.TooLargeError(*TWO)], ids=repr)
def test_fields_get_a_prefix_and_keep_their_class(error):
    under = error.under("layers[1].")
    assert type(under) is type(error)
    assert [each.field for each in under.violations] == ["layers[1].filters", "layers[1].strides"]
    assert [each.description for each in under.violations] == [each.description for each in TWO]


def test_the_code_can_be_set():
    """As pickles of errors from before have it."""
    error = errors.LayerNotFoundError("text")
    error.code = grpc.StatusCode.NOT_FOUND
    assert (error.code, error.code_name) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def test_the_text_names_every_field():
    text = "filters: Expected 1. Received -1.\nstrides: Expected 2. Received 0."
    assert str(errors.InvalidConfigurationError(*TWO)) == text


def test_the_wire_form_is_the_standard_one():
    status = to_status(errors.InvalidTensorError(*TWO))
    ((key, value),) = status.trailing_metadata
    sent = status_pb2.Status.FromString(value)
    assert key == TRAILER
    assert (sent.code, sent.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], status.details)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert sent.details[0].Unpack(info)
    assert sent.details[1].Unpack(bad_request)
    assert (info.domain, info.reason) == ("convserve.v1", "INVALID_TENSOR")
    assert [each.field for each in bad_request.field_violations] == ["filters", "strides"]


def test_what_has_no_reason_has_no_details():
    ((_, value),) = to_status(errors.DeadlineExceededError("late")).trailing_metadata
    sent = status_pb2.Status.FromString(value)
    assert (sent.code, sent.message, len(sent.details)) == (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "late", 0)


# Copies


@EVERY
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_errors_are_copied_and_sent_between_processes(error, copied):
    error.add_note("a note")
    try:
        assert state(copied(error)) == state(error)
        assert copied(error).__notes__ == ["a note"]
    finally:
        del error.__notes__


# Statuses that are not ours

CLASS_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.LayerNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.CANCELLED: errors.UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnimplementedError,
    grpc.StatusCode.INTERNAL: errors.InternalError,
}
BROKEN_ANY = any_pb2.Any(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff")
FOREIGN_TRAILERS = [
    (),
    None,
    (("other", "value"),),
    ((TRAILER, b"\xff\xff no status"),),
    ((TRAILER, status_pb2.Status(code=4, message="another").SerializeToString()),),
    ((TRAILER, status_pb2.Status(code=99, message="text").SerializeToString()),),
    packed(error_details_pb2.ErrorInfo(domain="other.com", reason="TOO_LARGE")),
    packed(error_details_pb2.ErrorInfo(domain="convserve.v1", reason="FROM_THE_FUTURE")),
    packed(error_details_pb2.ErrorInfo(domain="convserve.v1", reason="UNSPECIFIED")),
    ((TRAILER, status_pb2.Status(code=3, message="text", details=[BROKEN_ANY]).SerializeToString()),),
]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize("trailers", FOREIGN_TRAILERS)
def test_a_status_that_is_not_ours_becomes_what_fits_it(code, trailers):
    error = from_rpc_error(Failure(code, "text", trailers))
    assert type(error) is CLASS_OF_CODE.get(code, errors.ConvserveError)
    assert error.code is code
    assert "text" in str(error)


def test_a_status_without_text_still_says_something():
    assert str(from_rpc_error(Failure(grpc.StatusCode.UNKNOWN, None))) == "no details"


def test_bad_requests_of_others_are_understood():
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(field="size", description="too small")
    error = from_rpc_error(Failure(grpc.StatusCode.INVALID_ARGUMENT, "text", packed(bad_request)))
    assert error.violations == (FieldViolation("size", "too small"),)


@pytest.mark.parametrize("seconds", [-(10**18), -1, 0, 10**18])
def test_any_delay_that_a_stranger_names_is_a_number(seconds):
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = seconds
    status = status_pb2.Status(code=8, message="text")
    status.details.add().Pack(retry)
    failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "text", ((TRAILER, status.SerializeToString()),))
    assert from_rpc_error(failure).retry_after_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["SERVER: Received message larger than max (300 vs. 200)",
                                  "CLIENT: Sent message larger than max (300 vs. 200)",
                                  "grpc: received message larger than max (300 vs. 200)"])  # fmt: skip
def test_a_message_that_grpc_finds_too_large_is_too_large_and_not_overload(text):
    error = from_rpc_error(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
    assert type(error) is errors.TooLargeError
    assert "Expected at most 200 bytes" in str(error)
    assert "Received a message of 300" in str(error)
    assert "--max-message-bytes" in str(error)


def test_another_status_with_such_a_text_is_what_it_says():
    failure = Failure(grpc.StatusCode.INTERNAL, "SERVER: Received message larger than max (300 vs. 200)")
    assert type(from_rpc_error(failure)) is errors.InternalError


# Hostile texts

PLAIN = bytes(range(0x20, 0x7F)).replace(b"%", b"")  # what gRPC's percent-encoding leaves as it is


def metadata_bytes(status):
    """Returns what a status' text and trailer take on the wire, percent-encoded and in base64."""
    ((key, value),) = status.trailing_metadata
    text = len("grpc-message") + len(urllib.parse.quote(status.details, safe=PLAIN))
    return text + len(key) + len(base64.b64encode(value)) + 2 * 32  # HTTP/2 counts 32 bytes for each entry


HOSTILE = ["x" * 10**6, "%" * 10**4, "é" * 10**4, "\U0001f600" * 10**4, "\n" * 10**4, "\ud800" * 10**4, "\0" * 3000]
KINDS = ["ascii", "percent", "accents", "emoji", "newlines", "surrogates", "nul"]


@pytest.mark.parametrize("text", HOSTILE, ids=KINDS)
@pytest.mark.parametrize("make", [
    errors.UnavailableError,
    errors.OverloadedError,
    lambda text: errors.InvalidTensorError(FieldViolation(text, text)),
    lambda text: errors.InvalidTensorError(*[FieldViolation(text[:50], text[:500])] * 5000),
    lambda text: errors.InvalidTensorError(*[FieldViolation("f", text[:9])] * 5000),
    lambda text: errors.LayerNotFoundError(text, layer=text),
])  # fmt: skip
def test_no_text_exceeds_what_grpc_carries(make, text):
    error = make(text)
    assert metadata_bytes(to_status(error)) < 7.5 * 1024
    again = crossed(error)
    assert type(again) is type(error)
    assert len(str(again)) > 100
    if isinstance(error, errors.InvalidArgumentError):
        assert again.violations
        assert again.violations[0].description[:9] == printable(text[:9].encode(errors="replace").decode())[:9]


@given(st.lists(st.tuples(st.text(max_size=200), st.text(max_size=2000)), max_size=40))
def test_whatever_the_violations_are_they_arrive_or_are_cut(violations):
    error = errors.InvalidConfigurationError(*(FieldViolation(*each) for each in violations))
    again = crossed(error)
    assert metadata_bytes(to_status(error)) < 7.5 * 1024
    for sent, arrived in zip(error.violations, again.violations, strict=False):
        assert printable(sent.field).startswith(arrived.field.removesuffix("... (cut)"))
        assert printable(sent.description).startswith(arrived.description.removesuffix("... (cut)"))


def test_a_dozen_ordinary_violations_arrive_whole():
    violations = [FieldViolation(f"layers[1].field_{each}", f"Expected {'x' * 80}. Received y.") for each in range(12)]
    assert crossed(errors.InvalidConfigurationError(*violations)).violations == tuple(violations)


HUGE = [b"x" * 10**6, (1,) * 10**6, [0] * 10**6, 10**5000, {"a": "x" * 10**6}]


@pytest.mark.parametrize("value", [*HOSTILE, *HUGE], ids=[*KINDS, "bytes", "tuple", "list", "integer", "dictionary"])
def test_a_value_in_a_text_is_short(value):
    assert 0 < len(short_repr(value)) < 250


@pytest.mark.parametrize("value", ["text", b"bytes", (1, -2), None, 1.5, "x" * 150])
def test_a_short_value_in_a_text_is_whole(value):
    assert short_repr(value) == repr(value)


@pytest.mark.parametrize(
    ("code", "text", "is_retried"),
    [
        ("INTERNAL", "Internal error from Core", True),
        ("INTERNAL", "RST_STREAM (Received RST_STREAM with error code 0)", True),
        ("UNKNOWN", "exceeded request buffer limit while retrying upstream", True),
        ("INTERNAL", "Internal error from Corelli", False),
        ("UNKNOWN", "Exception calling application: RST", False),
        ("INVALID_ARGUMENT", "Received RST_STREAM with error code 0", False),
    ],
)
def test_a_call_that_ended_on_its_way_had_no_answer(code: str, text: str, is_retried: bool) -> None:
    error = from_rpc_error(Failure(grpc.StatusCode[code], text))
    assert isinstance(error, errors.UnavailableError) is is_retried
    assert text in str(error)
    if isinstance(error, errors.UnavailableError):
        assert (error.code_name, error.may_be_done) == ("UNAVAILABLE", True)
