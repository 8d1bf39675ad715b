"""The request path with an engine of a few lines: what is batched, what is initialized, and who gets which answer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convserve import InvalidArgumentError, Layer, TooLargeError
from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.caller import Caller
from tests.support.engines.served import CONFIG, LIMITS, Engine, Served, batch, weighing
from tests.support.waiting import eventually, waiting_jobs


class Held:
    """Callers of a scheduler whose engine is held by a first call, so that the others wait."""

    def __init__(self, engine: Engine, served: Served | None = None, **options: Any) -> None:
        self.engine, self.served = engine, served or Served(engine, **options)
        self.pool = ThreadPoolExecutor(16)
        engine.go.clear()
        for _ in engine.devices:
            self.call([weighing(0)], batch(0))

    def call(self, layers: Sequence[Layer], x: Any, output_dtype: str | None = None, **options: Any) -> Future[Any]:
        batcher = self.served.scheduler._batcher
        before = len(self.engine.calls) + waiting_jobs(batcher)
        future = self.pool.submit(self.served.convolve, layers, x, output_dtype, **options)
        eventually(lambda: len(self.engine.calls) + waiting_jobs(batcher) > before)
        return future

    def computed(self) -> list[list[int]]:
        """Lets all go, and returns the samples of each call's part of what was computed since."""
        self.engine.go.set()
        self.pool.shutdown()
        return [samples for _, samples, _ in self.engine.calls[len(self.engine.devices) :]]


def test_callers_of_one_layer_are_computed_together_and_each_gets_its_own_rows() -> None:
    double, triple = weighing(2), weighing(3)
    held = Held(Engine())
    futures = [held.call([layer], batch(*values)) for layer, values in
               ((double, (1, 2)), (triple, (4,)), (double, (5,)), (triple, (6, 7)))]  # fmt: skip
    assert held.computed() == [[2, 1], [1, 2]]
    results = [future.result() for future in futures]
    assert [result.output.ravel().tolist() for result in results] == [[2, 4], [12], [10], [18, 21]]
    assert [result.computation.batch_size for result in results] == [3, 3, 3, 3]
    assert all(min(result.computation.queue_us, result.computation.compute_us) >= 0 for result in results)


def test_only_calls_that_agree_in_everything_but_their_samples_go_together() -> None:
    layer, other = weighing(2), weighing(2)
    held = Held(Engine())
    futures = [
        held.call([layer], batch(1)),
        held.call([other], batch(1)),
        held.call([layer, other], batch(1)),
        held.call([layer], batch(1, dtype="u1")),
        held.call([layer], batch(1), "float64"),
        held.call([layer], batch(1, shape=(2, 1))),
        held.call([layer], batch(1), unbatched=True),
        held.call([layer], batch(1), "float32"),  # what the first one gets without asking
    ]
    assert held.computed() == [[1, 1], [1], [1], [1], [1], [1], [1]]
    assert [future.result().computation.batch_size for future in futures] == [2, 1, 1, 1, 1, 1, 1, 2]


def test_a_layer_with_an_activity_regularizer_is_computed_for_each_caller() -> None:
    layer = weighing(1, activity_regularizer="l2")
    held = Held(Engine())
    futures = [held.call([layer], batch(*values)) for values in ((1, 3), (10,))]
    assert held.computed() == [[2], [1]]
    assert [future.result().losses[0].activity for future in futures] == [2, 10]


@pytest.mark.parametrize("options", [{"samples": 2}, {"size": 40}, {"limits": replace(LIMITS, max_call_bytes=40)}])
def test_a_batch_is_bounded_by_samples_and_bytes(options: dict[str, Any]) -> None:
    layer = weighing(2)
    plan = Served(Engine()).admission.plan([layer], (1, 1, 1, 1), "float32", None)
    assert plan.memory_bytes - plan.weight_bytes == 20
    held = Held(Engine(), **options)
    for value in range(3):
        held.call([layer], batch(value))
    assert held.computed() == [[1, 1], [1]]


def test_a_wait_for_memory_counts_and_ends_when_the_computation_starts() -> None:
    served, layer, x = Served(Engine()), weighing(2), batch(1)
    permit = served.admission.admit([layer], x.shape, "float32", None)
    permit.waited_s = 3600.0
    before = time.time_ns()
    computation = served.scheduler.convolve(permit, [layer], x).computation
    assert computation.queue_us >= 3600e6
    assert before - 1000 <= computation.began_ns + computation.queue_us * 1000 <= time.time_ns() + 1000


def test_a_batch_that_does_not_fit_the_device_is_computed_in_parts() -> None:
    engine, layer = Engine(), weighing(2)
    engine.max_samples = 2
    held = Held(engine)
    futures = [held.call([layer], batch(*values)) for values in ((1,), (2, 3), (4, 5, 6))]
    assert held.computed() == [[1, 2, 3], [1], [2], [3], [1], [1], [1]]  # the last one in parts
    assert [future.result().computation.batch_size for future in futures] == [1, 2, 1]
    assert [future.result().output.ravel().tolist() for future in futures] == [[2], [4, 6], [8, 10, 12]]


def test_a_free_device_gets_the_next_call() -> None:
    engine = Engine(devices=2)
    held = Held(engine)
    assert [device for _, _, device in engine.calls] == [0, 1]
    future = held.call([weighing(2)], batch(1))
    held.computed()
    assert future.result().computation.device in {"cpu:0", "cpu:1"}


