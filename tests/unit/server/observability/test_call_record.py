"""The record of a call: whose id it has, what it adds up, and what observers hear."""

import contextvars
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from convserve import InternalError, InvalidTensorError, OverloadedError, PermissionDeniedError
from convserve.errors import DeadlineExceededError, FieldViolation
from convserve_server.auth.identity import Identity
from convserve_server.observability.call_record import (
    CURRENT_CALL,
    REASONS,
    UNKNOWN_METHOD,
    CallRecord,
    CallRecorder,
    Observer,
    current_call,
    current_identity,
)
from tests.support.observability.observers import PASS, Heard


@pytest.mark.parametrize("given", ["a", "0f8f-1b", "!~", "x" * 128, 'trace:7/3,b="c"'])
def test_the_callers_own_id_is_taken(given):
    assert CallRecord("m", "m", (("user-agent", "x"), ("x-request-id", given))).request_id == given


@pytest.mark.parametrize("given", ["", " ", "a b", "a\n", "x" * 129, "é", "\x7f", "a\x1b[2J", b"bytes"])
def test_an_id_that_is_no_word_is_replaced(given):
    found = CallRecord("m", "m", (("x-request-id", given),)).request_id
    assert found != given
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", found)


def test_ids_that_are_made_differ():
    assert len({CallRecord("m", "m").request_id for _ in range(100)}) == 100


def test_observers_hear_everything_in_order():
    heard = Heard()
    call = CallRecord("m", "m", (), (heard,))
    call.begin()
    call.computed(PASS)
    call.refused(OverloadedError("busy"))
    call.end("RESOURCE_EXHAUSTED")
    assert heard.words == [("began", "m"), (1, PASS), (0, "OVERLOADED"), "RESOURCE_EXHAUSTED"]
    assert (call.code, call.caller, call.reason) == ("RESOURCE_EXHAUSTED", "", "OVERLOADED")
    assert call.duration_us >= 0


def test_an_observer_that_fails_harms_neither_the_call_nor_others(caplog):
    class Failing(Observer):
        def __getattribute__(self, name):
            raise RuntimeError("no")

    heard = Heard()
    call = CallRecord("m", "m", (), (Failing(), heard))
    call.begin()
    call.computed(PASS)
    call.refused(OverloadedError("busy"))
    call.end("RESOURCE_EXHAUSTED")
    assert heard.words == [("began", "m"), (1, PASS), (0, "OVERLOADED"), "RESOURCE_EXHAUSTED"]
    assert [each.getMessage() for each in caplog.records] == ["Failing failed at a call of m"] * 4


def test_an_item_that_is_refused_is_not_the_call():
    heard = Heard()
    call = CallRecord("m", "m", (), (heard,))
    call.refused(InvalidTensorError(FieldViolation("input", "Expected. Received.")), item=True)
    assert (call.reason, call.items_refused, heard.words) == ("", 1, [(1, "INVALID_TENSOR")])


def test_a_defect_is_found_by_its_id():
    call = CallRecord("m", "m")
    call.refused(InternalError("", error_id="abc"))
    assert (call.reason, call.error_id) == ("INTERNAL", "abc")


def test_a_deadline_is_no_reason_of_ours():
    heard = Heard()
    call = CallRecord("m", "m", (), (heard,))
    call.refused(DeadlineExceededError("late"))
    assert (call.reason, heard.words) == ("", [])


def test_reasons_are_those_of_the_contract():
    assert "UNSPECIFIED" not in REASONS.values()
    assert {"TOO_LARGE", "LAYER_NOT_FOUND", "SHARED_MEMORY_LOST"} < set(REASONS.values())


def test_forward_passes_of_many_threads_add_up():
    call = CallRecord("m", "m")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: call.computed(PASS._replace(batch_size=number)), range(2000)))
    assert (call.items, call.queue_us, call.compute_us, call.batch_size) == (2000, 20_000, 400_000, 1999)
    assert call.first is not None


def test_each_context_has_its_own_call():
    call = CallRecord("m", "m")

    def answered():
        CURRENT_CALL.set(call)
        return current_call()

    assert contextvars.copy_context().run(answered) is call
    with pytest.raises(PermissionDeniedError):
        current_call()


def test_who_was_not_authenticated_may_do_nothing():
    def identified(identity):
        call = CallRecord("m", "m")
        call.identity = identity
        CURRENT_CALL.set(call)
        return current_identity()

    alice = Identity("alice", frozenset({"read"}))
    assert contextvars.copy_context().run(identified, alice) is alice
    with pytest.raises(PermissionDeniedError):
        contextvars.copy_context().run(identified, None)


def test_names_of_methods_are_those_that_are_listed():
    recorder = CallRecorder(["/a.B/C"])
    known = contextvars.copy_context().run(recorder.arrived, "/a.B/C", ())
    unknown = contextvars.copy_context().run(recorder.arrived, "/a.B/\n" + "x" * 1000, ())
    assert (known.method, known.method_label) == ("a.B/C", "a.B/C")
    assert unknown.method == UNKNOWN_METHOD
    assert unknown.method_label.isprintable()
    assert len(unknown.method_label) < 300
