"""Keras' files: `.keras` archives and whole-model `.h5` files, read without Keras.

`keras.saving.load_model` builds every layer of a model, and has more than once run code that a file brought along. Here
only JSON is parsed and only arrays are read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.importing import hdf5
from convserve.importing.imported import NOT_FOLDED, Contents, NotImportedError, left_as_it_is
from convserve.importing.keras_models.entries import (
    NORMALIZATIONS,
    SURROUNDING,
    Entry,
    checked,
    entries,
    name_of,
    parse,
)
from convserve.importing.keras_models.graph import Position, UnclearError, connections
from convserve.importing.keras_models.weights import ArchivedWeights, NamedWeights, WeightsOf, names_of
from convserve.importing.untrusted import Budget, read_member, refusal
from convserve.layers.arguments import DTYPE_POLICIES, INITIALIZERS, standard_dtype_policy
from convserve.layers.conv2d import Conv2D
from convserve.layers.keras_layers import configurations, convolutions
from convserve.layers.layer import Layer
from convserve.models.folding import Node, Operation, folded
from convserve.models.operations import PASS_THROUGH, BatchNormalization, activation_of, zero_padding_of
from convserve.tensors.codec import Array

_BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino", "cntk", "theano")

_MOST_EPSILON = 1e30
_TRAINS = "it, or a model around it, is called with training=True"

_Found = Operation | str | InvalidArgumentError
"""What a layer computes, why it is skipped, or what is wrong with its weights."""


def read_archive(file: Path, budget: Budget, fold_batch_norm: bool) -> Contents:
    """Returns what a `.keras` archive holds."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if "config.json" not in names or "model.weights.h5" not in names:
            torch = any(name.endswith("data.pkl") for name in names)
            hint = ", but a data.pkl as PyTorch's archives of pickles do, of which none was run" if torch else ""
            hint = ", but a model.weights.npz, which is a pickle" if "model.weights.npz" in names else hint
            raise refusal("config.json and model.weights.h5 in a .keras archive", f"one without them{hint}")
        metadata = parse(read_member(archive, "metadata.json", budget) if "metadata.json" in names else "{}")
        version = metadata.get("keras_version")
        model = _Model(parse(read_member(archive, "config.json", budget)), file, fold_batch_norm, version)
        with hdf5.opened(read_member(archive, "model.weights.h5", budget), budget) as opened:
            return model.contents(ArchivedWeights(opened, str(version)).of)


def read_h5(file: Path, budget: Budget, fold_batch_norm: bool) -> Contents:
    """Returns what an `.h5` file of a whole model holds."""
    with hdf5.opened(file.read_bytes(), budget) as opened:
        text = opened.text("", "model_config")
        if text is None or not opened.has("model_weights"):
            expected = "a whole model, as model.save writes it"
            raise refusal(expected, "an .h5 file without model_config, perhaps of weights alone")
        config = parse(text)
        said = {}
        for name in ("keras_version", "backend"):
            places = (opened.text("", name), opened.text("model_weights", name), config.get(name))
            said[name] = next((value for value in places if value is not None), None)
        model, backend = _Model(config, file, fold_batch_norm, said["keras_version"]), said["backend"]
        if backend is not None and backend not in _BACKENDS:
            raise refusal(f"weights of one of the backends {', '.join(_BACKENDS)}", f"backend={short_repr(backend)}")
        return model.contents(NamedWeights(opened, model.with_weights, is_flipped=backend == "theano").of)