def test_a_call_whose_caller_is_gone_is_not_computed() -> None:
    engine = Engine()
    with pytest.raises(DeadlineExceededError, match="not computed"):
        Served(engine).convolve([weighing(2)], batch(1), None, Caller(is_active=lambda: False))
    assert engine.calls == []


# Work


def test_a_small_call_does_not_wait_for_one_that_computes_for_long() -> None:
    """Which is small by its bytes."""
    engine = Engine()
    served = Served(engine, limits=replace(LIMITS, max_call_bytes=2**22), size=2**20)
    long = Layer(CONFIG.replace(kernel_size=400, padding="same"), np.ones((400, 400, 1, 1), "f4"))
    x = np.ones((1, 100, 100, 1), "f4")
    assert served.admission.admit([long], x.shape, "float32", None).size < 2**20
    engine.go.clear()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(served.convolve, [long], x, None, output_room=2**20)
        eventually(lambda: len(engine.calls) == 1)
        quick = pool.submit(served.convolve, [weighing(2)], batch(1), None)
        eventually(lambda: len(engine.calls) == 2)
        engine.go.set()
        assert quick.result(30).output.item() == 2
        slow.result(30)


def test_calls_of_much_work_are_not_computed_together() -> None:
    layer, one = weighing(2), batch(1, shape=(8, 8))
    (burden,) = {Served(Engine()).admission.admit([layer], one.shape, "float32", None).burden}
    engine = Engine()
    held = Held(engine, size=2 * burden + 1)
    for value in range(3):
        held.call([layer], batch(value, shape=(8, 8)))
    assert held.computed() == [[1, 1], [1]]


@pytest.mark.parametrize("drawn", [True, False])
def test_a_call_of_more_operations_than_the_server_takes_is_refused(drawn: bool) -> None:
    engine = Engine()
    served = Served(engine, limits=replace(LIMITS, max_call_flops=50_000))
    config = CONFIG.replace(filters=10, kernel_initializer="orthogonal")
    taken = batch(1, shape=(50, 50))
    flops = config.plan(taken.shape).flops
    assert flops == 50_000
    layer = Layer(config) if drawn else Layer(config, np.ones((1, 1, 1, 10), "f4"))
    if not drawn:
        served.convolve([layer], taken, None, output_room=2**20)
    expected = r"at most 50000 FLOPs in one call, the server's --max-call-flops\. Received a call with [0-9]+: send"
    assert re.search(expected, served.admission.plan([layer], (2, 50, 50, 1), "float32", None).refusal or "")
    with pytest.raises(TooLargeError, match=expected):
        served.convolve([layer], batch(1, 2, shape=(50, 50)), None)
    assert not engine.initialized


def test_weights_are_drawn_until_the_caller_is_gone() -> None:
    engine = Engine()
    caller = Caller(is_active=lambda: len(engine.initialized) < 2)
    with pytest.raises(DeadlineExceededError, match="no more is drawn"):
        Served(engine).convolve([Layer(CONFIG)] * 4, batch(1), None, caller)
    assert len(engine.initialized) == 2
    assert engine.calls == []


# Initialized weights


def test_seeded_weights_are_initialized_once_and_others_each_time() -> None:
    engine = Engine()
    served = Served(engine)
    for seeded, expected in ((CONFIG.with_seed(7), [1, 1, 1]), (CONFIG, [2, 3, 4])):
        results = [served.convolve([Layer(seeded)], batch(1), None) for _ in range(3)]
        assert [result.output.item() for result in results] == expected
        assert all(result.layers[0] is not None for result in results)


def test_the_same_weights_for_another_name_or_number_of_channels_are_initialized_anew() -> None:
    engine = Engine()
    served, seeded = Served(engine), CONFIG.with_seed(7)
    for config, x in ((seeded, batch(1)), (seeded.replace(name="a"), batch(1)), (seeded, np.ones((1, 1, 1, 2), "f4"))):
        (sent,) = served.convolve([Layer(config)], x, None).layers
        assert sent == config
    assert len(engine.initialized) == 3


def test_callers_of_one_seeded_configuration_are_computed_together() -> None:
    engine = Engine()
    seeded = CONFIG.with_seed(7)
    served = Served(engine)
    served.convolve([Layer(seeded)], batch(1), None)
    engine.calls.clear()
    held = Held(engine, served=served)
    futures = [held.call([Layer(seeded)], batch(value)) for value in (1, 2)]
    assert held.computed() == [[1, 1]]
    assert [future.result().layers for future in futures] == [(seeded,), (seeded,)]
    assert len(engine.initialized) == 1


# What is refused


def test_a_wrong_call_is_refused_every_time() -> None:
    served = Served(Engine())
    for _ in range(2):
        with pytest.raises(InvalidArgumentError):
            served.convolve([weighing(1)], np.ones((1, 1, 1, 2), "f4"), None)


def test_a_plan_that_is_remembered_does_not_let_a_larger_call_pass() -> None:
    served = Served(Engine(), limits=replace(LIMITS, max_answer_bytes=2**17))
    layer = weighing(1)
    large = np.ones((1, 200, 200, 1), "f4")
    for _ in range(2):
        served.admission.admit([layer], large.shape, "float32", None).release()  # in pieces
        with pytest.raises(TooLargeError, match="--max-message-bytes"):
            served.convolve([layer], large, None)
        served.convolve([layer], large, None, output_room=large.nbytes)
        with pytest.raises(TooLargeError, match=r"--max-layers-per-call.*: apply them in several calls"):
            served.convolve([layer] * 5, batch(1), None)
        served.convolve([layer], batch(1), None)
