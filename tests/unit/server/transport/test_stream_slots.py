"""Slots of streams: callers share them, and get back what they let go of."""

from contextlib import ExitStack

import pytest

from convserve import OverloadedError
from convserve_server.auth.identity import Identity, anyone
from convserve_server.transport.stream_slots import StreamSlots

ALICE, BOB = (Identity(name, frozenset()) for name in ("alice", "bob"))


def taken(slots, identity, stack):
    """Takes slots until there are no more for a caller; returns their number."""
    for number in range(100):
        try:
            stack.enter_context(slots.acquire(identity))
        except OverloadedError:
            return number
    raise AssertionError


def test_half_of_what_is_left_is_always_for_others():
    slots = StreamSlots(8)
    with ExitStack() as stack:
        assert [taken(slots, identity, stack) for identity in (ALICE, BOB, ALICE)] == [4, 2, 0]
        with pytest.raises(OverloadedError, match="while 6 of 8 are open, 4 of them yours"), slots.acquire(ALICE):
            pass
    with ExitStack() as stack:
        assert taken(slots, BOB, stack) == 4
    assert not slots._taken


def test_callers_that_cannot_be_told_apart_share_all_of_them():
    with ExitStack() as stack:
        assert taken(StreamSlots(8), anyone("unix:"), stack) == 8
