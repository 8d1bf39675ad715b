"""Where lines of the log go: to stderr in one form, whoever logs them and whenever."""

import json
import subprocess
import sys

PROGRAM = """
import logging
from convserve_server.observability.logs import held_stderr, start_logging
start_logging("info", "json")
with held_stderr():
    logging.getLogger("convserve").warning("while TensorFlow starts")
logging.getLogger("grpc._server").error("of gRPC")
logging.getLogger("opentelemetry.sdk").warning("of OpenTelemetry")
"""


def test_every_line_is_an_object():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert lines == ["while TensorFlow starts", "of gRPC", "of OpenTelemetry"]
