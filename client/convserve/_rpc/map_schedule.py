"""What `map` sends next and yields next: reading ahead within a bound, small inputs in one call, the order of outputs.

Nothing here does I/O, and nothing here waits: both clients drive it, the blocking one under a lock.

    read -> Item -> held until it fits into max_bytes -> waiting -> Call of one item, or of several small ones
                                                                      |
    yielded <- finished, until it is its turn <- output, or error <---+
                                                 (an error of what is in a call of several: each goes alone)
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from convserve._rpc import requests
from convserve._rpc.map_items import Group, Item
from convserve.errors import (
    ConvserveError,
    InternalError,
    InvalidArgumentError,
    InvalidRequestError,
    InvalidTensorError,
    OutOfMemoryError,
    short_repr,
)
from convserve.layers.layer import Layer, planned_call
from convserve.layers.plan import Plan
from convserve.protocol import call_arguments
from convserve.tensors.codec import INPUT_DTYPES, Array, Shape, name_of, standard_array

DEFAULT_MAX_BYTES = 2**27
"""Bytes of inputs and outputs that are in flight at most: forty photographs with the 64 feature maps of each."""
MAX_CALLS = 4
"""Calls under way at once: while one is computed, others are on their way there and back."""


class Pipeline:
    """The state of one `map`."""

    def __init__(
        self, layers: call_arguments.Layers, output_dtype: Any, *, as_completed: bool, errors: str, max_bytes: int
    ) -> None:
        """Checks the arguments of `Client.map`; raises InvalidArgumentError if one is wrong."""
        if not isinstance(errors, str) or errors not in ("raise", "return"):
            raise InvalidRequestError.for_field("errors", "'raise' or 'return'", short_repr(errors))
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int | np.integer) or max_bytes < 1:
            raise InvalidRequestError.for_field("max_bytes", "a number of bytes, above 0", short_repr(max_bytes))
        self._layers = _with_seeds(call_arguments.layers_of(layers))
        self._output_dtype, self._output_name = output_dtype, call_arguments.output_name(output_dtype)
        self._as_completed, self._raises, self._max_bytes = as_completed, errors == "raise", max_bytes
        self._planned: tuple[Shape, str, Plan] | None = None  # of the latest input, whose like often comes again
        self._read = 0
        self._ended = False
        self._end_error: BaseException | None = None
        self._broken: BaseException | None = None
        self._held: Item | None = None
        # Those with items that wait or are under way; that which was served longest ago is the first.
        self._groups: dict[Hashable, Group] = {}
        self._bytes = 0
        self._finished: dict[int, Item] = {}
        self._yielded = 0

    def item(self, x: Any) -> Item:
        """Returns the next input as an item; one that no call can be made with has its error already."""
        number, self._read = self._read, self._read + 1
        try:
            array = standard_array(x, "input", INPUT_DTYPES)
            if array.ndim not in (3, 4):
                expected = "4 dimensions, the first being the batch, or the 3 of one sample"
                received = f"{array.ndim}: shape {short_repr(array.shape)}"
                raise InvalidTensorError.for_field("input", expected, received)
            is_sample = array.ndim == 3
            array = array[np.newaxis] if is_sample else array
            group = array.shape[1:], array.dtype
            return Item(number, array, is_sample, array.nbytes, self._plan(array).output_bytes, group)
        except ConvserveError as error:
            return Item(number, outcome=error)

    def _plan(self, array: Array) -> Plan:
        shape, dtype = array.shape, name_of(array)
        if self._planned is None or self._planned[:2] != (shape, dtype):
            self._planned = shape, dtype, planned_call(self._layers, shape, dtype, self._output_name)
        return self._planned[2]

    def add(self, item: Item) -> None:
        """Takes an item into the pipeline, where it waits until it fits in. Only while `wants_input`."""
        self._held = item
        self._admit()

    def end(self, error: BaseException | None = None) -> None:
        """Notes that there are no more inputs, or why no more can be had."""
        self._ended, self._end_error = True, error

    @property
    def wants_input(self) -> bool:
        """Whether a further input may be read: there may be one, and all that were read have fitted in."""
        return not self._ended and self._held is None

    @property
    def has_work(self) -> bool:
        """Whether there is a further call to be made now."""
        return self._next_group() is not None

    @property
    def has_output(self) -> bool:
        """Whether `take_output` has something to return or to raise."""
        turn = self._finished if self._as_completed else self._yielded in self._finished
        return bool(turn) or self._broken is not None or (self._is_over and self._end_error is not None)

    @property
    def is_over(self) -> bool:
        """Whether all was read and yielded."""
        return self._is_over and not self.has_output

    @property
    def _is_over(self) -> bool:
        return self._ended and self._held is None and not self._bytes

    def next_call(self) -> list[Item]:
        """Returns the items of the next call, or none; `finish` notes what comes of it."""
        name = self._next_group()
        if name is None:
            return []
        group = self._groups.pop(name)
        self._groups[name] = group  # behind the others
        return group.take()

    def _next_group(self) -> Hashable:
        # What does not fill a call waits for more while another of its group is under way (as in Nagle's algorithm, RFC
        # 896): so calls are made at once where inputs come slowly, and few and large ones where they come fast.
        is_all = self._ended or self._held is not None  # no more will come, or not before there is room for it
        for name, group in self._groups.items():
            if group.waiting and (is_all or not group.calls or group.has_whole_call()):
                return name
        return None

    def request(self, items: list[Item]) -> requests.ConvolveRequest:
        """Returns the request of a call: one item, or several small ones along the batch axis."""
        arrays = [item.input() for item in items]
        together = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return requests.convolve_request(self._layers, together, self._output_dtype)

    def finish(self, items: list[Item], outcome: Sequence[Array] | Exception) -> None:
        """Notes a call's outputs, one per item, or its error; where that may be one item's doing, each goes alone."""
        group = self._groups[items[0].group]
        group.calls -= 1
        if not (group.calls or group.waiting):
            del self._groups[items[0].group]
        if len(items) > 1 and isinstance(outcome, InvalidArgumentError | OutOfMemoryError | InternalError):
            for item in items:
                item.group = item.number
                self._groups.setdefault(item.group, Group()).add(item)
            return
        if isinstance(outcome, Exception) and not isinstance(outcome, ConvserveError):
            self.fail(outcome)
            return
        parts: Sequence[Array | ConvserveError]
        parts = [outcome] * len(items) if isinstance(outcome, ConvserveError) else outcome
        for item, part in zip(items, parts, strict=True):
            self._bytes -= item.bytes_in_flight
            item.finish(part)
            self._bytes += item.bytes_in_flight
            self._finished[item.number] = item
            self._admit()

    def fail(self, error: BaseException) -> None:
        """Ends all with what ended one of those that make the calls."""
        self._broken = self._broken or error

    def take_output(self) -> Any:
        """Returns what is to be yielded now. Only while `has_output`.

        Raises:
            ConvserveError: The error of an item whose turn it is, unless errors are returned.
            Exception: What reading the inputs raised, once all before is yielded; or what ended one of those that
                make the calls, which raise nothing but ConvserveError.
        """
        if self._broken is not None:
            raise self._broken
        if not self._finished and self._end_error is not None:
            error, self._end_error = self._end_error, None
            raise error
        item = self._finished.pop(next(iter(self._finished)) if self._as_completed else self._yielded)
        self._yielded += 1
        self._bytes -= item.bytes_in_flight
        self._admit()
        if self._raises and isinstance(item.outcome, ConvserveError):
            raise item.outcome
        return (item.number, item.outcome) if self._as_completed else item.outcome

    def _admit(self) -> None:
        """Lets the item that is held in, if it fits; one that never would goes alone."""
        item = self._held
        if item is None or (self._bytes and self._bytes + item.bytes_in_flight > self._max_bytes):
            return
        self._held = None
        self._bytes += item.bytes_in_flight
        if item.array is None:
            self._finished[item.number] = item
        else:
            self._groups.setdefault(item.group, Group()).add(item)


def _with_seeds(layers: list[Any]) -> list[Any]:
    """Returns the layers, those that a server draws with seeds: so that it draws the same for every call."""
    return [
        Layer(layer.config.with_seed(random.getrandbits(31)))
        if isinstance(layer, Layer) and layer.kernel is None
        else layer
        for layer in layers
    ]
