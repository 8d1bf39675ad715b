"""A request's line of log: in words and as JSON, at its level, and never more of them than are read."""

import json
import logging
import threading

import pytest

from convserve import InternalError
from convserve_server.auth.identity import anyone
from convserve_server.observability import request_log
from convserve_server.observability.call_record import CallRecord
from convserve_server.observability.logs import formatter
from convserve_server.observability.request_log import RequestLog
from tests.support.observability.observers import PASS

CONVOLVE = "convserve.v1.ConvolutionService/Convolve"
PRIVATE = "Bearer s3cr3t"


class Lines(logging.Handler):
    """Keeps the lines that it is given."""

    def __init__(self, form):
        super().__init__()
        self.setFormatter(formatter(form))
        self.lines = []
        self.go = threading.Event()
        self.go.set()

    def emit(self, record):
        self.go.wait(30)
        self.lines.append(self.format(record))


@pytest.fixture(params=["text", "json"])
def form(request):
    return request.param


@pytest.fixture
def level():
    """Sets the level of the server's log, and puts it back."""
    logger = logging.getLogger("convserve")
    before = logger.level
    yield logger.setLevel
    logger.setLevel(before)


def written(form, *calls):
    """Returns the lines of calls that end."""
    handler = Lines(form)
    log = RequestLog(handler, as_fields=form == "json")
    for call in calls:
        log.ended(call)
    log.close()
    return handler.lines


def convolved(method=CONVOLVE):
    call = CallRecord(method, method, (("x-request-id", "id-7"), ("authorization", PRIVATE)))
    call.computed(PASS)
    call.received_bytes, call.sent_bytes = 100, 200
    call.identity = anyone("ipv4:10.0.0.1:5")
    call.end("OK")
    return call


def failed():
    call = CallRecord(CONVOLVE, CONVOLVE, (("x-request-id", "id-8"),))
    call.refused(InternalError("", error_id="abc123"))
    call.identity = anyone("ipv4:10.0.0.1:5")
    call.end("INTERNAL")
    return call


def test_words(level):
    level("INFO")
    (line,) = written("text", convolved())
    for part in (
        f" INFO {CONVOLVE} OK, from ipv4:10.0.0.1, (1, 2, 2, 1) to (1, 2, 2, 3), batch of 4 on cpu:0, "
        "queue 0.010 ms, compute 0.200 ms, duration ",
        "100 bytes in, 200 out, request_id id-7",
    ):
        assert part in line


def test_json(level):
    level("INFO")
    (line,) = written("json", convolved())
    found = json.loads(line)
    assert found.pop("duration_us") >= 0
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO", "message": "request", "request_id": "id-7", "trace_id": None, "caller": "ipv4:10.0.0.1",
        "method": CONVOLVE, "code": "OK", "reason": None, "error_id": None, "queue_us": 10, "compute_us": 200,
        "batch_size": 4, "device": "cpu:0", "input_shape": [1, 2, 2, 1], "output_shape": [1, 2, 2, 3], "items": 1,
        "items_refused": 0, "received_bytes": 100, "sent_bytes": 200,
    }  # fmt: skip


def test_a_failure_has_the_same_keys(level):
    level("INFO")
    good, bad = (json.loads(line) for line in written("json", convolved(), failed()))
    assert list(good) == list(bad)
    assert (bad["code"], bad["reason"], bad["error_id"]) == ("INTERNAL", "INTERNAL", "abc123")
    assert bad["queue_us"] is bad["input_shape"] is None


def test_a_failure_in_words_has_its_ids(level):
    level("INFO")
    (line,) = written("text", failed())
    assert f"{CONVOLVE} INTERNAL (INTERNAL), from ipv4:10.0.0.1, duration" in line
    assert line.endswith("request_id id-8, error_id abc123")


def test_no_secret_is_written(form, level):
    level("DEBUG")
    assert PRIVATE.split()[1] not in "".join(written(form, convolved(), convolved("grpc.health.v1.Health/Check")))


def test_checks_of_the_health_are_for_debugging(form, level):
    check = convolved("grpc.health.v1.Health/Check")
    level("INFO")
    assert written(form, check) == []
    level("DEBUG")
    assert len(written(form, check)) == 1


def test_nothing_is_written_above_the_level(form, level):
    level("WARNING")
    assert written(form, convolved()) == []


def test_a_line_is_one_line(form, level):
    level("INFO")
    call = CallRecord("unknown", ascii("/a\nb\x1b"))
    call.end("UNIMPLEMENTED")
    (line,) = written(form, call)
    assert line.isprintable()


def test_lines_that_nobody_reads_are_left_out(form, level, monkeypatch):
    monkeypatch.setattr(request_log, "_MAX_WAITING", 5)
    level("INFO")
    handler = Lines(form)
    handler.go.clear()
    log = RequestLog(handler, as_fields=form == "json")
    call = convolved()
    for _ in range(1000):
        log.ended(call)
    handler.go.set()
    log.close()
    assert 5 <= len(handler.lines) <= 10


def test_a_traceback_is_in_the_json(level):
    level("INFO")
    record = logging.makeLogRecord({"levelname": "ERROR", "msg": "failed", "request_id": "id-9"})
    try:
        raise ValueError("why")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    found = json.loads(formatter("json").format(record))
    assert (found["message"], found["request_id"]) == ("failed", "id-9")
    assert found["exc_info"].endswith("ValueError: why")
