"""Keras' files: `.keras` archives and whole-model `.h5` files, read without Keras.

`keras.saving.load_model` builds every layer of a model, and has more than once run code that a file brought along. Here
only JSON is parsed and only arrays are read. A `.keras` archive keeps a layer's weights under its class' name and
number, and from Keras 3.9 its name beside them, which is compared; an `.h5` file keeps them under the layer's name.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, short_repr
from convserve.importing import hdf5, keras_config
from convserve.importing.hdf5 import Hdf5File
from convserve.importing.imported import Contents, Skipped
from convserve.importing.keras_config import Conv2DEntry
from convserve.importing.named_arrays import Geometry
from convserve.importing.untrusted import Budget, read_member, refusal
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array

_Weights = tuple[Array | None, Array | None]


class _NoWeightsError(Exception):
    """A layer's weights are not in the file, or cannot be told from another's."""


def read_archive(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what a `.keras` archive holds."""
    geometry.check_none()
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if "config.json" not in names or "model.weights.h5" not in names:
            torch = any(name.endswith("data.pkl") for name in names)
            hint = ", but a data.pkl as PyTorch's archives of pickles do, of which none was run" if torch else ""
            raise refusal("config.json and model.weights.h5 in a .keras archive", f"one without them{hint}")
        model = keras_config.parse(read_member(archive, "config.json", budget))
        with hdf5.opened(read_member(archive, "model.weights.h5", budget), budget) as weights:
            return _contents(model, file, lambda entry: _archived_weights(weights, entry))


def read_h5(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what an `.h5` file of a whole model holds."""
    geometry.check_none()
    with hdf5.opened(file.read_bytes(), budget) as opened:
        text = opened.text("", "model_config")
        if text is None or not opened.has("model_weights"):
            expected = "a whole model, as model.save writes it"
            raise refusal(expected, "an .h5 file without model_config, perhaps of weights alone")
        model = keras_config.parse(text)
        return _contents(model, file, _NamedWeights(opened, model, file.stem).of)


def _contents(model: Mapping[str, Any], file: Path, weights_of: Callable[[Conv2DEntry], _Weights]) -> Contents:
    contents = Contents(keras_config.name_of(model) or file.stem)
    shared: dict[str, Layer] = {}
    for entry in keras_config.entries(model, contents.model):
        if isinstance(entry, Skipped):
            contents.skipped.append(entry)
            continue
        try:
            config = keras_config.configuration(entry)
        except InvalidConfigurationError as error:
            contents.skipped.append(Skipped(entry.name, "Conv2D", " ".join(str(error).split())))
            continue
        try:
            weights = weights_of(entry)
        except _NoWeightsError as error:
            # A layer that models share is saved with the first of them, as are the layers of a model that they share.
            layer = next((shared[identity] for identity in entry.identities if identity in shared), None)
            if layer is None or layer.config != config:
                contents.skipped.append(Skipped(entry.name, "Conv2D", str(error)))
                continue
        else:
            try:
                layer = Layer(config, *weights)
            except InvalidArgumentError as error:
                raise error.under(f"{entry.name}.") from None
        shared |= dict.fromkeys(entry.identities, layer)
        contents.layers.append((entry.name, layer))
    return contents


def _archived_weights(opened: Hdf5File, entry: Conv2DEntry) -> _Weights:
    """Returns the weights of a Conv2D in a `.keras` archive."""
    place = f"{entry.group}/vars"
    kernel = opened.array(f"{place}/0")
    if kernel is None:
        # Keras loses the identity of what it first meets in a nested model, and then cannot load the file itself.
        why = ": it is one with a layer before it, and only an .h5 file would say with which"
        raise _NoWeightsError(f"the file has no weights for it at {place}{why if entry.identities else ''}")
    name = opened.text(place, "name")
    if name is not None and name != entry.names[-1]:
        raise _NoWeightsError(f"the weights at {place} are those of {short_repr(name)}")
    return kernel, opened.array(f"{place}/1")


class _NamedWeights:
    """Where an `.h5` file keeps the weights of each Conv2D.

    A layer of the outermost model has a group of its own. All weights of a nested model are in that model's one group,
    where names of layers tell them apart. Where they leave a doubt, a layer is left out rather than given another's.
    """

    def __init__(self, opened: Hdf5File, model: Mapping[str, Any], file_name: str) -> None:
        self._opened = opened
        # A model of a thousand layers has its list of names read once.
        self._listed: dict[str, dict[str, dict[str, str]]] = {}
        entries = keras_config.entries(model, keras_config.name_of(model) or file_name)
        self._claims = Counter(self._place(entry) for entry in entries if isinstance(entry, Conv2DEntry))

    def of(self, entry: Conv2DEntry) -> _Weights:
        """Returns the weights of a Conv2D."""
        if entry.config.get("lora_rank"):
            raise _NoWeightsError("its LoRA is apart from its kernel in an .h5 file: save the model as .keras")
        place = self._place(entry)
        if place is None:
            raise _NoWeightsError(f"the file has no weights for it in the group {short_repr(entry.names[1])}")
        if self._claims[place] > 1:
            raise _NoWeightsError("the file does not tell its weights from another's: save the model as .keras")
        group, owner = place
        named = self._owners(group)[owner]
        kernel = self._opened.array(f"model_weights/{group}/{named['kernel']}")
        bias = self._opened.array(f"model_weights/{group}/{named['bias']}") if "bias" in named else None
        if kernel is None:
            raise refusal("an array for every name in weight_names", f"none for {short_repr(named['kernel'])}")
        return kernel, bias

    def _place(self, entry: Conv2DEntry) -> tuple[str, str] | None:
        """Returns the group and, in it, what stands before "/kernel" in the name of the layer's kernel."""
        group, path = entry.names[1], "/".join(entry.names)
        owners = self._owners(group)
        if len(entry.names) == 2 and len(owners) == 1:
            return group, next(iter(owners))
        fitting = [owner for owner in owners if path == owner or path.endswith(f"/{owner}")]
        if not fitting:
            last = entry.names[-1]
            fitting = [owner for owner in owners if owner == last or owner.endswith(f"/{last}")]
            fitting = fitting if len(fitting) == 1 else []
        return (group, max(fitting, key=len)) if fitting else None

    def _owners(self, group: str) -> dict[str, dict[str, str]]:
        """Returns the layers in a group that have a kernel, each with the names of its arrays."""
        if group not in self._listed:
            owners: dict[str, dict[str, str]] = {}
            place = f"model_weights/{group}"
            for name in self._opened.texts(place, "weight_names") if self._opened.has(place) else ():
                owner, _, array = name.removesuffix(":0").rpartition("/")
                owners.setdefault(owner, {})[array] = name
            self._listed[group] = {owner: arrays for owner, arrays in owners.items() if "kernel" in arrays}
        return self._listed[group]
