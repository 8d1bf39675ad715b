"""The log of a real server: a line per request with --log-requests, every line an object with --log-format json."""

import json
import os
import subprocess
import sys

import grpc
import numpy as np
import pytest

from convserve import Client
from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from tests.support.raw.calls import convolve_request, raw_caller
from tests.support.raw.streams import answers, image, item, opening, start
from tests.support.servers.server_process import numpy_server

CONVOLVE, STREAM, INFO = (
    f"convserve.v1.ConvolutionService/{name}" for name in ("Convolve", "ConvolveStream", "GetServerInfo")
)


def lines_of(calls, *arguments):
    """Returns what a server logs while it is called, once it has ended."""
    with numpy_server(*arguments) as running:
        with raw_caller(running.target) as caller:
            calls(caller)
        assert running.stop() == 0
        return running.log_lines


def make_calls(caller):
    caller.stub.Convolve(
        convolve_request(), timeout=60, metadata=[("x-request-id", "first"), ("authorization", "s3cr3t")]
    )
    with pytest.raises(grpc.RpcError):
        caller.stub.Convolve(convolve_request(output_dtype=99), timeout=60)
    messages = [start(), *item(0, image(0)), *item(1, image(1, 2, 3, 4, 1)), opening(2, 1, 2, 2, 5)]
    assert len(answers(caller.stub.ConvolveStream(iter(messages), timeout=60))) == 3
    caller.check_service()  # of its two calls the health check is not logged


def test_json():
    found = [json.loads(line) for line in lines_of(make_calls, "--log-requests", "--log-format", "json")]
    assert [(each["message"], each["level"]) for each in found] == [("request", "INFO")] * 4
    by_code = {(each["method"], each["code"], each["items"]): each for each in found}
    assert sorted(by_code) == [(CONVOLVE, "INVALID_ARGUMENT", 0), (CONVOLVE, "OK", 1), (STREAM, "OK", 2)]
    assert len({frozenset(each) for each in found}) == 1
    assert len({each["request_id"] for each in found}) == 4
    (first,) = (each for each in found if each["request_id"] == "first")
    assert first["caller"].startswith("ipv4:127.0.0.1")
    assert (first["input_shape"], first["output_shape"]) == ([1, 2, 2, 1], [1, 2, 2, 1])
    assert (first["batch_size"], first["device"], first["reason"], first["error_id"]) == (1, "cpu:0", None, None)
    assert first["duration_us"] >= first["queue_us"] + first["compute_us"] > 0
    assert first["received_bytes"] == convolve_request().ByteSize()
    assert by_code[CONVOLVE, "INVALID_ARGUMENT", 0]["reason"] == "INVALID_TENSOR"
    stream = by_code[STREAM, "OK", 2]
    assert (stream["items_refused"], stream["batch_size"], stream["reason"]) == (1, 2, None)
    assert "s3cr3t" not in json.dumps(found)


def test_by_itself_nothing_is_logged_of_requests_and_answers_have_ids():
    def calls(caller):
        make_calls(caller)
        request, call = GetServerInfoRequest(), caller.stub.GetServerInfo
        ids = [dict(call.with_call(request, timeout=60)[1].trailing_metadata())["x-request-id"] for _ in range(2)]
        assert len(set(ids)) == 2

    assert lines_of(calls) == []


def test_what_else_is_logged_or_printed_is_json_too():
    with numpy_server("--listen", "0.0.0.0:0", "--log-format", "json") as running:
        with Client(running.target.replace("0.0.0.0", "127.0.0.1")) as client:  # noqa: S104
            assert client.conv2d(np.ones((1, 2, 2, 1)), 1, 1, seed=0).shape == (1, 2, 2, 1)
        assert running.stop() == 0
        shown, warning = map(json.loads, running.log.read_text().splitlines())
        printed = [json.loads(line)["message"] for line in running.process.stdout]
    assert set(warning) == {"time", "level", "message"}
    assert (warning["level"], "is open to the network" in warning["message"]) == ("WARNING", True)
    assert (shown["message"], shown["settings"]["listen"]) == ("settings", ["0.0.0.0:0"])
    assert printed == ["stopping: finishing the calls in flight", "stopped"]


def test_what_ends_the_start_is_json_too(tmp_path):
    program = [sys.executable, "-m", "convserve", "serve", "--listen", "127.0.0.1:0", "--drain-s", "soon"]
    for arguments, variables in ((("--log-format", "json"), {}), ((), {"CONVSERVE_LOG_FORMAT": "json"})):
        environment = {**os.environ, **variables}
        done = subprocess.run(
            [*program, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        (line,) = map(json.loads, done.stderr.splitlines())
        assert (done.returncode, line["level"]) == (2, "ERROR")
        assert line["message"].startswith("error: --drain-s")


def test_refused_calls_are_logged_with_the_name_of_the_token(tmp_path):
    tokens = {name: f"s3cret-{name}-0123456789" for name in ("reader", "computer", "stranger")}
    (tmp_path / "tokens.txt").write_text(f"reader {tokens['reader']} read\ncomputer {tokens['computer']} compute\n")

    def calls(caller):
        for name, code in (("reader", "PERMISSION_DENIED"), ("computer", "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as caught:
                caller.stub.Convolve(convolve_request(output_dtype=99), timeout=60, metadata=shown(name))
            assert caught.value.code().name == code
        messages = iter([start(), *item(0, image(0))])
        for stub, request in ((caller.stub.ConvolveStream, messages), (caller.stub.Convolve, convolve_request())):
            with pytest.raises(grpc.RpcError):
                tuple(stub(request, timeout=60, metadata=shown("reader")))
        with pytest.raises(grpc.RpcError):
            caller.stub.Convolve(convolve_request(), timeout=60, metadata=shown("stranger"))

    def shown(name):
        return [("authorization", f"Bearer {tokens[name]}")]

    arguments = ("--tokens-file", str(tmp_path / "tokens.txt"), "--log-requests", "--log-format", "json")
    found = [json.loads(line) for line in lines_of(calls, *arguments)]
    callers = [(each["caller"], each["code"]) for each in found if each["message"] == "request"]
    (stranger,) = (pair for pair in callers if pair[1] == "UNAUTHENTICATED")
    assert stranger[0].startswith("ipv4:127.0.0.1")
    callers.remove(stranger)
    assert sorted(callers) == [("token:computer", "INVALID_ARGUMENT"), *[("token:reader", "PERMISSION_DENIED")] * 3]
    assert "s3cret" not in json.dumps(found)
