"""How descriptors are shared out, under whatever limit."""

from __future__ import annotations

import resource

import pytest

from convserve_server.memory import descriptors
from convserve_server.memory.descriptors import Descriptors, descriptors_for, open_descriptors

WANTED = Descriptors(connections=1000, memory_connections=600, memory_files=400)
UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The soft and hard limits of open files that the process has had, the present ones last."""
    had: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: had[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: had.append(given))
    return had


@pytest.mark.parametrize("soft", [64, 1024])
@pytest.mark.parametrize("hard", [2**20, UNLIMITED])
def test_the_soft_limit_is_raised_as_far_as_it_takes(limits: list[tuple[int, int]], soft: int, hard: int) -> None:
    limits.append((soft, hard))
    assert descriptors_for(WANTED) == WANTED
    ((_, _), (raised, same)) = limits
    assert same == hard
    assert sum(WANTED) + 256 < raised < sum(WANTED) + 256 + len(open_descriptors()) + 50


@pytest.mark.parametrize("soft", [2**20, UNLIMITED])
def test_a_limit_that_suffices_is_left(limits: list[tuple[int, int]], soft: int) -> None:
    limits.append((soft, UNLIMITED))
    assert descriptors_for(WANTED) == WANTED
    assert len(limits) == 1


@pytest.mark.parametrize("hard", [64, 256, 1024, 2048])
def test_under_a_hard_limit_some_are_reserved_and_the_others_shared_out(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hard: int
) -> None:
    monkeypatch.setattr(descriptors, "open_descriptors", lambda: list(range(10)))
    limits.append((hard // 2, hard))
    given = descriptors_for(WANTED)
    assert limits[-1] == (hard, hard)
    assert 0.9 * (hard - 10 - min(256, hard // 4)) - 3 < sum(given) <= hard - 10 - min(256, hard // 4)
    assert given.connections / given.memory_files == pytest.approx(2.5, rel=0.3)
    assert f"{given.connections} connections" in caplog.text
    assert f"this process may have {hard} files open: raise that (ulimit -n)" in caplog.text


def test_what_is_not_wanted_gets_none_and_what_is_wanted_one_at_least(limits: list[tuple[int, int]]) -> None:
    limits.append((8, 8))
    assert descriptors_for(Descriptors(1000, 0, 2)) == (1, 0, 1)
