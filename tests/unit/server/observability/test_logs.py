"""Where lines of the log go: to stderr in one form, whoever writes them and whenever, however the process ends."""

import json
import signal
import subprocess
import sys

import pytest

from convserve_server.observability.stderr_lines import as_object

PROGRAM = """
import logging, os, sys, warnings
from convserve_server.observability.logs import held_stderr, start_logging, write_json_lines
write_json_lines()
print("error: before the log", file=sys.stderr)
start_logging("info", "json")
with held_stderr():
    logging.getLogger("convserve").warning("while TensorFlow starts")
    os.write(2, b"held\\n")
logging.getLogger("grpc._server").error("of gRPC")
logging.getLogger("opentelemetry.sdk").warning("of OpenTelemetry")
warnings.warn("of Python")
os.write(2, b"I1130 07:02:20.451042 6808 ssl.cc:2563] of gRPC's core\\n\\nE0000 of TensorFlow, \\xff\\n")
"""
HELD = """
import os, signal
from convserve_server.observability.logs import held_stderr{json}
with held_stderr(may_end_here=True):
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"I0000 00:00:1 port.cc:153] oneDNN custom operations are on.\\n")
    os.write(2, b"F0000 this TensorFlow was compiled to use AVX instructions\\n")
    {end}
"""
JSON = ", write_json_lines\nwrite_json_lines()"
ENDS = {"os.abort()": -signal.SIGABRT, "os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL, "os._exit(3)": 3}


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def objects(done):
    """Returns what a program wrote to stderr: the level and the message of each line."""
    read = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= set(each) for each in read)
    return {(each["level"], each["message"]) for each in read}


def test_every_line_is_an_object():
    done = run(PROGRAM)
    assert done.returncode == 0
    warning = next(message for _, message in objects(done) if "of Python" in message)
    assert objects(done) == {
        ("ERROR", "error: before the log"),
        ("WARNING", "while TensorFlow starts"),
        ("ERROR", "of gRPC"),
        ("WARNING", "of OpenTelemetry"),
        ("WARNING", warning),
        ("INFO", "I1130 07:02:20.451042 6808 ssl.cc:2563] of gRPC's core"),
        ("ERROR", "E0000 of TensorFlow, \\xff"),
    }


def test_a_traceback_is_an_object_too():
    done = run(f"{PROGRAM}\nraise RuntimeError('a defect')")
    assert done.returncode == 1
    assert ("CRITICAL", "ended by an error") in objects(done)
    assert "RuntimeError: a defect" in next(line for line in done.stderr.splitlines() if "CRITICAL" in line)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("json", ["", JSON], ids=["text", "json"])
def test_what_was_held_is_shown_however_the_process_ends(end, json):
    done = run(HELD.format(json=json, end=end))
    assert done.returncode == ENDS[end]
    assert "compiled to use AVX" in done.stderr
    assert "oneDNN" not in done.stderr
    if json:
        assert ("CRITICAL", "F0000 this TensorFlow was compiled to use AVX instructions") in objects(done)


def test_what_was_held_is_dropped_where_all_goes_well_and_shown_where_it_fails():
    assert run(HELD.format(json="", end="")).stderr == ""
    done = run(HELD.format(json="", end="raise RuntimeError('no device')"))
    assert done.stderr.startswith("F0000 this")
    assert "no device" in done.stderr


def test_a_containers_first_process_holds_nothing_back():
    program = HELD.format(json="", end="os.abort()").replace("\nwith", "\nos.getpid = lambda: 1\nwith")
    done = run(program)
    assert (done.returncode, done.stderr.splitlines()[2][:10]) == (-signal.SIGABRT, "F0000 this")
    assert "F0000 this" in run(program.replace("os.abort()", "")).stderr  # at once, so it is not lost


def test_a_line_that_is_an_object_stays_one():
    assert json.loads(as_object('{"a": 1}')) == {"a": 1}
    assert json.loads(as_object("{no object}"))["message"] == "{no object}"
