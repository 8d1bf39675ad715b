"""A model's graph as Keras keeps it, and the layers in it that a server can compute in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import keras

from convserve.errors import InvalidArgumentError, InvalidRequestError, short_repr
from convserve.keras.layers.steps import Step, served, step_of, weights_of
from convserve.models.folding import Left, Node, Run, folded, joined
from convserve.tensors.codec import Array

MAX_LAYERS = 64
"""Of one call: what a server takes by default."""

_INPUT = "the model's input"
_TRAINS = "it is called with training=True, and normalizes by the statistics of the batch"
_MODELS = (keras.Sequential, keras.Function)


def is_model(layer: Any) -> bool:
    """Returns whether a layer is a model whose layers are known."""
    return isinstance(layer, keras.Model) and isinstance(layer, _MODELS)


def unwrapped(layer: Any) -> Any:
    """Returns what a wrapper wraps, through all of them, and any other layer as it is."""
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    return layer


def shared_by_models(model: Any) -> set[int]:
    """Returns the ids of the layers that several of the models have that a model consists of, itself included."""
    models: dict[int, Any] = {}

    def visit(layer: Any) -> None:
        layer = unwrapped(layer)
        if is_model(layer) and id(layer) not in models:
            models[id(layer)] = layer
            for each in layer.layers:
                visit(each)

    visit(model)
    times = Counter(id(layer) for each in models.values() for layer in each.layers)
    return {key for key, count in times.items() if count > 1}


def check_model(model: Any) -> None:
    """Raises InvalidRequestError for another model than a Sequential or Functional one."""
    if not is_model(model):
        expected = "a Sequential or Functional model, whose layers are known"
        hint = "In one of your own, make RemoteConv2D and its siblings yourself."
        raise InvalidRequestError.for_field("model", expected, short_repr(model), hint)


class Call(NamedTuple):
    """One call of a layer in a model."""

    layer: Any  # or a function of `keras.ops`
    inputs: tuple[int, ...]  # the tensors that it reads, each by a number
    output: int | None  # the tensor that it returns; None where it is not one
    is_plain: bool = True  # whether it gets one tensor and nothing else
    trains: bool = False  # whether it is called with `training=True`


def calls_of(model: Any) -> tuple[list[Call], set[int]]:
    """Returns the calls of a Sequential or Functional model in an order that can be computed, and what it returns."""
    if isinstance(model, keras.Sequential):
        found = [Call(layer, (index,), index + 1) for index, layer in enumerate(model.layers)]
        return found, {len(found)}
    nodes = [node for _, at_depth in sorted(model._nodes_by_depth.items(), reverse=True) for node in at_depth]
    return [_call(node) for node in nodes if not node.is_input], {id(tensor) for tensor in model.outputs}


def _call(node: Any) -> Call:
    arguments, outputs = node.arguments, node.outputs
    is_plain = len(arguments.args) == len(outputs) == 1 and isinstance(arguments.args[0], keras.KerasTensor)
    is_plain = is_plain and all(value is None for value in arguments.kwargs.values())
    inputs = tuple(id(tensor) for tensor in node.input_tensors)
    output = id(outputs[0]) if len(outputs) == 1 else None
    return Call(node.operation, inputs, output, is_plain, arguments.kwargs.get("training") is True)


def arrays_of(layer: Any, step: Step) -> list[Array]:
    """Returns the weights of a built layer."""
    return [keras.ops.convert_to_numpy(weight) for weight in weights_of(layer, step)]


def runs_of(
    model: Any, refusal: Callable[[Any], str], shared: Collection[int]
) -> tuple[list[tuple[Any, ...]], list[Left]]:
    """Returns the layers of a model that one call computes, where they are several, and what else might have been.

    `refusal` is what `refusals` returns, and `shared` what `shared_by_models` does for the model that this is part of.
    """
    calls, returned = calls_of(model)
    by_name = {call.layer.name: call.layer for call in calls}
    steps = {name: _step(layer, refusal) for name, layer in by_name.items()}
    steps |= {call.layer.name: None for call in calls if not call.is_plain}
    producer = {call.output: call.layer.name for call in calls}
    inputs: dict[str, tuple[str, ...]] = dict.fromkeys(by_name, ())
    for call in calls:
        inputs[call.layer.name] += tuple(producer.get(tensor, _INPUT) for tensor in call.inputs)
    for name, layer in by_name.items():
        if id(layer) in shared:  # another model calls it too, where other layers follow it
            inputs[name] *= 2
    activated_here = {name for name, layer in by_name.items() if not served(getattr(layer, "activation", None))}
    ends = {producer[tensor] for tensor in returned if tensor in producer} | activated_here
    for name, above in inputs.items():
        if (step := steps[name]) is not None and (step.convolves or step.kind.startswith("ZeroPadding")):
            # Keras casts what goes from one to the other.
            ends |= {each for each in above if (other := steps.get(each)) is not None and other.policy != step.policy}
    nodes = [_node(by_name[name], steps[name], above) for name, above in inputs.items()]
    runs, left = folded(nodes, ends)
    chains = joined(runs, nodes, ends)
    too_long = {name for chain in chains for name in _cuts(chain, runs)}
    chains = joined(runs, nodes, ends | too_long) if too_long else chains
    left = [_with_reason(each, inputs[each.name], activated_here) for each in left]
    for call in calls:
        if call.trains and isinstance(call.layer, keras.layers.BatchNormalization):
            left.append(Left(call.layer.name, type(call.layer).__name__, _TRAINS))
    return [tuple(by_name[name] for name in chain.nodes) for chain in chains if len(chain.nodes) > 1], left


def _with_reason(left: Left, above: tuple[str, ...], activated_here: set[str]) -> Left:
    if len(above) == 1 and above[0] in activated_here:
        return Left(left.name, left.kind, f"it follows {above[0]}, whose activation is applied in this process")
    return left


def _step(layer: Any, refusal: Callable[[Any], str]) -> Step | None:
    """Returns the step of a layer that may share a call with others."""
    step = step_of(layer) if isinstance(layer, keras.Layer) and layer.built else None
    # A loss of its output, which Keras adds where the layer is called.
    if step is None or layer.activity_regularizer is not None or (step.convolves and refusal(layer)):
        return None
    return step


def _node(layer: Any, step: Step | None, inputs: tuple[str, ...]) -> Node:
    if step is not None:
        try:
            return step.node(layer.name, inputs, arrays_of(layer, step))
        except InvalidArgumentError:  # what a server does not compute
            pass
    return Node(layer.name, inputs, None, type(layer).__name__)


def _cuts(chain: Run, runs: list[Run]) -> list[str]:
    """Returns the layers behind which a chain is cut so that no part has too many layers."""
    parts, found, length = {run.nodes[0]: run for run in runs}, [], 0
    for name in chain.nodes:
        if (part := parts.get(name)) is None:
            continue
        if length and length + len(part.layers) > MAX_LAYERS:
            found.append(chain.nodes[chain.nodes.index(name) - 1])
            length = 0
        length += len(part.layers)
    return found
