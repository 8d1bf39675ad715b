"""How many large transfers go at once: as many as can finish, callers in turn, and none waits for one that is slow."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from convserve import DeadlineExceededError
from convserve_server.scheduling import transfers
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.transfers import Transfer, Transfers
from tests.support.waiting import eventually

MB = 10**6  # a second is 100 of them, until it is measured


class World:
    """Transfers, at a time that the test sets, of callers who wait for them in threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.now, self._pool = 0.0, pool
        self.transfers = Transfers(16 * MB, lambda: self.now)
        self.gone: set[str] = set()

    def caller(self, name: str, timeout: float) -> Caller:
        until = self.now + timeout
        return Caller(name, True, lambda: name not in self.gone, lambda: until - self.now)

    def transfer(self, name: str, timeout: float = math.inf, expected: int = 0) -> Transfer:
        return Transfer(self.transfers, self.caller(name, timeout), expected)

    def claim(self, transfer: Transfer, size: int) -> Future[None]:
        """Claims; returns once it goes, or waits."""
        claimed = self._pool.submit(transfer.claim, size)
        waits = lambda: any(transfer is each for each, _ in self.queued())  # noqa: E731
        eventually(lambda: claimed.done() or waits())
        return claimed

    def queued(self):
        with self.transfers.changed:
            return [entry for entries in self.transfers._queue._entries.values() for entry in entries]

    def move(self, transfer: Transfer, size: int, seconds: float) -> None:
        """Moves bytes evenly, in steps that are short for a caller who waits."""
        steps = max(1, round(seconds / 0.1))
        for _ in range(steps):
            self.now += seconds / steps
            transfer.moved(size // steps)


@pytest.fixture
def world():
    with ThreadPoolExecutor(16) as pool:
        made = World(pool)
        yield made
        made.gone.update("abcdefgh")


def goes(claimed: Future[None]) -> bool:
    claimed.result(30)
    return True


def test_small_ones_never_wait(world):
    goes(world.claim(world.transfer("a", 1), 10_000 * MB))
    small = world.transfer("b", 0.001)
    for _ in range(3):
        small.claim(16 * MB)
    world.transfer("b", 0.001, expected=16 * MB).claim(16 * MB)
    assert not world.queued()


def test_after_a_large_one_that_was_refused_small_ones_do_not_wait_either(world):
    goes(world.claim(world.transfer("z"), 10_000 * MB))
    stream = world.transfer("a")
    world.gone.add("a")
    with pytest.raises(DeadlineExceededError):
        stream.claim(100 * MB)
    stream.claim(16 * MB)
    assert not world.queued()


def test_one_that_ends_while_it_waits_is_not_left_among_those_that_go(world):
    running = world.transfer("a")
    assert goes(world.claim(running, 1000 * MB))
    ending = world.transfer("b", 1)
    claimed = world.claim(ending, 1000 * MB)
    with world.transfers.changed:  # as if another thread that waits looked before that of the one which ends
        running.ended()
        ending.ended()
        world.transfers._let_go()
    with pytest.raises(DeadlineExceededError):
        claimed.result(30)
    assert not world.transfers.going


def test_all_go_at_once_that_can_finish(world):
    for name in "abcd":
        assert goes(world.claim(world.transfer(name, 10), 100 * MB))
    assert goes(world.claim(world.transfer("e"), 100_000 * MB))  # which has all the time in the world


def test_those_wait_that_would_make_all_late_until_there_is_room(world):
    first, second, third = (world.transfer(name, 10) for name in "abc")
    assert goes(world.claim(first, 400 * MB))
    waits = world.claim(second, 400 * MB)
    assert not waits.done()
    last = world.claim(third, 900 * MB)
    world.move(first, 300 * MB, 1.0)  # as much is left as can be moved together with the second
    assert goes(waits)
    assert not last.done()
    first.ended()
    world.move(second, 400 * MB, 1.0)
    second.ended()
    assert goes(last)


def test_callers_take_turns(world):
    running = world.transfer("z", 10)
    assert goes(world.claim(running, 900 * MB))
    order: list[str] = []
    ended = {}
    for name in ("a", "a", "a", "b"):
        transfer = world.transfer(name, 12)
        number = len(ended)
        ended[number] = transfer
        world.claim(transfer, 900 * MB).add_done_callback(lambda _, it=f"{name}{number}": order.append(it))
    running.ended()
    for count, expected in enumerate(["a0", "b3", "a1", "a2"], 1):
        assert eventually(lambda count=count: len(order) == count)
        assert order[-1] == expected
        ended[int(expected[1])].ended()


@pytest.mark.parametrize("said", ["nothing", "a little"])
def test_one_that_is_slow_keeps_nobody_waiting(world, said):
    slow = world.transfer("a", 60)
    assert goes(world.claim(slow, 1000 * MB))
    waits = world.claim(world.transfer("b", 15), 1000 * MB)
    assert not waits.done()
    for _ in range(20):
        world.now += 0.1
        if said == "a little":
            slow.moved(1000)
    world.now += 0.1
    assert goes(waits)


def test_one_that_is_computed_is_not_slow(world):
    computed = world.transfer("a", 15)
    assert goes(world.claim(computed, 1000 * MB))
    waits = world.claim(world.transfer("b", 15), 1000 * MB)
    with computed.computed():
        world.now += 3
        with pytest.raises(TimeoutError):
            waits.result(3 * transfers._POLL_S)
    world.now += 1  # and now its caller fetches nothing
    assert goes(waits)


def test_what_a_stream_has_announced_waits_once(world):
    stream = world.transfer("a", 100, expected=900 * MB)
    assert goes(world.claim(stream, 300 * MB))
    assert goes(world.claim(world.transfer("b", 20), 300 * MB)) is True
    blocked = world.claim(world.transfer("c", 8), 600 * MB)
    assert not blocked.done()
    for _ in range(2):
        stream.claim(300 * MB)  # at once, whoever waits
    world.gone.add("c")
    with pytest.raises(DeadlineExceededError):
        blocked.result(30)
    assert goes(world.claim(world.transfer("d", 40), 600 * MB))
    more = world.claim(stream, 9000 * MB)  # which it has not announced: it takes its turn
    assert not more.done()


def test_whoever_is_gone_leaves_the_queue(world):
    running = world.transfer("z", 10)
    assert goes(world.claim(running, 900 * MB))
    waiting = [world.claim(world.transfer(name, 10), 900 * MB) for name in "ab"]
    world.gone.add("a")
    with pytest.raises(DeadlineExceededError, match="gone"):
        waiting[0].result(30)
    running.ended()
    assert goes(waiting[1])


def test_a_deadline_that_cannot_be_met_is_refused_before_it_has_passed(world):
    running = world.transfer("z", 10)
    assert goes(world.claim(running, 2000 * MB))
    world.move(running, 300 * MB, 3.0)  # now the rate is known
    waits = world.claim(world.transfer("a", 8), 500 * MB)
    assert not waits.done()
    with pytest.raises(DeadlineExceededError, match="large tensors of others"):  # 2.5 s at least of its own
        world.transfer("b", 2).claim(500 * MB)
    with pytest.raises(DeadlineExceededError, match="large tensors of others"):  # and what is before it
        world.transfer("b", 6).claim(500 * MB)
    world.move(running, 600 * MB, 6.0)
    with pytest.raises(DeadlineExceededError, match="large tensors of others"):
        waits.result(30)
    assert world.now < 3 + 8


def test_alone_one_goes_whatever_its_deadline(world):
    running = world.transfer("z", 10)
    assert goes(world.claim(running, 900 * MB))
    world.move(running, 900 * MB, 9.0)
    running.ended()
    assert goes(world.claim(world.transfer("a", 0.5), 500 * MB))


def test_a_transfer_that_has_ended_waits_no_more(world):
    running, ended = world.transfer("z", 10), world.transfer("a", 10)
    assert goes(world.claim(running, 900 * MB))
    waits = world.claim(ended, 900 * MB)
    ended.ended()
    with pytest.raises(DeadlineExceededError):
        waits.result(30)
    running.ended()
    assert not world.transfers.going
