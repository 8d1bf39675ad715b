"""Whoever waits for an answer, as the request path sees it: without a word of the transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Caller(NamedTuple):
    """One call's caller. The defaults are of one that waits in this process for as long as it takes.

    Attributes:
        name: What the calls of one caller have in common, between which and others' the server is fair.
        is_one: Whether the name is one caller's; False where several cannot be told apart.
        is_waiting: Whether it still waits for the answer.
        remaining_s: Seconds until it will not wait any more; None if it says nothing of that.
        when_gone: Has a function called once the caller has its whole answer or does not wait for one any more. It
            returns False, and calls nothing, where that is so already, or nobody would notice.
    """

    name: str = ""
    is_one: bool = True
    is_waiting: Callable[[], bool] = lambda: True
    remaining_s: Callable[[], float | None] = lambda: None
    when_gone: Callable[[Callable[[], None]], bool] = lambda _: False
