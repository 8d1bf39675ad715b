"""Has the C library keep memory that was freed, which else goes back to the system page by page, and comes anew."""

from __future__ import annotations

import ctypes

# glibc's numbers of what can be set, in malloc.h; and the largest piece that it keeps at all.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAX_PIECE_BYTES = 2**25


def configure_malloc(most_bytes: int) -> bool:
    """Has messages of up to 32 MiB, which are kept in memory of the C library's, take what others left.

    For what moves tens of megabytes that saves a tenth of the time.

    Args:
        most_bytes: The most that is kept free at the end of a heap.

    Returns:
        Whether the C library can be told so: glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(what, value)
        for what, value in ((_MMAP_THRESHOLD, _MAX_PIECE_BYTES), (_TRIM_THRESHOLD, min(most_bytes, 2**31 - 1)))
    )
