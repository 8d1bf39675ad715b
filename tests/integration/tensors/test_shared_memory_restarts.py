"""Shared memory over the lives of processes: clients and servers that are killed, forked, and started again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.processes import descriptors, ended_with_the_test, shared_maps
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.tensor_paths import Taken
from tests.support.waiting import eventually

DOUBLE = Layer(
    Conv2D(1, 1, use_bias=False, data_format="channels_last"),
    np.full((1, 1, 1, 1), 2.0),
)
SHAPE = (2, 600, 600, 1)  # 2.9 MB, an output that stays where it is


HOLDER = """
import sys, numpy as np
from convserve import Client, Conv2D
client = Client(sys.argv[1])
x = client.empty((2, 600, 600, 1))
x[:] = 1
held = [client.conv2d(x, kernel=np.ones((1, 1, 1, 1), "f4"), data_format="channels_last") for _ in range(3)]
"""


def holding(server: RunningServer, more: str) -> subprocess.Popen[str]:
    """Starts a process that holds shared memory, then prints a line, and goes on as the rest of its program says."""
    program = f"{HOLDER}\nprint('ready', flush=True)\n{more}"
    command = [sys.executable, "-c", program, server.target]
    process = ended_with_the_test(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_client_that_is_killed_leaves_nothing(sharing_server: RunningServer) -> None:
    server = sharing_server.process.pid
    before = descriptors(server)
    with holding(sharing_server, "input()") as process:
        shared = shared_maps(process.pid)
        assert len(shared & shared_maps(server)) == 4
        process.kill()
    eventually(lambda: not shared & shared_maps(server))
    eventually(lambda: descriptors(server) <= before)


FORKING = """
import os
expected = held[0].copy()
to_child, from_parent = os.pipe()
child = os.fork()
if not child:
    good = all((each == 1).all() for each in held)
    held[0][:] = 5
    os.read(to_child, 1)  # the parent has dropped its results and made other calls
    good = good and (held[0] == 5).all() and all((each == 1).all() for each in held[1:])
    os._exit(0 if good else 1)
held[1][:] = 7
del held[2]
assert (held[0] == 1).all() and (held[1] == 7).all()
del held[:]
x[:] = 3
for _ in range(6):
    held.append(client.conv2d(x, kernel=np.ones((1, 1, 1, 1), "f4"), data_format="channels_last"))
    assert (held[-1] == 3).all()
os.write(from_parent, b"x")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all((each == 3).all() for each in held)
"""


def test_results_stay_what_they_are_on_both_sides_of_a_fork(sharing_server: RunningServer) -> None:
    with holding(sharing_server, FORKING) as process:
        assert process.wait(timeout=60) == 0


def test_a_fork_does_not_keep_what_its_parent_shared(sharing_server: RunningServer) -> None:
    forked = "import os, sys\nif not os.fork():\n    sys.stdin.read()\n    os._exit(0)\ninput()"
    with holding(sharing_server, forked) as process:
        shared = shared_maps(process.pid)
        assert len(shared & shared_maps(sharing_server.process.pid)) == 4
        process.kill()
        eventually(lambda: not shared & shared_maps(sharing_server.process.pid))


def test_a_fork_calls_with_memory_of_its_own(sharing_server: RunningServer) -> None:
    calls = """
import os
child = os.fork()
x[:] = 4
again = client.conv2d(x * (1 if child else 2), kernel=np.ones((1, 1, 1, 1), "f4"), data_format="channels_last")
good = (again == (4 if child else 8)).all() and all((each == 1).all() for each in held)
if not child:
    client.close()
    os._exit(0 if good else 1)
assert good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (client.conv2d(x, kernel=np.ones((1, 1, 1, 1), "f4"), data_format="channels_last") == 4).all()
"""
    with holding(sharing_server, calls) as process:
        assert process.wait(timeout=60) == 0


IMAGE = np.random.default_rng(0).integers(-99, 99, SHAPE).astype("f4")


def files() -> set[str]:
    """Returns what of ours is where shared memory with names would be; other programs and tests use the folder too."""
    found = {path.name for path in Path("/dev/shm").iterdir() if "convserve" in path.name}  # noqa: S108
    return {name for name in found if not name.startswith("convserve-test-")}


def test_a_client_goes_on_with_a_server_that_was_killed_and_came_back(taken: Taken, tmp_path: Path) -> None:
    before, options = files(), ("--shared-memory", "--listen", f"unix://{tmp_path}/socket")
    with numpy_server(*options) as first, convserve.Client(first.target) as client:
        x = client.empty(SHAPE)
        x[:] = IMAGE
        held = client.convolve(DOUBLE, x).output
        first.process.kill()
        first.process.wait()
        assert files() <= before
        with pytest.raises((convserve.UnavailableError, convserve.DeadlineExceededError)):
            client.convolve(DOUBLE, x, timeout=1)
        np.testing.assert_array_equal(held, 2 * IMAGE)
        with numpy_server(*options):
            np.testing.assert_array_equal(client.convolve(DOUBLE, x).output, 2 * IMAGE)
            y = client.empty(SHAPE)
            y[:] = x
            np.testing.assert_array_equal(client.convolve(DOUBLE, y).output, 2 * IMAGE)
            assert taken.copied_inputs == [False, True, False]
            assert taken.kept_outputs == [True] * 3
            assert files() <= before
