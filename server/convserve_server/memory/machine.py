"""What this process may take of the machine: memory and processors, less under a limit of its container or its own."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from convserve.files.cgroups import cgroup_files

_USED = Path("/proc/self/statm")


def machine_memory_bytes() -> int:
    """Returns the bytes; of limits of its own what they leave it now, else what all of it may take."""
    return min([_physical_bytes(), *_container_limits(), *_left_by_own_limits()])


def container_memory_bytes() -> int | None:
    """Returns what the container may take, or None where nothing says so, or as much as the machine has."""
    limit = min([_physical_bytes(), *_container_limits()])
    return limit if limit < _physical_bytes() else None


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_limits() -> Iterator[int]:
    for file in cgroup_files("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            yield int(file.read_text())


def is_limited() -> bool:
    """Returns whether the process has limits of its own: under those, an allocation that fails may end it.

    What is mapped counts for them, also if it is never touched: stacks of threads, and buffers that are larger than
    what TensorFlow writes to them.
    """
    return any(_left_by_own_limits())


def _left_by_own_limits() -> list[int]:
    """Returns what the limits of the address space (ulimit -v) and of data (ulimit -d) leave, where there are any."""
    pages = _USED.read_text().split() if _USED.exists() else ["0"] * 7
    left = []
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(max(1, limit - int(used) * resource.getpagesize()))
    return left


def machine_processors() -> int:
    """Returns how many processors' time there is, rounded up: a container's quota counts as fewer of them."""
    counts = [float(len(os.sched_getaffinity(0)))]
    for file in cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            quota_us, _, period_us = file.read_text().partition(" ")  # of cgroups v2 both, of v1 the first
            period_us = period_us or file.with_name("cpu.cfs_period_us").read_text()
            if int(quota_us) > 0:  # -1 is for none
                counts.append(int(quota_us) / int(period_us))
    return max(1, math.ceil(min(counts)))
