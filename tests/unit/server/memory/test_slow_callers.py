"""Which calls of slow callers are ended for one that lacks memory: as few as help it, the latest first."""

from __future__ import annotations

import pytest

from convserve_server.memory.shares import Shares
from convserve_server.memory.slow_callers import PIECES, SlowCallers, Wait, end

SECOND = 1.0


class World:
    """A pool of 100 bytes, callers of some of them, and those of their calls that were ended, by name."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slow = SlowCallers(lambda: self.now)
        self.pool, self.reserve = Shares(100), Shares(10)

    def takes(self, name: str, size: int, pool: Shares | None = None, seconds: float = SECOND) -> None:
        """Gives a caller bytes, and begins its call's wait for it; the call is known by the caller's name."""
        pool = self.pool if pool is None else pool
        pool.take(name, size)
        self.slow.expect(name, name, size, pool, seconds, lambda: None)

    def lacks(self, size: int, caller: str = "", *pools: Shares) -> list[str]:
        """Returns whose calls are to be ended for a caller that lacks so many bytes."""

        def fits(pool: Shares) -> bool:
            return pool.fits(caller, size)

        return sorted(wait.caller for wait in self.slow.late_for(pools or (self.pool,), size, fits))


@pytest.fixture
def world() -> World:
    return World()


def test_as_few_are_ended_as_help_the_latest_first(world: World) -> None:
    for seconds, name in ((3, "c"), (1, "a"), (2, "b"), (9, "quick")):
        world.takes(name, 25, seconds=seconds)
    world.now = 5.0
    assert world.lacks(30) == ["a", "b"]


def test_none_is_ended_beside_one_that_makes_room_alone(world: World) -> None:
    for number in range(10):
        world.takes(f"small {number}", 1)
    world.takes("large", 90, seconds=2 * SECOND)
    world.now = 5.0
    assert world.lacks(85) == ["large"]
    assert len(world.slow._waits) == 10


def test_what_was_ended_and_still_has_its_bytes_counts_as_free(world: World) -> None:
    for name in ("a", "b", "c", "d"):
        world.takes(name, 25)
    world.now = 5.0
    assert world.lacks(20) == ["a"]
    assert world.lacks(20) == []
    assert world.lacks(40) == ["b"]
    world.slow.forget("a")  # it is over, and others have its bytes
    assert world.lacks(40) == ["c"]


def test_a_call_that_waits_again_is_not_ending_any_more(world: World) -> None:
    world.takes("a", 100)
    world.now = 5.0
    assert world.lacks(20) == ["a"]
    world.slow.expect("a", "a", 100, world.pool, SECOND, lambda: None)
    world.now = 9.0
    assert world.lacks(20) == ["a"]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [(60, 60), (0, 45)],
    ids=["its own calls leave too little", "what others compute leaves too little"],
)
def test_nobody_is_ended_in_vain(world: World, own: int, wanted: int) -> None:
    world.pool.take("greedy", own)
    world.pool.take("computing", 60 - own)
    world.takes("slow", 4)
    world.pool.take("computing", 0 if own else 30)
    world.now = 5.0
    assert world.lacks(wanted, "greedy") == []


def test_the_slow_calls_of_a_caller_are_ended_for_another_of_its_own(world: World) -> None:
    world.takes("a", 90)
    world.now = 5.0
    assert world.lacks(20, "a") == ["a"]  # of which nothing is left then that it has to share


def test_any_pool_that_the_call_may_have_bytes_of_will_do(world: World) -> None:
    world.pool.take("computing", 100)
    world.takes("slow", 10, world.reserve)
    world.now = 5.0
    assert world.lacks(2, "", world.pool, world.reserve) == ["slow"]
    assert world.lacks(2, "", world.pool, world.reserve) == []


def test_nobody_is_ended_for_bytes_that_are_left(world: World) -> None:
    world.takes("slow", 60)
    world.pool.take("b", 5)
    world.now = 5.0
    assert world.lacks(20, "b") == []  # it waits for its own call


def test_time_is_given_by_the_bytes_that_travel() -> None:
    assert PIECES.time_for(4_000_000) == PIECES.seconds + 2


def test_a_call_that_cannot_be_ended_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    def fail() -> None:
        raise KeyError

    end(Wait("a", 1, Shares(1), 0.0, act) for act in (fail, lambda: ended.append("a")))
    assert ended == ["a"]
    assert "cannot be ended" in caplog.text
