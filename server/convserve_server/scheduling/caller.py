"""Whoever waits for an answer, as the request path sees it: without a word of the transport."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Caller(NamedTuple):
    """One call's caller. The defaults are of one that waits in this process for as long as it takes."""

    name: str = ""  # what the calls of one caller have in common, between which and others' the server is fair
    is_identified: bool = True  # whether the name is one caller's; False where several cannot be told apart
    is_active: Callable[[], bool] = lambda: True  # whether it still waits for the answer
    remaining_s: Callable[[], float] = lambda: math.inf  # until it will not wait any more
    # Has a function called once the caller has its whole answer or does not wait for one any more. Returns False, and
    # calls nothing, where that is so already, or nobody would notice.
    add_done_callback: Callable[[Callable[[], None]], bool] = lambda _: False
    cancel: Callable[[], object] | None = None  # ends the call, if it has a single answer


ANYBODY = Caller()
