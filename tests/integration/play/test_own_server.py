"""The server that `convserve play` starts ends with it, also where nobody had time to stop it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLED = """
import os, signal
from convserve.play.own_server import OwnServer
server = OwnServer()
if {is_ready}:
    server.address()
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("is_ready", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_page_that_is_killed_takes_its_server_along(is_ready):
    pytest.importorskip("tensorflow")
    program = KILLED.format(is_ready=is_ready)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
