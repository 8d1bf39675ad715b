"""Some inputs are read and decoded, in threads, while others are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")

_READERS = 4  # how many are read at once at most, or wait to be taken
_AHEAD_BYTES = 16 * 2**20  # of files that are read ahead together; a larger file is read by itself


def read_ahead(tasks: Iterable[tuple[int, Callable[[], Made]]]) -> Iterator[Future[Made]]:
    """Runs tasks, given with the bytes that they read, a little ahead of who takes their results in order."""
    ahead: deque[tuple[int, Future[Made]]] = deque()
    with ThreadPoolExecutor(_READERS, "convserve-read") as pool:
        for size, task in tasks:
            while ahead and (len(ahead) >= _READERS or sum(held for held, _ in ahead) + size > _AHEAD_BYTES):
                yield ahead.popleft()[1]
            ahead.append((size, pool.submit(task)))
        while ahead:
            yield ahead.popleft()[1]
