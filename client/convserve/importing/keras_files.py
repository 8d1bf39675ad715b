"""Keras' files: `.keras` archives and whole-model `.h5` files, read without Keras.

`keras.saving.load_model` builds every layer of a model, and has more than once run code that a file brought along. Here
only JSON is parsed and only arrays are read. A `.keras` archive keeps a layer's weights under its class' name and
number, and from Keras 3.9 its name beside them, which is compared; an `.h5` file keeps them under the layer's name.

Keras 2.12 to 2.15 number otherwise, and 2.12 to 2.14 call the group of a model's layers otherwise; Keras 3 itself finds
the weights of some of these files only.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.importing import hdf5, keras_config
from convserve.importing.hdf5 import Hdf5File
from convserve.importing.imported import Contents, Skipped
from convserve.importing.keras_config import Conv2DEntry, Step
from convserve.importing.named_arrays import Geometry
from convserve.importing.untrusted import Budget, read_member, refusal
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array

_Weights = tuple[Array | None, Array | None]
_OLD_GROUP = "_layer_checkpoint_dependencies"
_BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino", "cntk", "theano")


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
            hint = ", but a model.weights.npz, which is a pickle" if "model.weights.npz" in names else hint
            raise refusal("config.json and model.weights.h5 in a .keras archive", f"one without them{hint}")
        metadata = keras_config.parse(
            read_member(archive, "metadata.json", budget) if "metadata.json" in names else "{}"
        )
        version = metadata.get("keras_version")
        _check_version(version)
        model = keras_config.parse(read_member(archive, "config.json", budget))
        with hdf5.opened(read_member(archive, "model.weights.h5", budget), budget) as opened:
            return _contents(model, file, _ArchivedWeights(opened, str(version)).of)


def read_h5(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what an `.h5` file of a whole model holds."""
    geometry.check_none()
    with hdf5.opened(file.read_bytes(), budget) as opened:
        text = opened.text("", "model_config")
        if text is None or not opened.has("model_weights"):
            expected = "a whole model, as model.save writes it"
            raise refusal(expected, "an .h5 file without model_config, perhaps of weights alone")
        model = keras_config.parse(text)
        said = {}
        for name in ("keras_version", "backend"):
            places = (opened.text("", name), opened.text("model_weights", name), model.get(name))
            said[name] = next((value for value in places if value is not None), None)
        _check_version(said["keras_version"])
        backend = said["backend"]
        if backend is not None and backend not in _BACKENDS:
            raise refusal(f"weights of one of the backends {', '.join(_BACKENDS)}", f"backend={short_repr(backend)}")
        return _contents(model, file, _NamedWeights(opened, model, file.stem, is_flipped=backend == "theano").of)


def _check_version(version: Any) -> None:
    """Raises InvalidRequestError for a file of a version whose layout is another, or is not known."""
    if version is not None and str(version).partition(".")[0] not in ("2", "3"):
        received = f"keras_version={short_repr(version)}: load it in Keras 2, or whatever wrote it, and save it anew"
        raise refusal("a file of Keras 2 or 3", received)


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
            layer = Layer(config, *weights_of(entry))
        except InvalidRequestError:
            raise  # of the whole file
        except InvalidArgumentError as error:
            contents.skip(entry.name, "Conv2D", error.under(f"{entry.name}."))
            continue
        except _NoWeightsError as error:
            # A layer that models share is saved with the first of them, as are the layers of a model that they share.
            known = next((shared[identity] for identity in entry.identities if identity in shared), None)
            if known is None or known.config != config:
                contents.skipped.append(Skipped(entry.name, "Conv2D", str(error)))
                continue
            layer = known
        shared |= dict.fromkeys(entry.identities, layer)
        contents.layers.append((entry.name, layer))
    return contents


class _ArchivedWeights:
    """Where a `.keras` archive keeps the weights of each Conv2D."""

    def __init__(self, opened: Hdf5File, version: str) -> None:
        self._opened = opened
        self._members = functools.cache(opened.members)  # a model of a thousand layers has its groups listed once
        self._is_old = version.startswith("2.") or opened.has(_OLD_GROUP)

    def of(self, entry: Conv2DEntry) -> _Weights:
        """Returns the weights of a Conv2D."""
        place = f"{self._old_place(entry.steps) if self._is_old else _place(entry.steps)}/vars"
        kernel = self._opened.array(f"{place}/0")
        if kernel is None:
            # Keras loses the identity of what it first meets in a nested model, and then cannot load the file itself.
            why = ": it is one with a layer before it, and only an .h5 file would say with which"
            raise _NoWeightsError(f"the file has no weights for it at {place}{why if entry.identities else ''}")
        name = self._opened.text(place, "name")
        if name is not None and name != entry.names[-1]:
            raise _NoWeightsError(f"the weights at {place} are those of {short_repr(name)}")
        others = set(self._members(place)) - {"0", "1"}
        if others:
            raise _NoWeightsError(f"there is more than a kernel and a bias at {place}: {', '.join(sorted(others))}")
        return kernel, self._opened.array(f"{place}/1")

    def _old_place(self, steps: Sequence[Step]) -> str:
        """Returns the group of a layer in an archive of Keras 2.

        2.12 and 2.13 count a layer with weights twice, 2.14 and 2.15 don't count one that was saved before. All make
        groups for just those layers that are saved there, with numbers that grow.
        """
        place = ""
        for step in steps:
            group = f"{place}{'layers' if self._members(f'{place}layers') else _OLD_GROUP}"
            named = re.compile(rf"{re.escape(step.snake_case)}(?:_(\d+))?")
            numbers = sorted(int(found[1] or 0) for found in map(named.fullmatch, self._members(group)) if found)
            if len(numbers) != step.saved[step.snake_case]:
                raise _NoWeightsError(
                    f"the file does not tell which of {len(numbers)} groups {step.snake_case} in {group} is its own of "
                    f"{step.saved[step.snake_case]} layers: load the model in Keras 2, and save it as .h5"
                )
            if step.rank is None:
                raise _NoWeightsError(f"the file has no weights for it in {group}")
            place = f"{group}/{_numbered(step.snake_case, numbers[step.rank])}/"
        return place.removesuffix("/")


def _place(steps: Sequence[Step]) -> str:
    """Returns the group of a layer in an archive of Keras 3."""
    return "/".join(f"layers/{_numbered(step.snake_case, step.number)}" for step in steps)


def _numbered(snake_case: str, number: int) -> str:
    return f"{snake_case}_{number}" if number else snake_case


class _NamedWeights:
    """Where an `.h5` file keeps the weights of each Conv2D.

    A layer of the outermost model has a group of its own. All weights of a nested model are in that model's one group,
    where names of layers tell them apart. Where they leave a doubt, a layer is left out rather than given another's.
    """

    def __init__(self, opened: Hdf5File, model: Mapping[str, Any], file_name: str, *, is_flipped: bool) -> None:
        self._opened = opened
        # Theano convolves, the others correlate; Keras 2 turned kernels over as it loaded.
        self._is_flipped = is_flipped
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
            raise _NoWeightsError(f"the file has no array {short_repr(named['kernel'])}, which weight_names lists")
        others = set(named) - {"kernel", "bias"}
        if others:
            raise _NoWeightsError(f"it has more than a kernel and a bias: {', '.join(sorted(others))}")
        return kernel[::-1, ::-1] if self._is_flipped else kernel, bias

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
