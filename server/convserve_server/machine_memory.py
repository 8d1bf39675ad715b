"""How much memory this process may take: the machine's, or less where a container or a limit of the process says so."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 2, version 1


def machine_memory_bytes() -> int:
    """Returns the bytes."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_FILES:
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            found.append(int(Path(name).read_text()))
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min(*found, *(each for each in limits if each != resource.RLIM_INFINITY))
