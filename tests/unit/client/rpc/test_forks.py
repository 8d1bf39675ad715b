"""What a fork waits for, and what it says where it cannot; the hooks are called by hand, and nothing forks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from convserve import InvalidRequestError
from convserve._rpc import forks
from convserve._rpc.forks import CallsUnderWay
from tests.support.waiting import eventually

LONG_S = 60.0


@contextmanager
def elsewhere(calls: CallsUnderWay) -> Iterator[threading.Event]:
    """A call in another thread, until the event is set."""
    begun, ended = threading.Event(), threading.Event()

    def call() -> None:
        with calls.call(LONG_S):
            begun.set()
            ended.wait(LONG_S)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert begun.wait(LONG_S)
        yield ended
    finally:
        ended.set()
        thread.join()


def test_a_fork_waits_for_calls_and_calls_wait_for_it() -> None:
    calls, order = CallsUnderWay(), []

    def call() -> None:
        with calls.call(LONG_S):
            order.append("call")

    later = threading.Thread(target=call)
    with elsewhere(calls) as ended:
        fork = threading.Thread(target=lambda: (calls.before_fork(), order.append("fork"), calls.after_in_parent()))
        fork.start()
        eventually(lambda: calls._forking is not None)
        later.start()
        assert not order
        ended.set()
        fork.join(LONG_S)
    later.join(LONG_S)
    assert order == ["fork", "call"]
    calls.after_in_child()
    calls.check_process()


def test_a_call_waits_for_a_fork_no_longer_than_its_timeout() -> None:
    calls = CallsUnderWay()
    fork = threading.Thread(target=calls.before_fork)
    fork.start()
    fork.join()
    with calls.call(0.01):
        pass


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "MAX_WAIT_S", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_fork_in_the_middle_of_a_call_that_does_not_end_says_so() -> None:
    calls = CallsUnderWay()
    with elsewhere(calls):
        calls.before_fork()
        calls.after_in_parent()
        calls.check_process()
        calls.before_fork()
        calls.after_in_child()
        for _ in range(2):  # and so does a fork of the fork
            with pytest.raises(InvalidRequestError, match=r"client: .* a call that did not end in 0\.01 s"):
                calls.check_process()
            calls.before_fork()
            calls.after_in_child()


def test_a_fork_in_the_middle_of_the_calls_of_its_own_thread_waits_for_none_of_them() -> None:
    calls = CallsUnderWay()
    with calls.call(LONG_S):
        with calls.call(LONG_S):  # in a signal's handler
            pass
        calls.before_fork()
        calls.before_fork()  # likewise in a handler
        with calls.call(LONG_S):
            pass
        calls.after_in_child()
    with pytest.raises(InvalidRequestError):
        calls.check_process()


def test_a_fork_beside_a_connected_asyncio_client_says_so() -> None:
    class Connected:
        pass

    calls, client = CallsUnderWay(), Connected()
    calls.asyncio_clients.add(client)
    calls.after_in_child()
    with pytest.raises(InvalidRequestError, match="AsyncClient connected"):
        calls.check_process()
