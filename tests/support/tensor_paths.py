"""The ways by which a call's tensors can travel, each forced for tensors of any size, and proof that it was taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from convserve._rpc import requests, shared_memory, streaming

ALWAYS, NEVER = 0, 2**62


@dataclass
class Taken:
    """What travelled by which way.

    Attributes:
        items: The number of items of each stream.
        copied_inputs: For each call through shared memory, whether its input was copied into it.
        kept_outputs: For each answer through shared memory into no array of the caller's, whether it stayed there.
    """

    items: list[int] = field(default_factory=list)
    copied_inputs: list[bool] = field(default_factory=list)
    kept_outputs: list[bool] = field(default_factory=list)


@contextmanager
def observed() -> Iterator[Taken]:
    """Counts what travels in pieces or through shared memory; the rest went in one message."""
    taken = Taken()

    class Stream(streaming.Stream):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            taken.items.append(len(self.items))

    class SharedRequest(shared_memory.SharedRequest):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            taken.copied_inputs.append(len(self._regions) == 2)

        def result(self, data: bytes) -> Any:
            found = super().result(data)
            if self._out is None:
                taken.kept_outputs.append(not found.output.flags.owndata and found.output.base is not None)
            return found

    with (
        mock.patch.object(streaming, "Stream", Stream),
        mock.patch.object(shared_memory, "SharedRequest", SharedRequest),
    ):
        yield taken


@dataclass(frozen=True)
class Way:
    """A way, with the sizes that make the client choose it.

    Attributes:
        name: How tests call it.
        whole: Of the largest tensor that goes in one message.
        item: Of an item of a stream.
        piece: Of a stream's pieces.
        shared: Of the smallest tensors that are shared; None: no shared memory.
        kept: Of the smallest output that stays in shared memory.
    """

    name: str
    whole: int = NEVER
    item: int = 1
    piece: int = 500
    shared: int | None = None
    kept: int = NEVER

    @property
    def shares(self) -> bool:
        """Whether tensors go through shared memory."""
        return self.shared is not None

    @contextmanager
    def forced(self) -> Iterator[None]:
        """Sets the sizes."""
        sizes = {
            (requests, "_MAX_WHOLE_BYTES"): self.whole,
            (streaming, "_ITEM_BYTES"): self.item,
            (streaming, "PIECE_BYTES"): self.piece,
            (shared_memory, "_MIN_SHARED_BYTES"): NEVER if self.shared is None else self.shared,
            (shared_memory, "_MIN_KEPT_BYTES"): self.kept,
        }
        with ExitStack() as patches:
            for (module, name), size in sizes.items():
                patches.enter_context(mock.patch.object(module, name, size))
            yield

    @contextmanager
    def client(self, make: Any, target: str, **arguments: Any) -> Iterator[Any]:
        """Opens a client whose calls go this way, and asserts that those which were made did."""
        with self.forced(), observed() as taken, make(target, shared_memory=self.shares, **arguments) as client:
            yield client
        assert bool(taken.items) == (self.whole == ALWAYS), (self.name, taken)
        assert bool(taken.copied_inputs) == self.shares, (self.name, taken)
        assert all(each == (self.kept == ALWAYS) for each in taken.kept_outputs), (self.name, taken)


WAYS = {
    way.name: way
    for way in (
        Way("one message"),
        Way("pieces", whole=ALWAYS),
        Way("pieces, some samples in an item", whole=ALWAYS, item=1500, piece=2**14),
        Way("shared, copied out", shared=ALWAYS),
        Way("shared, kept there", shared=ALWAYS, kept=ALWAYS),
    )
}


def by_every_way(make: Any, target: str, what: Callable[[Any], Any]) -> dict[str, Any]:
    """Does something with a client by every way; returns what came of it by the ways' names."""
    found = {}
    for name, way in WAYS.items():
        with way.client(make, target) as client:
            found[name] = what(client)
    return found
