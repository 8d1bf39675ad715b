"""Memory that is set aside before it is used, so that what comes at once does not take more than there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import OverloadedError

_RETRY_AFTER_S = 1.0


class UploadBudget:
    """A number of bytes that calls share. Its methods may be called from any thread."""

    def __init__(self, total: int) -> None:
        """Starts with all bytes free."""
        self._total = total
        self._lock = threading.Lock()
        self._taken = 0

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Sets so many bytes aside for the block. What is larger than all of them is let in alone.

        Raises:
            OverloadedError: If others have them for the time being.
        """
        with self._lock:
            if self._taken and self._taken + size > self._total:
                text = (
                    f"Expected {size} bytes of memory for a layer on its way. Received none: layers that others put, "
                    f"draw or update take {self._taken} of {self._total} bytes. Retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_AFTER_S)
            self._taken += size
        try:
            yield
        finally:
            with self._lock:
                self._taken -= size
