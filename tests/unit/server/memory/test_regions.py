"""The table of shared regions: its bounds, and what makes room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from convserve import OverloadedError
from convserve_server.memory.regions import RegionTable, is_within


def region(size: int) -> Any:
    return SimpleNamespace(size=size, abandoned=False)


def test_regions_and_bytes_are_bounded() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 2)
    table.register("a", region(60))
    with pytest.raises(KeyError):
        table.register("a", region(1))
    with pytest.raises(OverloadedError, match=r"at most 2 regions of 100 bytes.*--shared-memory-bytes.*one of 41 more"):
        table.register("b", region(41))
    table.register("b", region(40))
    with pytest.raises(OverloadedError):
        table.register("c", region(0))
    table.unregister(["a", "never registered"])
    table.register("c", region(60))
    assert [(key, each.size) for key, each in table.all().items()] == [("b", 40), ("c", 60)]
    assert table.get("a") is None


def test_only_abandoned_regions_make_room() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 10, lambda each: each.abandoned)
    left, kept = region(50), region(50)
    table.register("left", left)
    table.register("kept", kept)
    with pytest.raises(OverloadedError):
        table.register("new", region(50))
    left.abandoned = True
    table.register("new", region(50))
    assert (table.get("left"), table.get("kept")) == (None, kept)


@pytest.mark.parametrize(
    ("offset", "size", "within"),
    [
        (0, 100, True),
        (100, 0, True),
        (36, 64, True),
        (37, 64, False),
        (-1, 1, False),
        (0, 101, False),
        (2**63, 1, False),
    ],
)
def test_a_place_is_within_a_region_or_not(offset: int, size: int, within: bool) -> None:
    assert is_within(region(100), offset, size) is within
