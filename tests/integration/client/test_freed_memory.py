"""What messages leave in a process: calls of about the same size touch no fresh pages, each of which is dear."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.servers.server_process import RunningServer

PROGRAM = """
import resource, statistics, sys
import numpy as np, convserve

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = np.ones((1, 450, 450, 1), "f4")
with convserve.Client(sys.argv[1], shared_memory=False) as client:
    counts = []
    for _ in range(31):
        before = faults()
        client.conv2d(x, 1, 1, kernel_initializer="ones")
        counts.append(faults() - before)
# Of most calls: on a busy machine a thread may hold a message a little longer, and the next call takes another place.
print(statistics.median(counts[10:]))
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
