"""What becomes part of a convolution, what is left, and that nothing changes that anybody else reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from convserve import activations
from convserve.layers.keras_layers import convolutions
from convserve.models.folding import Left, Node, Run, folded, joined
from convserve.models.operations import LINEAR, BatchNormalization, ZeroPadding
from tests.support.engines.numpy_engine import convolved as convolve

RNG = np.random.default_rng(0)
RELU = activations.ReLU()
PADDING = ZeroPadding(((0, 1), (2, 0)))


def layer(**parameters: Any) -> convserve.Layer:
    config = convserve.Conv2D(3, 2, **parameters)
    return convserve.Layer(config, RNG.normal(size=(2, 2, 3, 3)), RNG.normal(size=3) if config.use_bias else None)


def normalization(**parts: Any) -> BatchNormalization:
    given = {"gamma": RNG.normal(size=3), "beta": RNG.normal(size=3), "mean": RNG.normal(size=3),
             "variance": RNG.uniform(0.1, 2, 3), "epsilon": 1e-3}  # fmt: skip
    return BatchNormalization(**{**given, **parts})


def conv(name: str, *inputs: str, kind: str = "Conv2D", **parameters: Any) -> Node:
    return Node(name, inputs, (layer(**parameters),), kind)


def bn(name: str, *inputs: str, dtype: str | None = None, **parts: Any) -> Node:
    return Node(name, inputs, normalization(**parts), "BatchNormalization", dtype)


def act(name: str, *inputs: str, activation: Any = RELU, dtype: str | None = None) -> Node:
    return Node(name, inputs, activation, "Activation", dtype)


def pad(name: str, *inputs: str, padding: ZeroPadding = PADDING) -> Node:
    return Node(name, inputs, padding, "ZeroPadding2D")


def other(name: str, *inputs: str) -> Node:
    return Node(name, inputs, None, "Add")


def names(runs: list[Run]) -> list[tuple[str, ...]]:
    return [run.nodes for run in runs]


def reasons(left: list[Left]) -> dict[str, str]:
    return {each.name: each.reason for each in left}


def test_what_only_follows_each_other_becomes_one() -> None:
    nodes = [other("x"), pad("p", "x"), conv("c", "p"), bn("b", "c"), act("a", "b"), other("y", "a")]
    ((run,), left) = folded(nodes, {"y"})
    assert (run.nodes, left) == (("p", "c", "b", "a"), [])
    (made,) = run.layers
    assert made.config == convserve.Conv2D(3, 2, padding=((0, 1), (2, 0)), activation="relu")
    x = RNG.normal(size=(2, 5, 6, 3))
    original, normal = nodes[2].operation[0], nodes[3].operation
    between = convolve(original, np.pad(x, ((0, 0), (0, 1), (2, 0), (0, 0))))
    between = (between - normal.mean) / np.sqrt(normal.variance + normal.epsilon) * normal.gamma + normal.beta
    np.testing.assert_allclose(convolve(made, x), between, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("parts", [{}, {"gamma": None}, {"beta": None}, {"gamma": None, "beta": None, "epsilon": 0.5}])
def test_each_part_of_a_normalization_may_be_missing(use_bias: bool, parts: dict[str, Any]) -> None:
    nodes = [conv("c", "x", use_bias=use_bias, dtype="float64"), bn("b", "c", **parts)]
    ((run,), _) = folded(nodes, {"b"})
    x, normal = RNG.normal(size=(1, 4, 4, 3)), nodes[1].operation
    gamma, beta = (default if part is None else part for part, default in ((normal.gamma, 1), (normal.beta, 0)))
    expected = (convolve(nodes[0].operation[0], x) - normal.mean) / np.sqrt(normal.variance + normal.epsilon)
    np.testing.assert_allclose(convolve(run.layers[0], x), expected * gamma + beta, rtol=1e-12, atol=1e-12)
    assert run.layers[0].config.use_bias


def test_one_after_the_other_are_folded_too() -> None:
    nodes = [pad("p1", "x"), pad("p2", "p1"), conv("c", "p2", padding=((1, 0), (0, 0))), bn("b1", "c"), bn("b2", "b1"),
             act("l", "b2", activation=LINEAR), act("a", "l"), act("l2", "a", activation=LINEAR)]  # fmt: skip
    ((run,), left) = folded(nodes, {"l2"})
    assert (run.nodes, left) == (("p1", "p2", "c", "b1", "b2", "l", "a", "l2"), [])
    assert run.layers[0].config.padding == ((1, 2), (4, 0))


def test_no_more_are_folded_than_models_have() -> None:
    """Each goes over all of a kernel: a file with a large one and many of them would take hours."""
    nodes = [conv("c"), bn("n0", "c"), *(bn(f"n{number}", f"n{number - 1}") for number in range(1, 18))]
    (run,), left = folded(nodes, {"n17"})
    assert run.nodes == ("c", *(f"n{number}" for number in range(16)))
    assert reasons(left) == {
        "n16": "16 normalizations before it are part of the convolution already",
        "n17": "it follows no convolution, but n16, which is left as it is",
    }


def test_what_is_about_weights_is_dropped_with_a_normalization_and_kept_without() -> None:
    about = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "kernel_constraint": "non_neg",
             "bias_constraint": "non_neg"}  # fmt: skip
    ((run,), _) = folded([conv("c", "x", **about), act("a", "c")], {"a"})
    assert run.layers[0].config == convserve.Conv2D(3, 2, activation="relu", **about)
    ((run,), _) = folded([conv("c", "x", trainable=False, **about), bn("b", "c")], {"b"})
    assert run.layers[0].config == convserve.Conv2D(3, 2, trainable=False)


@pytest.mark.parametrize(
    ("nodes", "outputs", "runs", "left", "words"),
    [
        ([conv("c", "x"), bn("b", "c"), other("y", "c", "b")], "y", [("c",)], "b", "c, whose output others read too"),
        ([conv("c", "x"), bn("b", "c"), act("a", "b"), other("y", "a", "b")], "y", [("c", "b")], "a", "b, whose"),
        ([conv("c", "x"), bn("b", "c")], "cb", [("c",)], "b", "c, whose output the model returns too"),
        ([conv("c", "x", "y"), bn("b", "c")], "b", [("c",)], "b", "c, which is called at several places"),
        ([conv("c", "x"), bn("b", "c", "c")], "b", [("c",)], "b", "it is called at several places"),
        ([conv("c", "x"), conv("d", "x"), act("a", "c", "d")], "a", [("c",), ("d",)], "a", "it is called at several"),
        ([conv("c", "x", activation="elu"), bn("b", "c")], "b", [("c",)], "b", "activation 'elu' already"),
        ([conv("c", "x", activation="elu"), act("a", "c")], "a", [("c",)], "a", "activation 'elu' already"),
        ([conv("c", "x"), act("a", "c"), bn("b", "a")], "b", [("c", "a")], "b", "activation 'relu' already"),
        ([conv("c", "x", activity_regularizer="l2"), bn("b", "c")], "b", [("c",)], "b", "an activity_regularizer"),
        ([conv("c", "x", activity_regularizer="l2"), act("a", "c")], "a", [("c",)], "a", "an activity_regularizer"),
        ([conv("c", "x"), bn("b", "c", axis=1)], "b", [("c",)], "b", "axis 1 is not that of the"),
        ([conv("c", "x", data_format="channels_first"), bn("b", "c", axis=3)], "b", [("c",)], "b", "axis 3 is not"),
        ([conv("c", "x"), bn("b", "c", beta=np.ones(4))], "b", [("c",)], "b", "convolution before it 3 filters"),
        ([conv("c", "x"), bn("b", "c", variance=np.full(3, -1.0))], "b", [("c",)], "b", "weights are not finite"),
        ([conv("c", "x", dtype="float16"), bn("b", "c", gamma=np.full(3, 1e9))], "b", [("c",)], "b", "in float16"),
        ([conv("c", "x", dtype="mixed_float16"), bn("b", "c", dtype="float32")], "b", [("c",)], "b", "in float16"),
        ([conv("c", "x", dtype="bfloat16"), act("a", "c", dtype="float32")], "a", [("c",)], "a", "computes in float32"),
        ([pad("p", "x"), conv("c", "p", padding="same")], "c", [("c",)], "p", "pads with 'same'"),
        ([pad("p", "x"), conv("c", "p"), other("y", "p", "c")], "y", [("c",)], "p", "not exactly one layer"),
        ([pad("p", "x"), conv("c", "p")], "pc", [("c",)], "p", "not exactly one layer"),
        ([pad("p", "x"), other("y", "p")], "y", [], "p", "no convolution follows it, but y (Add)"),
        ([pad("p", "x", padding=ZeroPadding(((0, 0), (0, 1)), "channels_first")), conv("c", "p")], "c", [("c",)], "p",
         "it pads channels_first"),
        ([pad("p", "x", padding=ZeroPadding(((0, 0), (0, 2**40)))), conv("c", "p")], "c", [("c",)], "p", "amounts"),
        ([other("y", "x"), act("a", "y")], "a", [], "a", "it follows no convolution, but y (Add)"),
        ([other("y", "x"), bn("b", "y")], "b", [], "b", "it follows no convolution"),
        ([bn("b", "x")], "b", [], "b", "it follows no convolution, but x"),
        ([Node("t", ("x",), None, "Conv2DTranspose"), bn("b", "t")], "b", [], "b", "it follows t (Conv2D"),
        ([bn("b")], "b", [], "b", "it follows no convolution"),
    ],
)  # fmt: skip
def test_what_would_change_something_else_is_left_with_its_reason(
    nodes: list[Node], outputs: str, runs: Any, left: str, words: str
) -> None:
    made, remaining = folded(nodes, set(outputs))
    assert names(made) == runs
    assert words in reasons(remaining)[left]
    for run in made:
        if len(run.nodes) == 1:  # the very layer
            (node,) = (node for node in nodes if node.name == run.nodes[0])
            assert run.layers is node.operation


def test_weights_that_a_server_draws_are_not_normalized() -> None:
    drawn = Node("c", ("x",), (convserve.Layer(convserve.Conv2D(3, 2)),), "Conv2D")
    _, left = folded([drawn, bn("b", "c")], {"b"})
    assert reasons(left) == {"b": "the convolution before it has no weights yet, but draws them"}


@pytest.mark.parametrize("axis", [1, -3, None])
def test_channels_first(axis: int | None) -> None:
    nodes = [conv("c", "x", data_format="channels_first"), bn("b", "c", axis=axis)]
    assert names(folded(nodes, {"b"})[0]) == [("c", "b")]


def test_a_separable_convolution_is_padded_at_its_first_and_normalized_at_its_last() -> None:
    arrays = [RNG.normal(size=shape) for shape in ((2, 2, 1), (1, 2, 3), (3,))]
    chain = tuple(convserve.Layer(*each) for each in convolutions("SeparableConv1D", {"filters": 3, "kernel_size": 2},
                                                                  arrays))  # fmt: skip
    nodes = [pad("p", "x", padding=ZeroPadding(((0, 0), (1, 1)))), Node("s", ("p",), chain, "SeparableConv1D"),
             bn("b", "s", axis=2), act("a", "b", activation=activations.Softmax(2))]  # fmt: skip
    ((run,), _) = folded(nodes, {"a"})
    assert run.nodes == ("p", "s", "b", "a")
    first, last = (each.config for each in run.layers)
    assert (first.padding, last.padding) == (((0, 0), (1, 1)), "valid")
    assert (first.activation, last.activation) == (LINEAR, activations.Softmax(3))
    assert not first.use_bias
    _, left = folded([nodes[1], bn("b", "s", axis=3)], {"b"})
    assert "axis 3" in reasons(left)["b"]


def test_runs_that_only_follow_each_other_are_joined() -> None:
    nodes = [pad("p", "x"), conv("c1", "p"), bn("b1", "c1"), conv("c2", "b1"), act("a2", "c2"), conv("c3", "a2"),
             bn("b3", "c3"), other("y", "b3", "x"), conv("c4", "y"), conv("c5", "c4"), conv("c6", "c4")]  # fmt: skip
    runs, left = folded(nodes, {"c5", "c6"})
    assert not left
    chains = joined(runs, nodes, {"c5", "c6"})
    assert names(chains) == [("p", "c1", "b1", "c2", "a2", "c3", "b3"), ("c4",), ("c5",), ("c6",)]
    assert [len(chain.layers) for chain in chains] == [3, 1, 1, 1]
    assert names(joined(runs, nodes, {"c5", "c6", "b1"})) == [("p", "c1", "b1"), ("c2", "a2", "c3", "b3"), ("c4",),
                                                              ("c5",), ("c6",)]  # fmt: skip
    # What is before a run or behind it may have been left.
    nodes = [conv("c1", "x"), act("a1", "c1"), bn("b1", "a1"), conv("c2", "b1")]
    runs, _ = folded(nodes, {"c2"})
    assert names(joined(runs, nodes, {"c2"})) == [("c1", "a1"), ("c2",)]


def test_a_shared_convolution_is_not_joined() -> None:
    nodes = [conv("c1", "x"), conv("c2", "c1", "c2"), conv("c3", "c2")]
    runs, _ = folded(nodes, {"c3"})
    assert names(joined(runs, nodes, {"c3"})) == [("c1",), ("c2",), ("c3",)]


def test_graphs_that_cannot_be_come_to_an_end() -> None:
    for nodes in (
        [conv("c", "a"), act("a", "c")],
        [pad("p", "q"), pad("q", "p"), conv("c", "p")],
        [conv("c", "d"), conv("d", "c")],
        [conv("c", "c"), bn("b", "b")],
    ):
        runs, left = folded(nodes, set())
        chained = joined(runs, nodes, set())
        assert {name for run in runs for name in run.nodes} | {each.name for each in left} == {n.name for n in nodes}
        assert len({name for run in chained for name in run.nodes}) == sum(len(run.nodes) for run in chained)
