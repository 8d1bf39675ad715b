"""Memory that tensors leave, which the C library by default returns to the system, to get it again page by page."""

from __future__ import annotations

import numpy as np

_REUSED_BYTES = 2**24


def reuse_freed_memory() -> None:
    """Has glibc reuse what messages of a few MB leave, instead of returning it: on virtual machines pages are dear.

    It does so by itself once a larger piece was freed, as after any array of 16 MiB, and keeps twice as much at the end
    of a heap. In an environment with settings of its own, such as MALLOC_TRIM_THRESHOLD_, these count.
    """
    np.empty(_REUSED_BYTES, np.uint8)  # it is never touched, and free at once
