"""What messages leave in a process: calls of about the same size touch no fresh pages, each of which is dear."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.servers.server_process import RunningServer

PROGRAM = """
import resource, sys
import numpy as np, convserve

x = np.ones((1, 450, 450, 1), "f4")
with convserve.Client(sys.argv[1], shared_memory=False) as client:
    for calls in (10, 20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(calls):
            client.conv2d(x, 1, 1, kernel_initializer="ones")
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls)
"""
PAGES = 450 * 450 * 4 / os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="the C library is not glibc")
def test_calls_reuse_freed_memory_unless_the_environment_says_otherwise(server: RunningServer) -> None:
    def faults(**settings: str) -> float:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", PROGRAM, server.target]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | settings)
        return float(answer.stdout)

    assert faults() < PAGES / 4
    assert faults(MALLOC_TRIM_THRESHOLD_=str(2**17)) > PAGES
