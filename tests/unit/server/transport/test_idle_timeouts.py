"""The watch over silent calls goes on, whatever ending one of them comes to."""

import threading

from convserve_server.transport.idle_timeouts import IdleTimeouts
from tests.support.waiting import eventually


def test_a_call_that_cannot_be_ended_keeps_no_other_from_being_ended(caplog):
    def fail():
        raise RuntimeError("no")

    watch, ended = IdleTimeouts(0.1), threading.Event()
    wait, other = watch.waiting(fail), watch.waiting(ended.set)
    eventually(lambda: "a call that is silent cannot be ended" in caplog.text)  # in a set's order
    assert ended.wait(30)
    wait.forget()
    other.forget()
