"""How many files this process may have open, and what the numbers are kept for.

Without a free descriptor TensorFlow ends the process, and the store cannot write. So some are reserved, and callers can
take the others at most.
"""

from __future__ import annotations

import logging
import os
import resource
from contextlib import suppress
from typing import NamedTuple

log = logging.getLogger("convserve")

_RESERVED = 256  # for the engine, the store's files, logs, spans and scrapes
_OPEN = "/dev/fd"


class Descriptors(NamedTuple):
    """Descriptors that callers may take."""

    connections: int  # of gRPC
    memory_connections: int  # over which clients hand over memory
    memory_files: int  # of the Open Inference Protocol's regions


def open_descriptors() -> list[int]:
    """Returns the descriptors that are open now, with the one that it takes to look."""
    return [int(name) for name in os.listdir(_OPEN)]


def descriptors_for(wanted: Descriptors) -> Descriptors:
    """Raises the soft limit of open files as far as it takes and the hard one allows; returns what callers may take.

    That is less than wanted, each by the same ratio, if the limit does not allow it.
    """
    others = len(open_descriptors())
    needed = others + _RESERVED + sum(wanted)
    limit = _raised_limit(needed)
    left = max(0, limit - others - min(_RESERVED, limit // 4))
    if left >= sum(wanted):
        return wanted
    given = Descriptors(*(min(count, max(1, count * left // sum(wanted))) for count in wanted))
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in given._asdict().items() if count)
    log.warning(
        "at most %s, because this process may have %d files open: raise that (ulimit -n) to %d", words, limit, needed
    )
    return given


def _raised_limit(needed: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return needed if soft == resource.RLIM_INFINITY else soft
    with suppress(OSError, ValueError):  # a system that bounds it otherwise
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft
