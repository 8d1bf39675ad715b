"""Some inputs are read and decoded, in threads, while others are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")

READERS = 4
"""How many are read at once at most, or wait to be taken."""
AHEAD_BYTES = 16 * 2**20
"""The most bytes of files that are read ahead together; a larger file is read by itself."""


def read_ahead(tasks: Iterable[tuple[int, Callable[[], Made]]]) -> Iterator[Future[Made]]:
    """Runs tasks a little ahead of who takes their results, and yields them in order.

    Args:
        tasks: For each the bytes that it reads, and what to call.
    """
    ahead: deque[tuple[int, Future[Made]]] = deque()
    held = 0
    with ThreadPoolExecutor(READERS, "convserve-read") as pool:
        for size, task in tasks:
            while ahead and (len(ahead) >= READERS or held + size > AHEAD_BYTES):
                done, future = ahead.popleft()
                held -= done
                yield future
            ahead.append((size, pool.submit(task)))
            held += size
        while ahead:
            yield ahead.popleft()[1]
