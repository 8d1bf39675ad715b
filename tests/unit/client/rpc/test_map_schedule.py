"""What `map` sends next and yields next, driven by hand: no client, no server, no thread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve import (
    Conv2D,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    InvalidTensorError,
    InvalidWeightsError,
    Layer,
    OutOfMemoryError,
    RetryRule,
    UnavailableError,
)
from convserve._rpc.map_items import split
from convserve._rpc.map_schedule import DEFAULT_MAX_BYTES, Pipeline
from convserve._rpc.retries import with_retries
from convserve.errors import FieldViolation

SAME = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 1, 1)))


def pipeline(layers: Any = SAME, **options: Any) -> Pipeline:
    return Pipeline(
        layers, None, **{"as_completed": False, "errors": "raise", "max_bytes": DEFAULT_MAX_BYTES} | options
    )


def image(value: float = 0, shape: tuple[int, ...] = (1, 2, 2, 1), dtype: str = "f4") -> Any:
    return np.full(shape, value, dtype)


def read(flow: Pipeline, *inputs: Any) -> None:
    for x in inputs:
        assert flow.wants_input
        flow.add(flow.item(x))


def answer(flow: Pipeline, items: Any) -> None:
    """Answers a call with its own input."""
    flow.finish(items, split(flow.request(items).input.astype("f4"), items))


def taken(flow: Pipeline) -> list[Any]:
    found = []
    while flow.has_output:
        found.append(flow.take_output())
    return found


def test_small_inputs_of_one_shape_and_dtype_go_together_and_come_apart() -> None:
    flow = pipeline()
    read(flow, image(0), image(1, (3, 2, 2, 1)), image(2), image(3, (2, 2, 1)), image(4, dtype="f8"), image(5))
    read(flow, image(6, (1, 2, 3, 1)))
    calls = [flow.next_call() for _ in range(3)]
    assert [[item.number for item in call] for call in calls] == [[0, 1, 2, 3, 5], [4], [6]]
    assert not flow.has_work
    assert flow.request(calls[0]).input.shape == (7, 2, 2, 1)
    for call in calls:
        answer(flow, call)
    found = taken(flow)
    shapes = [each.shape for each in found]
    assert shapes == [
        (1, 2, 2, 1), (3, 2, 2, 1), (1, 2, 2, 1), (2, 2, 1), (1, 2, 2, 1), (1, 2, 2, 1), (1, 2, 3, 1),
    ]  # fmt: skip
    assert [each.flat[0] for each in found] == list(range(7))


@pytest.mark.parametrize(("together", "kept"), [(1, 1), (8, 8), (9, 1), (10, 1)])
def test_an_output_that_is_kept_keeps_few_others(together: int, kept: int) -> None:
    flow = pipeline()
    read(flow, *map(image, range(together)))
    answer(flow, flow.next_call())
    for number, each in enumerate(taken(flow)):
        assert each.flat[0] == number
        root = each
        while isinstance(root.base, np.ndarray):
            root = root.base
        assert (each.nbytes, root.nbytes) == (16, kept * 16)


@pytest.mark.parametrize(
    ("side", "number", "sizes"),
    [
        (2048, 3, [1, 1, 1]),  # 16 MiB each way
        (1024, 9, [4, 4, 1]),
        (512, 17, [8, 8, 1]),
        (256, 33, [16, 16, 1]),
        (16, 1030, [1024, 6]),
    ],
)
def test_what_goes_together_is_bounded_in_bytes_and_items(side: int, number: int, sizes: list[int]) -> None:
    flow = pipeline()
    read(flow, *[image(shape=(1, side, side, 1))] * number)
    flow.end()
    found = []
    while items := flow.next_call():
        found.append(len(items))
    assert found == sizes


def test_groups_take_turns() -> None:
    flow = pipeline()
    a, b = image(shape=(1, 1024, 1024, 1)), image(shape=(1, 1024, 1024, 1), dtype="f2")
    read(flow, *[a] * 8, *[b] * 2)
    found = [[item.number for item in flow.next_call()] for _ in range(3)]
    assert found == [[0, 1, 2, 3], [8, 9], [4, 5, 6, 7]]


def test_what_fills_no_call_waits_while_others_like_it_are_under_way() -> None:
    flow = pipeline(as_completed=True)
    read(flow, image(0))
    first = flow.next_call()
    read(flow, image(1), image(2), image(3, (1, 3, 3, 1)))
    assert [item.number for item in flow.next_call()] == [3]  # of another shape
    assert not flow.has_work
    answer(flow, first)
    assert [item.number for item in flow.next_call()] == [1, 2]


def test_what_fills_a_call_waits_for_nothing_and_neither_does_the_last() -> None:
    flow = pipeline()
    x = image(shape=(1, 1024, 1024, 1))
    read(flow, x)
    flow.next_call()
    read(flow, x, x, x)
    assert not flow.has_work
    read(flow, x)  # a further one would not go in one call with these
    assert len(flow.next_call()) == 4
    read(flow, x)
    assert not flow.has_work
    flow.end()
    assert len(flow.next_call()) == 1


def test_an_input_for_which_there_is_no_room_lets_go_those_before_it() -> None:
    flow = pipeline(max_bytes=5000)
    read(flow, image(0))
    flow.next_call()
    read(flow, image(1), image(2))
    assert not flow.has_work
    read(flow, image(3, (1, 20, 20, 1)))
    assert not flow.wants_input
    assert [item.number for item in flow.next_call()] == [1, 2]


def test_outputs_come_in_the_order_of_inputs_or_as_they_are_completed() -> None:
    for as_completed in (False, True):
        flow = pipeline(as_completed=as_completed)
        read(flow, image(0), image(1, (1, 3, 3, 1)), image(2, (1, 4, 4, 1)))
        calls = [flow.next_call() for _ in range(3)]
        answer(flow, calls[2])
        early = taken(flow)
        answer(flow, calls[0])
        answer(flow, calls[1])
        found = early + taken(flow)
        if as_completed:
            assert [(index, y.flat[0]) for index, y in found] == [(2, 2), (0, 0), (1, 1)]
        else:
            assert not early
            assert [y.flat[0] for y in found] == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [
        InvalidTensorError(FieldViolation("input", "Expected x. Received y.")),
        OutOfMemoryError("no"),
        InternalError("oops"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_call_of_several_that_is_refused_for_what_is_in_it_is_tried_one_by_one(error: Any) -> None:
    flow = pipeline(errors="return")
    read(flow, *map(image, range(3)))
    together = flow.next_call()
    assert len(together) == 3
    flow.finish(together, error)
    assert not flow.has_output
    alone = [flow.next_call() for _ in range(3)]
    assert [len(each) for each in alone] == [1, 1, 1]
    flow.finish(alone[1], error)
    answer(flow, alone[0])
    answer(flow, alone[2])
    first, second, third = taken(flow)
    assert second is error
    assert (first.flat[0], third.flat[0]) == (0, 2)


@pytest.mark.parametrize("error", [DeadlineExceededError("late"), UnavailableError("nobody")])
def test_a_call_of_several_that_fails_for_another_reason_is_not_tried_again(error: Any) -> None:
    flow = pipeline(errors="return")
    read(flow, *map(image, range(2)))
    flow.finish(flow.next_call(), error)
    assert not flow.has_work
    assert taken(flow) == [error, error]


def test_an_error_is_raised_in_its_place() -> None:
    flow = pipeline()
    read(flow, image(0), image(1, (2, 2)), image(2))
    answer(flow, flow.next_call())
    assert flow.take_output().flat[0] == 0
    with pytest.raises(InvalidTensorError, match=r"^input: Expected 4 dimensions.* or the 3 of one sample.*\(2, 2\)"):
        flow.take_output()


def test_an_input_that_no_call_can_be_made_with_has_its_own_error() -> None:
    flow = pipeline(errors="return")
    read(flow, "x", image(shape=(1, 2, 2, 7)), [[1.0]], None, image(4))
    answer(flow, flow.next_call())
    kinds = [type(each) for each in taken(flow)]
    assert kinds == [InvalidTensorError, InvalidWeightsError, InvalidTensorError, InvalidTensorError, np.ndarray]


def test_what_reading_raises_comes_after_the_outputs_of_what_was_read() -> None:
    for as_completed in (False, True):
        flow = pipeline(as_completed=as_completed)
        read(flow, image(0), image(1))
        flow.end(OSError("the disk is gone"))
        assert not flow.has_output
        assert not flow.wants_input
        answer(flow, flow.next_call())
        flow.take_output()
        flow.take_output()
        assert not flow.is_over
        with pytest.raises(OSError, match="the disk is gone"):
            flow.take_output()
        assert flow.is_over


def test_an_error_that_is_none_of_ours_ends_it() -> None:
    flow = pipeline(errors="return")
    read(flow, image(0))
    flow.finish(flow.next_call(), MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        flow.take_output()


def test_one_that_is_larger_than_the_bound_goes_alone() -> None:
    flow = pipeline(max_bytes=1)
    read(flow, image(0))
    assert flow.wants_input
    read(flow, image(1))
    assert not flow.wants_input
    answer(flow, flow.next_call())
    assert not flow.has_work  # the output of the first is not taken yet
    assert flow.take_output().flat[0] == 0
    assert flow.has_work


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    max_bytes=st.integers(1, 200_000),
    choices=st.randoms(use_true_random=False),
    as_completed=st.booleans(),
)
def test_every_input_is_yielded_once_and_bytes_in_flight_are_bounded(
    sizes: list[int], max_bytes: int, choices: Any, as_completed: bool
) -> None:
    """Whatever the sizes are, in whatever order calls are answered, and whenever outputs are taken."""
    flow = pipeline(max_bytes=max_bytes, as_completed=as_completed)
    inputs = [image(number, (1, size, size, 1)) for number, size in enumerate(sizes)]
    cost = {number: 2 * x.nbytes + 1024 for number, x in enumerate(inputs)}  # input, output, and what an item takes
    unread, under_way, found, sent = list(enumerate(inputs)), [], [], {}
    while not flow.is_over:
        steps = [
            *(["read"] if flow.wants_input else []),
            *(["send"] if flow.has_work else []),
            *(["answer"] if under_way else []),
            *(["take"] if flow.has_output else []),
        ]
        assert steps, "nothing can go on"
        step = choices.choice(steps)
        if step == "read" and unread:
            read(flow, unread.pop(0)[1])
        elif step == "read":
            flow.end()
        elif step == "send":
            items = flow.next_call()
            under_way.append(items)
            sent.update({item.number: cost[item.number] for item in items})
            assert sum(sent.values()) <= max_bytes or len(sent) == 1
        elif step == "answer":
            items = under_way.pop(choices.randrange(len(under_way)))
            answer(flow, items)
            sent.update({item.number: inputs[item.number].nbytes + 1024 for item in items})  # the input is let go
        else:
            taken_now = flow.take_output()
            index, y = taken_now if as_completed else (len(found), taken_now)
            del sent[index]
            found.append((index, y.flat[0]))
    assert sorted(found) == [(number, number) for number in range(len(sizes))]


def test_weights_that_a_server_draws_are_the_same_for_every_input() -> None:
    flow = pipeline([Conv2D(1, 1, data_format="channels_last"), Conv2D(1, 1, data_format="channels_last")])
    read(flow, image(0), image(1, (1, 3, 3, 1)))
    layers = [flow.request(flow.next_call()).layers for _ in range(2)]
    assert [each.config for each in layers[0]] == [each.config for each in layers[1]]
    seeds = [each.config.kernel_initializer.parameters["seed"] for each in layers[0]]
    assert None not in seeds
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        *(({"errors": each}, "errors") for each in ("ignore", np.arange(2))),
        *(({"max_bytes": each}, "max_bytes") for each in (0, -1, 1.5, None, True)),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}: Expected .* Received "):
        pipeline(**options)


def test_items_are_sent_again_as_long_as_they_may_take_unless_retries_are_off() -> None:
    rule = with_retries(RetryRule(attempts=3, longest_s=2))
    assert rule.budget == math.inf
    # 2**100_000 would be no float.
    delay = rule.delay_s(100_000, UnavailableError("nobody"))
    assert delay is not None
    assert 1 <= delay <= 2
    assert with_retries(RetryRule(attempts=1)).delay_s(1, UnavailableError("nobody")) is None
