"""The TensorFlow engine itself: memory, traces, devices, depthwise layers, and batches of real layers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.support.engines import two_device_checks

CHECKS = [name for name in vars(two_device_checks) if name.startswith("checks_")]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process in which TensorFlow starts with two devices, which it cannot be given later."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", CHECKS)
def test_engine(process: ProcessPoolExecutor, name: str) -> None:
    process.submit(getattr(two_device_checks, name)).result(300)
