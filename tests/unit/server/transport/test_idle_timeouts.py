"""Idle timeouts: which waits are ended, and that one which cannot be ended keeps no other from it."""

import threading

from convserve_server.transport.idle_timeouts import IdleTimeouts, Wait


def test_a_call_that_cannot_be_ended_keeps_no_other_from_being_ended(caplog):
    def fail():
        raise RuntimeError("no")

    class Waits(set):
        """Waits in an order of the test's, as that of a set is any."""

        def __iter__(self):
            return iter(sorted(super().__iter__(), key=lambda wait: wait.until))

    timeouts, ended = IdleTimeouts(0.1), threading.Event()
    timeouts._waits = Waits()
    for abort, until in ((ended.set, 0), (fail, -1)):
        wait = Wait(abort)
        wait.until = until
        timeouts.add(wait)
    assert ended.wait(30)
    assert "an idle call cannot be ended" in caplog.text
    for wait in tuple(timeouts._waits):
        timeouts.remove(wait)


def test_what_is_removed_or_may_take_as_long_as_it_likes_is_not_ended():
    timeouts, ended, aborted = IdleTimeouts(0.1), threading.Event(), []
    removed, patient = Wait(lambda: aborted.append("removed")), Wait(lambda: aborted.append("patient"))
    removed.until = 0
    with timeouts._lock:
        timeouts._waits |= {removed, patient}
        timeouts._waits.discard(removed)
    late = Wait(ended.set)
    late.until = 0
    timeouts.add(late)
    assert ended.wait(30)
    assert aborted == []
