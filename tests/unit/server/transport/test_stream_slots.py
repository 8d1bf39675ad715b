"""Slots of streams, and of calls without a message: callers share them, and get back what they let go of."""

import itertools
from contextlib import ExitStack
from unittest.mock import Mock

import pytest

from convserve import OverloadedError
from convserve_server.auth.identity import Identity, anyone
from convserve_server.transport.idle_timeouts import Wait
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots

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
    assert not slots._slots.own


def test_callers_that_cannot_be_told_apart_share_all_of_them():
    with ExitStack() as stack:
        assert taken(StreamSlots(8), anyone("unix:"), stack) == 8


def waits(slots, identity, number):
    """Takes slots for waits of a caller; returns the waits, each with the number of times that it was aborted."""
    found = []
    for _ in range(number):
        found.append(Wait(Mock()))
        slots.take(identity, found[-1])
    return found


def ended(waits):
    return [wait.abort.call_count for wait in waits]


def test_who_has_most_calls_without_a_message_loses_the_oldest_to_others():
    slots = ReceivingSlots(4)
    of_alice = waits(slots, ALICE, 4)
    assert ended(of_alice) == [0, 0, 0, 0]
    with pytest.raises(OverloadedError, match="while 4 of 4 that are waited for are yours"):
        waits(slots, ALICE, 1)
    of_bob = waits(slots, BOB, 2)
    assert (ended(of_alice), ended(of_bob)) == ([1, 1, 0, 0], [0, 0])
    with pytest.raises(OverloadedError):
        waits(slots, BOB, 1)
    for wait in (*of_alice, *of_bob):  # those that lost theirs too
        slots.give(ALICE if wait in of_alice else BOB, wait)
    assert ended(waits(slots, BOB, 4)) == [0, 0, 0, 0]


def test_calls_without_a_message_from_any_number_of_callers_keep_nobody_out():
    now = itertools.count()
    slots = ReceivingSlots(4, lambda: next(now))
    strangers = [waits(slots, Identity(f"stranger {number}", frozenset()), 1)[0] for number in range(100)]
    of_alice = waits(slots, ALICE, 1)
    assert ended(strangers) == [1] * 97 + [0] * 3
    assert ended(of_alice) == [0]


def test_an_only_call_has_time_to_send_its_message():
    now = [0.0]
    slots = ReceivingSlots(2, lambda: now[0])
    honest = [waits(slots, Identity(f"honest {number}", frozenset()), 1)[0] for number in range(2)]
    now[0] = 1.0
    with pytest.raises(OverloadedError, match="those of 2 others are on their way"):
        waits(slots, ALICE, 1)
    now[0] = 3.0
    waits(slots, ALICE, 1)
    assert ended(honest) == [1, 0]


def test_callers_that_cannot_be_told_apart_lose_the_oldest_to_each_other():
    slots = ReceivingSlots(2)
    assert ended(waits(slots, anyone("unix:"), 5)) == [1, 1, 1, 0, 0]
