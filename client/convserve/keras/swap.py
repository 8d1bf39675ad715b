"""Whole models: their convolutions made remote, alone or several in one call, what became of which, and back."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Any

import keras

from convserve._rpc.channel import Target
from convserve._rpc.credentials import TLS
from convserve.errors import InvalidRequestError, short_repr
from convserve.keras.choice import Only, refusals, within
from convserve.keras.copying import Copy
from convserve.keras.graph import check_model, runs_of, shared_by_models
from convserve.keras.layers.remote_calls import granted
from convserve.keras.layers.remote_chain import RemoteChain
from convserve.keras.layers.remote_convolutions import LOCAL, REMOTE
from convserve.keras.layers.remote_layer import RemoteLayer
from convserve.keras.layers.steps import convolution_kind
from convserve.models.folding import Left
from convserve.protocol.call_arguments import checked_timeout

log = logging.getLogger("convserve")

_reports: weakref.WeakKeyDictionary[Any, Report] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Report:
    """What `to_remote` did.

    Attributes:
        remote: The layers that a server computes, by name, those of one call together.
        local: What stayed local: each with `name`, `kind`, which is its class, and `reason`.
    """

    remote: tuple[tuple[str, ...], ...]
    local: tuple[Left, ...]

    def __str__(self) -> str:
        """Returns a line of numbers, and one for each layer that stayed local."""
        layers = sum(map(len, self.remote))
        lines = [f"layers computed remotely: {layers}, calls: {len(self.remote)}, left local: {len(self.local)}"]
        return "\n  ".join([*lines, *(f"{each.name} ({each.kind}): {each.reason}" for each in self.local)])


def to_remote(
    model: Any,
    server: Target | None = None,
    timeout: float | None = None,
    *,
    fuse: bool = False,
    only: Only = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
) -> Any:
    """Returns a copy of a model whose convolutions a server computes, with the same weights and names.

    Conv2D, DepthwiseConv2D, SeparableConv2D, Conv1D, DepthwiseConv1D and SeparableConv1D become RemoteConv2D and its
    siblings. Nested models and wrappers such as TimeDistributed are gone through. Subclasses stay as they are. Of a
    model with remote layers a copy is made as of what `to_local` returns. The optimizer's state is not copied, nor are
    weights that a class of your own has beside its graph.

    What became remote, what stayed local and why, `convserve.keras.report` says of the model that is returned, and the
    logger "convserve" at level INFO.

    Args:
        model: A Sequential or Functional model.
        server: The target of a `convserve.Client`; None for that of the environment, as there.
        timeout: Seconds that one layer's call may take; None for the client's default.
        fuse: Whether layers that only follow each other become one RemoteChain, for one call in the place of several:
            convolutions, ZeroPadding2D before one, BatchNormalization and an activation layer behind one. `to_local`
            gives the single layers back. `get_weights` and `set_weights` of the model that is returned have the
            order of the given model's. `weights`, and a model that was loaded, have that of the chains, which for a
            model with branches is another.
        only: Which convolutions become remote, where not all are to: a collection of their names, a function of a
            layer, or the least floating-point operations that one takes for one sample, which suits slow connections.
        token: As for RemoteConv2D.
        tls: As for RemoteConv2D.

    Raises:
        InvalidRequestError: If the model is of another kind, `only` names no convolution of it, or as for RemoteConv2D.
    """
    checked_timeout(timeout)
    server = granted(server, token, tls)
    check_model(model)
    model = without_remote(model)
    refusal, shared, names = refusals(only, model), shared_by_models(model), {layer.name for layer in within(model)}
    remote: list[tuple[str, ...]] = []
    local: list[Left] = []
    where = {"server": server, "timeout": timeout}

    def runs(of: Any) -> list[tuple[Any, ...]]:
        found, left = runs_of(of, refusal, shared)
        local.extend(left)
        return found

    def chain(layers: tuple[Any, ...], copies: tuple[Any, ...]) -> Any:
        remote.append(tuple(layer.name for layer in layers))
        name = f"{layers[0].name}_to_{layers[-1].name}"
        while name in names:
            name += "_chain"
        names.add(name)
        return RemoteChain(copies, name=name, **where)

    def swapped(layer: Any) -> tuple[Any, dict[str, Any]] | None:
        if not convolution_kind(layer):
            if isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.Wrapper):
                local.extend(_hidden(layer))
            return None
        reason = refusal(layer)
        if reason:
            local.append(Left(layer.name, type(layer).__name__, reason))
            return None
        remote.append((layer.name,))
        return REMOTE[type(layer)], where

    made = Copy(swapped, runs if fuse else None, chain).model(model)
    _reports[made] = Report(tuple(remote), tuple(local))
    log.info("%s: %s", made.name, _reports[made])
    return made


def report(model: Any) -> Report:
    """Returns what became remote of the model that `to_remote` returned, what stayed local, and why.

    It is logged, too, at level INFO of the logger "convserve". Raises InvalidRequestError for another model; one that
    was loaded has no report.
    """
    try:
        return _reports[model]
    except (KeyError, TypeError):
        raise InvalidRequestError.for_field("model", "what to_remote returned", short_repr(model)) from None


def to_local(model: Any) -> Any:
    """Returns a copy of a model in which every remote layer is Keras' own again, with the same weights and name.

    Raises InvalidRequestError for another model than a Sequential or Functional one.
    """
    check_model(model)
    return Copy(lambda layer: (LOCAL[type(layer)], {}) if type(layer) in LOCAL else None).model(model)


def without_remote(model: Any) -> Any:
    """Returns a model as it is, or as `to_local` returns it if it has remote layers."""
    return to_local(model) if any(isinstance(layer, RemoteLayer) for layer in within(model)) else model


def _hidden(layer: Any) -> list[Left]:
    """Returns the convolutions that are layers of a layer."""
    reason = f"It is within {layer.name} ({type(layer).__name__}), whose own code calls it: make a remote layer there."
    found = layer._flatten_layers(include_self=False)
    return [Left(each.name, type(each).__name__, reason) for each in found if convolution_kind(each)]
