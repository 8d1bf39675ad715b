"""Memory that was freed and is kept: what is allocated next touches no fresh pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from convserve_server.memory.malloc import configure_malloc

if sys.argv[1] == "kept":
    assert configure_malloc(2**28)

def pieces():
    return [b"x" * size for size in (20_000_000, 19_000_000, 21_000_000, 18_000_000)]

pieces()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    pieces()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="the C library is not glibc")
def test_what_was_freed_is_taken_again() -> None:
    def faults(how: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=environment
        )
        return int(answer.stdout)

    pages = 10 * 78_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert faults("given back") > pages // 2
    assert faults("kept") < pages // 50
