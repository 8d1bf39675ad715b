"""What stores ask of a bucket, so that something happens between two requests, or nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

OPERATIONS = ("get", "put", "list", "head", "copy", "delete")


class BucketRequests:
    """Stands between all stores and obstore.

    Attributes:
        is_away: Whether nobody answers.
        asked: The operations that were asked for.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_away = False
        self.asked: list[str] = []
        self._before: tuple[int, Callable[[], Any]] | None = None
        self._is_acting = False
        self._lock = threading.Lock()
        for name in OPERATIONS:
            patch.setattr(obstore, name, self._standing_before(name, getattr(obstore, name)))

    def before(self, number: int, act: Callable[[], Any]) -> None:
        """Does something before a request, counted from now and from 0 on; what it asks for itself is not counted."""
        self.asked.clear()
        self._before = number, act

    def _standing_before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any, **options: Any) -> Any:
            act = None
            with self._lock:
                if not self._is_acting:
                    if self._before and len(self.asked) == self._before[0]:
                        (_, act), self._before = self._before, None
                        self._is_acting = True
                    self.asked.append(name)
            if act:
                try:
                    act()
                finally:
                    self._is_acting = False
            if self.is_away:
                raise GenericError("nobody is there: http://storage/x?secret=1")
            return function(*arguments, **options)

        return asked
