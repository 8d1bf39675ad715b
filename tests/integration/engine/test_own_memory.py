"""What the engine's process takes: trials of tests/endurance in their short forms."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tests.endurance.memory_growth import memory_growth
from tests.endurance.peak_memory import peak_memory

T = TypeVar("T")


def in_a_process_of_its_own(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a process that has done nothing else; TensorFlow starts there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(300)


def test_layers_that_nobody_called_before_do_not_let_the_engine_grow() -> None:
    found = in_a_process_of_its_own(memory_growth, 150, 100)
    assert found.further_layers > 2 * found.kept_layers
    assert found.ends, found


def test_no_call_takes_much_more_memory_than_its_plan_says() -> None:
    found = peak_memory(seconds=60, seed=9, cases=12)
    assert found.weighed > 3
    assert not found.failed
    assert not found.excesses, found.excesses