class _Model:
    """A model in a file, and what of it has been read."""

    _weights_of: WeightsOf

    def __init__(self, config: Mapping[str, Any], file: Path, fold_batch_norm: bool, version: Any) -> None:
        """Raises InvalidRequestError for a version whose files have another form, or that is not known."""
        if version is not None and str(version).partition(".")[0] not in ("2", "3"):
            received = (
                f"keras_version={short_repr(version)}: load it in Keras 2, or whatever wrote it, and save it anew"
            )
            raise refusal("a file of Keras 2 or 3", received)
        self._config = config
        self._is_keras_2 = str(version).startswith("2.")
        self._contents = Contents(name_of(config) or file.stem)
        self._entries = entries(config, self._contents.model)
        self._folds = fold_batch_norm
        # By identity, what was read of a layer that is shared: with the first of them its weights are saved.
        self._shared: dict[str, tuple[tuple[str, list[Conv2D]], dict[str, Array]]] = {}

    @property
    def with_weights(self) -> list[Entry]:
        """The layers whose weights are read."""
        kinds = NORMALIZATIONS if self._folds else ()
        return [entry for entry in self._entries if entry.is_convolution or (not entry.reason and entry.kind in kinds)]

    def contents(self, weights_of: WeightsOf) -> Contents:
        """Reads all that can be read."""
        self._weights_of = weights_of
        read: dict[Position, _Found] = {entry.position: self._read(entry) for entry in self._entries}
        chains = {position: found for position, found in read.items() if isinstance(found, tuple)}
        gone, reasons = self._fold(read, chains) if self._folds else (set(), {})
        for entry in self._entries:
            found = read[entry.position]
            if entry.position in chains:
                chain = chains[entry.position]
                parts = ("",) if len(chain) == 1 else ("/depthwise", "/pointwise")
                layers = zip(parts, chain, strict=True)
                self._contents.layers += [(f"{entry.name}{part}", layer) for part, layer in layers]
            elif entry.position not in gone:
                why = found if isinstance(found, str | InvalidArgumentError) else reasons[entry.position]
                self._contents.skip(entry.name, entry.kind, why)
        return self._contents

    def _read(self, entry: Entry) -> _Found:
        """Returns what a layer computes, why it is skipped, or what is wrong with its weights."""
        if entry.reason:
            return entry.reason
        if not (self._folds or entry.is_convolution):
            return NOT_FOLDED if entry.kind in SURROUNDING else "not a Conv2D"
        try:
            if entry.is_convolution:
                return self._convolution(entry)
            if entry.kind in NORMALIZATIONS:
                return self._normalization(entry)
            config = checked(entry, is_keras_2=self._is_keras_2)
            return (
                zero_padding_of(entry.kind, config)
                or activation_of(entry.kind, config)
                or left_as_it_is("no Conv2D has it with these parameters")
            )
        except InvalidRequestError:
            raise  # of the whole file
        except (InvalidArgumentError, NotImportedError) as error:
            if entry.is_convolution and isinstance(error, InvalidArgumentError):
                return error if isinstance(error, InvalidConfigurationError) else error.under(f"{entry.name}.")
            reason = " ".join(str(error).split())
            return reason if entry.is_convolution else left_as_it_is(reason)

    def _convolution(self, entry: Entry) -> tuple[Layer, ...]:
        config = checked(entry, is_keras_2=self._is_keras_2)
        # Before weights are read: what is wrong with a configuration may show in its weights too.
        configs = configurations(entry.kind, config, 1, optional=INITIALIZERS)
        weights = list(self._weights(entry, configs).values())
        return tuple(Layer(*each) for each in convolutions(entry.kind, config, weights, optional=INITIALIZERS))

    def _normalization(self, entry: Entry) -> BatchNormalization:
        axis, epsilon = entry.config.get("axis", -1), entry.config.get("epsilon", 1e-3)
        if isinstance(axis, list) and len(axis) == 1:  # as Keras 2 writes it
            (axis,) = axis
        if not isinstance(axis, int):
            raise InvalidConfigurationError.for_field("axis", "an axis", short_repr(axis))
        if not isinstance(epsilon, float | int) or not 0 <= epsilon <= _MOST_EPSILON:
            raise InvalidConfigurationError.for_field(
                "epsilon", f"a number from 0 to {_MOST_EPSILON:g}", short_repr(epsilon)
            )
        weights = self._weights(entry, [])
        missing = [name for name in names_of(entry) if name not in weights]
        if missing:
            raise NotImportedError(f"the file has no {' and no '.join(missing)} for it")
        gamma, beta = weights.get("gamma"), weights.get("beta")
        return BatchNormalization(gamma, beta, weights["moving_mean"], weights["moving_variance"], float(epsilon), axis)

    def _weights(self, entry: Entry, configs: list[Conv2D]) -> dict[str, Array]:
        """Returns a layer's weights, wherever they are saved."""
        like = (entry.kind, configs)
        try:
            weights = self._weights_of(entry)
        except NotImportedError:
            # A layer that models share is saved with the first of them, as are the layers of a model that they share.
            known = next((self._shared[identity] for identity in entry.identities if identity in self._shared), None)
            if known is None or known[0] != like:
                raise
            weights = known[1]
        self._shared |= dict.fromkeys(entry.identities, (like, weights))
        return weights

    def _fold(
        self, read: Mapping[Position, _Found], chains: dict[Position, tuple[Layer, ...]]
    ) -> tuple[set[Position], dict[Position, str]]:
        """Puts into `chains` what each convolution becomes; returns what is part of one, and why the rest is left."""
        try:
            graph, outputs = connections(self._config)
        except UnclearError as error:
            return set(), dict.fromkeys(read, left_as_it_is(str(error)))
        dtypes: dict[Position, str | None] = {entry.position: _compute_dtype(entry.config) for entry in self._entries}
        nodes, reasons = [], {}
        for position, each in graph.items():
            found = read.get(position)
            operation = None if isinstance(found, str | InvalidArgumentError) else found
            if each.trains and (isinstance(operation, BatchNormalization) or (operation and each.kind in PASS_THROUGH)):
                operation, reasons[position] = None, left_as_it_is(_TRAINS)
            inputs = tuple(graph[other].label for other in each.reads)
            nodes.append(Node(each.label, inputs, operation, each.kind, dtypes.get(position)))
        positions = {each.label: position for position, each in graph.items()}
        runs, left = folded(nodes, {graph[position].label for position in outputs})
        gone = set()
        for run in runs:
            members = [positions[name] for name in run.nodes]
            (own,) = (position for position in members if position in chains)
            chains[own] = run.layers
            gone.update(members)
        for node in left:
            reason = "not a Conv2D" if node.kind in PASS_THROUGH else left_as_it_is(node.reason)
            reasons[positions[node.name]] = reason
        return gone, reasons


def _compute_dtype(config: Mapping[str, Any]) -> str | None:
    """Returns the dtype in which a layer computes; None where its configuration does not say so."""
    policy = config.get("dtype")
    if policy is None:
        return None
    try:
        return DTYPE_POLICIES[standard_dtype_policy(policy)][0]
    except (InvalidConfigurationError, AttributeError):
        return short_repr(policy)
