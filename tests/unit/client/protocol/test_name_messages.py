"""Names' messages: what a server may say of versions, and that no two moves are one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from convserve import InternalError
from convserve.protocol import name_messages
from convserve.v1.layer_service_pb2 import ListNameVersionsResponse, NameVersion

DIGEST = bytes(range(32))


def answer(*versions: dict[str, Any]) -> ListNameVersionsResponse:
    return ListNameVersionsResponse(versions=[NameVersion(**{"digest": DIGEST} | each) for each in versions])


def test_versions_have_times_where_the_server_kept_them() -> None:
    listed = name_messages.versions_of(answer({"version": 4}, {"version": 5, "moved_us": 1_500_000, "stored": True}))
    assert listed == [
        name_messages.NameVersion(4, DIGEST, None, is_stored=False, is_current=False),
        name_messages.NameVersion(
            5, DIGEST, datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC), is_stored=True, is_current=True
        ),
    ]


@pytest.mark.parametrize(
    "versions",
    [
        (),
        ({"version": 0},),
        ({"version": -1},),
        ({"version": 1}, {"version": 3}),
        ({"version": 2}, {"version": 1}),
        ({"version": 1, "digest": b"short"},),
        ({"version": 1, "moved_us": 2**63 - 1},),
        ({"version": 1, "moved_us": -(2**63)},),
    ],
    ids=str,
)
def test_versions_that_cannot_be_are_no_answer(versions: Any) -> None:
    with pytest.raises(InternalError, match="Expected an answer as the contract has it"):
        name_messages.versions_of(answer(*versions))


def test_each_move_has_an_id_of_its_own() -> None:
    ids = {name_messages.name_move("a", None).move_id for _ in range(100)}
    assert len(ids) == 100
    assert {len(each) for each in ids} == {16}
