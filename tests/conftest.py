"""What all tests share: a real server, started once per test process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import convserve
from convserve._rpc import channel
from tests.support.processes import end_those_of_the_test
from tests.support.servers.server_process import RunningServer, running_server
from tests.support.tritonclient.process import KINDS, TritonClient, triton_client

# A developer's own server and token: clients would call it and show it, and servers ask for it.
os.environ.pop("CONVSERVE_TARGET", None)
os.environ.pop("CONVSERVE_TOKEN", None)
# TensorFlow's own kernels, whatever the CPU: some tests compare bits, and oneDNN's round by what is computed at once.
# All tests pass with TF_ENABLE_ONEDNN_OPTS=1, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Where hangups are ignored, as under nohup, programs that tests start would ignore them too, and some are to be hung
# up. What is handled in this process is not ignored by those.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# On a busy machine an example takes any time, and so does drawing one.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
# Hundreds of processes import our modules, which one of them compiles for all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Thousands of servers share seven thousand ports. gRPC would give a client the connection of another one to the same
# address: where that one was left open after its server went, and waits to try again, the new client's call would fail.
channel._OPTIONS.append(("grpc.use_local_subchannel_pool", 1))

_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Leaves no process of a test that failed to the next one."""
    end_those_of_the_test()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Notes how the tests ended."""
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process of tests that failed, for which threads of theirs may wait for ever."""
    status = config.stash.get(_STATUS, 0)
    if status and any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server on the CPU with default settings."""
    with running_server() as running:
        yield running
        assert running.process.poll() is None, f"the server died during the tests:\n{running.log.read_text()}"
        assert running.stop() == 0


@pytest.fixture
def client(server: RunningServer) -> Iterator[convserve.Client]:
    """A client of that server."""
    with convserve.Client(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def sharing_server() -> Iterator[RunningServer]:
    """A server that shares memory with callers on this machine."""
    with running_server("--shared-memory") as running:
        yield running
        assert running.process.poll() is None, f"the server died during the tests:\n{running.log.read_text()}"
        assert running.stop() == 0


@pytest.fixture(scope="session", params=KINDS)
def triton(request: pytest.FixtureRequest, sharing_server: RunningServer) -> Iterator[TritonClient]:
    """Triton's own client, blocking and awaited, of the server that shares memory."""
    with triton_client(request.param, sharing_server.target) as connected:
        yield connected
