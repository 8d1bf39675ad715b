"""The table of shared regions: its bounds, and what makes room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from convserve import OverloadedError
from convserve_server.memory.regions import RegionTable, is_within


@dataclass(eq=False)
class Region:
    """A region that is abandoned when the test says so."""

    size: int
    abandoned: bool = False


def test_regions_and_bytes_are_bounded() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 2)
    table.register("a", Region(60))
    with pytest.raises(KeyError):
        table.register("a", Region(1))
    with pytest.raises(OverloadedError, match=r"at most 2 regions of 100 bytes.*--shared-memory-bytes.*one of 41 more"):
        table.register("b", Region(41))
    table.register("b", Region(40))
    with pytest.raises(OverloadedError):
        table.register("c", Region(0))
    table.unregister(["a", "never registered"])
    table.register("c", Region(60))
    assert [(key, each.size) for key, each in table.all().items()] == [("b", 40), ("c", 60)]
    assert table.get("a") is None


def test_a_region_counts_for_as_long_as_anybody_has_it() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 10)
    table.register("a", Region(60))
    kept = table.get("a")
    table.unregister(["a"])
    assert table.get("a") is None
    with pytest.raises(OverloadedError):
        table.register("b", Region(60))
    del kept
    table.register("b", Region(60))


def test_only_abandoned_regions_make_room() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 10, lambda each, _: each.abandoned)
    left, kept = Region(50), Region(50)
    table.register("left", left)
    table.register("kept", kept)
    with pytest.raises(OverloadedError):
        table.register("new", Region(50))
    left.abandoned = True
    del left
    table.register("new", Region(50))
    assert (table.get("left"), table.get("kept")) == (None, kept)


@pytest.mark.parametrize("size", [0, 8], ids=["regions", "bytes"])
def test_a_caller_leaves_as_much_as_it_has(size: int) -> None:
    """Sixteen of them have no room for more, by their number or by their bytes."""
    table: RegionTable[str, Any] = RegionTable(16 * 8, 1000 if size else 16)

    def taken_by(caller: str) -> int:
        for number in range(16):
            try:
                table.register(f"{caller} {number}", Region(size), caller)
            except OverloadedError:
                return number
        return 16

    assert [taken_by(caller) for caller in ("greedy", "second", "third", "last")] == [8, 4, 2, 1]
    assert taken_by("") == 1  # of callers that cannot be told apart
    table.unregister([f"greedy {number}" for number in range(8)])
    assert taken_by("after") == 4


@pytest.mark.parametrize(("size", "callers"), [(0, 16), (8, 15)], ids=["regions", "bytes"])
def test_what_is_abandoned_makes_room_for_a_first_one_that_would_leave_too_little(size: int, callers: int) -> None:
    """Many callers with one each fill all but what the share of a further one leaves to others."""
    table: RegionTable[str, Any] = RegionTable(
        16 * 8, 1000 if size else 16, lambda each, is_full: is_full and each.abandoned
    )
    regions = [Region(size) for _ in range(callers)]
    for number, each in enumerate(regions):
        table.register(f"{number}", each, f"caller {number}")
    with pytest.raises(OverloadedError):
        table.register("first", Region(size), "honest")
    while regions:
        regions.pop().abandoned = True
    table.register("first", Region(size), "honest")
    assert list(table.all()) == ["first"]


def test_one_region_takes_no_more_than_half() -> None:
    table: RegionTable[str, Any] = RegionTable(100, 10)
    with pytest.raises(OverloadedError, match="half of what is left"):
        table.register("too large", Region(51), "caller")
    table.register("half", Region(50), "caller")


@pytest.mark.parametrize(("size", "told"), [(40, True), (60, False)])
def test_what_is_abandoned_is_told_whether_there_is_no_room_for_anybody(size: int, told: bool) -> None:
    asked = []
    table: RegionTable[str, Any] = RegionTable(100, 10, lambda _, is_full: asked.append(is_full) or False)
    table.register("a", Region(50))
    table.register("b", Region(30))
    with pytest.raises(OverloadedError):
        table.register("c", Region(size), "caller")
    assert asked == [told, told]


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
    assert is_within(Region(100), offset, size) is within
