"""The fair queue: callers take turns, and each one's entries come in their order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from convserve_server.scheduling.fair_queue import FairQueue


def queue_of(*entries: tuple[str, int]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for caller, entry in entries:
        queue.append(caller, entry)
    return queue


def drained(queue: FairQueue[int]) -> list[int]:
    return list(iter(queue.pop, None))


def test_callers_take_turns_however_many_entries_one_has() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6))
    assert queue.first() == 1
    assert drained(queue) == [1, 4, 5, 2, 6, 3]
    assert (len(queue), queue.first()) == (0, None)


def test_a_caller_that_had_its_turn_goes_behind_the_others() -> None:
    queue = queue_of(("a", 1), ("b", 2), ("c", 3))
    assert queue.pop() == 1
    queue.append("a", 4)
    assert drained(queue) == [2, 3, 4]


def test_a_discarded_entry_changes_nobodys_turn() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("b", 3), ("b", 4))
    assert queue.discard("a", 1)
    assert not queue.discard("a", 1)
    assert not queue.discard("b", 2)
    assert drained(queue) == [2, 3, 4]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_everything_comes_out_once_and_no_caller_waits_for_more_than_one_of_each_other(
    steps: list[tuple[str, bool]],
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    numbers, waiting = itertools.count(), []
    since: dict[str, list[str]] = {}  # who was taken while a caller waited and was not
    for caller, takes in steps:
        entry = (caller, next(numbers))
        waiting.append(entry)
        queue.append(caller, entry)
        since.setdefault(caller, [])
        if takes:
            taken = queue.pop()
            assert taken == min((entry for entry in waiting if entry[0] == taken[0]), key=lambda entry: entry[1])
            waiting.remove(taken)
            del since[taken[0]]
            for other in {entry[0] for entry in waiting}:
                since.setdefault(other, [])
                if other != taken[0]:
                    since[other].append(taken[0])
                    assert len(since[other]) == len(set(since[other]))
    assert len(queue) == len(waiting)
