"""Handlers' threads: as many as are needed, the one that was busy last first, and nothing is lost when all are busy."""

import gc
import threading
import weakref
from concurrent.futures import CancelledError, wait

import pytest

from convserve import OverloadedError
from convserve_server.scheduling.thread_pool import ThreadPool, check_thread
from tests.support.waiting import eventually

WAIT_S = 60


def test_a_thread_that_is_idle_is_used_again():
    pool = ThreadPool(8, "busy")
    names = set()
    for _ in range(10):
        names.add(pool.submit(lambda: threading.current_thread().name).result(WAIT_S))
        eventually(lambda: pool._idle)  # it has answered, and is about to be
    assert names == {"busy_1"}


def test_the_one_that_was_busy_last_is_the_first_to_get_work():
    pool, both = ThreadPool(2, "pair"), threading.Barrier(2)
    wait([pool.submit(both.wait, WAIT_S) for _ in range(2)], WAIT_S)
    eventually(lambda: len(pool._idle) == 2)
    last = pool._idle[-1]
    pool.submit(int).result(WAIT_S)
    eventually(lambda: len(pool._idle) == 2)
    assert pool._idle[-1] is last


def test_what_all_are_too_busy_for_waits_and_comes_in_its_order():
    pool, released, order = ThreadPool(1, "one"), threading.Event(), []
    first = pool.submit(released.wait, WAIT_S)
    rest = [pool.submit(order.append, each) for each in range(20)]
    assert not any(each.done() for each in rest)
    released.set()
    assert first.result(WAIT_S)
    wait(rest, WAIT_S)
    assert order == list(range(20))


def test_many_that_submit_at_once_lose_nothing():
    pool, done = ThreadPool(5, "many"), []

    def submit():
        for each in range(500):
            pool.submit(done.append, each)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    pool.submit(int).result(WAIT_S)
    eventually(lambda: len(pool._idle) == pool._count)
    assert sorted(done) == sorted([*range(500)] * 8)
    assert pool._count <= 5


def test_what_fails_tells_its_future_and_keeps_no_thread():
    pool = ThreadPool(1, "one")
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(WAIT_S)
    assert pool.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)


def test_what_fails_keeps_nothing_of_what_it_was_given_once_its_future_is_gone():
    class Tensor:
        pass

    def fail(_tensor):
        raise ZeroDivisionError

    pool, tensor = ThreadPool(1, "one"), Tensor()
    known = weakref.ref(tensor)
    gc.collect()
    gc.disable()  # what only the collector would find stays for as long as a server is idle
    try:
        future = pool.submit(fail, tensor)
        del tensor
        wait([future], WAIT_S)
        assert isinstance(future.exception(WAIT_S), ZeroDivisionError)
        del future
        eventually(lambda: known() is None)
    finally:
        gc.enable()


def refuse(_thread):
    raise RuntimeError("can't start new thread")


def test_some_threads_are_started_at_once_as_far_as_the_system_starts_them(monkeypatch):
    assert len(ThreadPool(8, "some", min_threads=3)._idle) == 3
    start = threading.Thread.start
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            ThreadPool(2, "pair")  # when the server starts, and not at its first call
        few = iter([start, start])

        def start_few(thread):
            next(few, refuse)(thread)

        system.setattr(threading.Thread, "start", start_few)
        pool = ThreadPool(8, "some", min_threads=3)
    assert len(pool._idle) == 2
    assert pool.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)


def test_work_is_refused_where_the_system_starts_no_more_threads(monkeypatch):
    pool, released = ThreadPool(2, "pair"), threading.Event()
    first = pool.submit(released.wait, WAIT_S)
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OverloadedError, match="no more of them"):
            pool.submit(divmod, 7, 2)
    second = pool.submit(divmod, 7, 2)
    assert second.result(WAIT_S) == (3, 1)
    released.set()
    assert first.result(WAIT_S)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_work_of_those_who_cannot_be_told_is_refused_in_a_thread(monkeypatch, error):
    def fail(_thread):
        raise error

    pool, released = ThreadPool(2, "pair", refuses_in_thread=True), threading.Event()
    first = pool.submit(released.wait, WAIT_S)
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", fail)
        for refused in [pool.submit(check_thread) for _ in range(20)]:
            with pytest.raises(OverloadedError, match="no more of them"):
                refused.result(WAIT_S)
    pool.submit(check_thread).result(WAIT_S)  # a second thread was started, now that it may be
    released.set()
    assert first.result(WAIT_S)
    third = pool.submit(released.wait, WAIT_S)
    assert third.result(WAIT_S)


def test_what_is_cancelled_while_it_waits_is_not_run():
    pool, released, ran = ThreadPool(1, "one"), threading.Event(), []
    pool.submit(released.wait, WAIT_S)
    waiting = pool.submit(ran.append, 1)
    assert waiting.cancel()
    released.set()
    pool.submit(int).result(WAIT_S)
    assert not ran
    with pytest.raises(CancelledError):
        waiting.result(WAIT_S)


def test_a_thread_that_waits_keeps_nothing_of_what_it_did():
    class Tensor:
        pass

    pool, tensor = ThreadPool(1, "one"), Tensor()
    known = weakref.ref(tensor)
    pool.submit(id, tensor).result(WAIT_S)
    del tensor
    eventually(lambda: pool._idle)
    gc.collect()
    assert known() is None
