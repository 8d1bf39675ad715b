"""The fair line: callers take turns, and each one's entries come in their order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from convserve_server.scheduling.fair_queue import FairQueue


def line_of(*entries: tuple[str, int]) -> FairQueue[int]:
    line: FairQueue[int] = FairQueue()
    for caller, entry in entries:
        line.append(caller, entry)
    return line


def drained(line: FairQueue[int]) -> list[int]:
    return list(iter(line.pop, None))


def test_callers_take_turns_however_many_entries_one_has() -> None:
    line = line_of(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6))
    assert line.first() == 1
    assert drained(line) == [1, 4, 5, 2, 6, 3]
    assert (len(line), line.first()) == (0, None)


def test_who_comes_again_waits_behind_the_others() -> None:
    line = line_of(("a", 1), ("b", 2), ("c", 3))
    assert line.pop() == 1
    line.append("a", 4)
    assert drained(line) == [2, 3, 4]


def test_an_entry_that_leaves_changes_nobodys_turn() -> None:
    line = line_of(("a", 1), ("a", 2), ("b", 3), ("b", 4))
    assert line.discard("a", 1)
    assert not line.discard("a", 1)
    assert not line.discard("b", 2)
    assert drained(line) == [2, 3, 4]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_everything_comes_out_once_and_no_caller_waits_for_more_than_one_of_each_other(
    steps: list[tuple[str, bool]],
) -> None:
    line: FairQueue[tuple[str, int]] = FairQueue()
    numbers, waiting = itertools.count(), []
    since: dict[str, list[str]] = {}  # who was taken while a caller waited and was not
    for caller, takes in steps:
        entry = (caller, next(numbers))
        waiting.append(entry)
        line.append(caller, entry)
        since.setdefault(caller, [])
        if takes:
            taken = line.pop()
            assert taken == min((each for each in waiting if each[0] == taken[0]), key=lambda each: each[1])
            waiting.remove(taken)
            del since[taken[0]]
            for other in {each[0] for each in waiting}:
                since.setdefault(other, [])
                if other != taken[0]:
                    since[other].append(taken[0])
                    assert len(since[other]) == len(set(since[other]))
    assert len(line) == len(waiting)
