"""Where Keras' files keep a layer's weights.

A `.keras` archive keeps them under its class' name and number, and from Keras 3.9 its name beside them, which is
compared; an `.h5` file keeps them under the layer's name. Keras 2.12 to 2.15 number otherwise, and 2.12 to 2.14 call
the group of a model's layers otherwise; Keras 3 itself finds the weights of some of these files only.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from convserve.errors import short_repr
from convserve.importing.hdf5 import Hdf5File
from convserve.importing.imported import NotImportedError
from convserve.importing.keras_models.entries import NORMALIZATIONS, Entry, Step
from convserve.layers.keras_layers import kernels
from convserve.models.operations import weight_names
from convserve.tensors.codec import Array

WeightsOf = Callable[[Entry], dict[str, Array]]
"""Returns the weights of a layer by name, in Keras' order."""
_OLD_GROUP = "_layer_checkpoint_dependencies"


def names_of(entry: Entry) -> tuple[str, ...]:
    """Returns the names of a layer's weights, in Keras' order; the bias is always among them."""
    return weight_names(entry.kind, {**entry.config, "use_bias": True})


def _told(entry: Entry) -> str:
    """Returns the names of a layer's weights for a text."""
    names = names_of(entry)
    if entry.kind in NORMALIZATIONS:
        return " and ".join(names)
    return "a kernel and a bias" if len(names) == 2 else "two kernels and a bias"


class ArchivedWeights:
    """Where a `.keras` archive keeps the weights of each layer."""

    def __init__(self, opened: Hdf5File, version: str) -> None:
        self._opened = opened
        self._members = functools.cache(opened.members)  # a model of a thousand layers has its groups listed once
        self._is_old = version.startswith("2.") or opened.has(_OLD_GROUP)

    def of(self, entry: Entry) -> dict[str, Array]:
        """Returns the weights of a layer by name; raises NotImportedError."""
        place = f"{self._old_place(entry.steps) if self._is_old else _place(entry.steps)}/vars"
        names = names_of(entry)
        first = self._opened.array(f"{place}/0")
        if first is None:
            # Keras loses the identity of what it first meets in a nested model, and then cannot load the file itself.
            why = ": it is one with a layer before it, and only an .h5 file would say with which"
            raise NotImportedError(f"the file has no weights for it at {place}{why if entry.identities else ''}")
        name = self._opened.text(place, "name")
        if name is not None and name != entry.names[-1]:
            raise NotImportedError(f"the weights at {place} are those of {short_repr(name)}")
        others = set(self._members(place)) - {str(number) for number in range(len(names))}
        if others:
            raise NotImportedError(f"there is more than {_told(entry)} at {place}: {', '.join(sorted(others))}")
        arrays = [first, *(self._opened.array(f"{place}/{number}") for number in range(1, len(names)))]
        return {name: array for name, array in zip(names, arrays, strict=True) if array is not None}

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
                raise NotImportedError(
                    f"the file does not tell which of {len(numbers)} groups {step.snake_case} in {group} is its own of "
                    f"{step.saved[step.snake_case]} layers: load the model in Keras 2, and save it as .h5"
                )
            if step.rank is None:
                raise NotImportedError(f"the file has no weights for it in {group}")
            place = f"{group}/{_numbered(step.snake_case, numbers[step.rank])}/"
        return place.removesuffix("/")


def _place(steps: Sequence[Step]) -> str:
    """Returns the group of a layer in an archive of Keras 3."""
    return "/".join(f"layers/{_numbered(step.snake_case, step.number)}" for step in steps)


def _numbered(snake_case: str, number: int) -> str:
    return f"{snake_case}_{number}" if number else snake_case


class NamedWeights:
    """Where an `.h5` file keeps the weights of each layer.

    A layer of the outermost model has a group of its own. All weights of a nested model are in that model's one group,
    where names of layers tell them apart. Where they leave a doubt, a layer is left out rather than given another's.
    """

    def __init__(self, opened: Hdf5File, read: Iterable[Entry], *, is_flipped: bool) -> None:
        """Takes the layers whose weights are going to be asked for."""
        self._opened = opened
        # Theano convolves, the others correlate; Keras 2 turned kernels over as it loaded.
        self._is_flipped = is_flipped
        self._owners = functools.cache(self._listed)  # a model of a thousand layers has its list of names read once
        self._claims = Counter(self._place(entry) for entry in read)

    def of(self, entry: Entry) -> dict[str, Array]:
        """Returns the weights of a layer by name; raises NotImportedError."""
        if entry.config.get("lora_rank"):
            raise NotImportedError("its LoRA is apart from its kernel in an .h5 file: save the model as .keras")
        if self._is_flipped and kernels(entry.kind) != ("kernel",) and entry.kind not in NORMALIZATIONS:
            raise NotImportedError(
                f"it is not known how Theano's {entry.kind} has its kernel: save the model in Keras 2"
            )
        place = self._place(entry)
        if place is None:
            raise NotImportedError(f"the file has no weights for it in the group {short_repr(entry.names[1])}")
        if self._claims[place] > 1:
            raise NotImportedError("the file does not tell its weights from another's: save the model as .keras")
        group, owner = place
        named = _by_todays_names(entry, self._owners(group)[owner])
        others = set(named) - set(names_of(entry))
        if others:
            raise NotImportedError(f"it has more than {_told(entry)}: {', '.join(sorted(others))}")
        arrays = {}
        for name in names_of(entry):
            if name in named:
                array = self._opened.array(f"model_weights/{group}/{named[name]}")
                if array is None:
                    raise NotImportedError(f"the file has no array {short_repr(named[name])}, which weight_names lists")
                arrays[name] = array
        if self._is_flipped and "kernel" in arrays:
            kernel = arrays["kernel"]
            arrays["kernel"] = kernel[::-1] if kernel.ndim == 3 else kernel[::-1, ::-1]
        return arrays

    def _place(self, entry: Entry) -> tuple[str, str] | None:
        """Returns the group and, in it, what stands before "/kernel" in the name of the layer's kernel."""
        group, path, needed = entry.names[1], "/".join(entry.names), set(names_of(entry)) - {"bias"}
        owners = [owner for owner, own in self._owners(group).items() if needed <= _by_todays_names(entry, own).keys()]
        if len(entry.names) == 2 and len(owners) == 1:
            return group, owners[0]
        fitting = [owner for owner in owners if path == owner or path.endswith(f"/{owner}")]
        if not fitting:
            last = entry.names[-1]
            fitting = [owner for owner in owners if owner == last or owner.endswith(f"/{last}")]
            fitting = fitting if len(fitting) == 1 else []
        return (group, max(fitting, key=len)) if fitting else None

    def _listed(self, group: str) -> dict[str, dict[str, str]]:
        """Returns the layers in a group, each with the names of its arrays."""
        owners: dict[str, dict[str, str]] = {}
        place = f"model_weights/{group}"
        for name in self._opened.texts(place, "weight_names") if self._opened.has(place) else ():
            owner, _, array = name.removesuffix(":0").rpartition("/")
            owners.setdefault(owner, {})[array] = name
        return owners


def _by_todays_names(entry: Entry, named: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of a layer's arrays by those of Keras 3: Keras 2 calls a depthwise kernel by its whole name."""
    if kernels(entry.kind) == ("depthwise",) and entry.kind not in NORMALIZATIONS:
        return {"kernel" if name == "depthwise_kernel" else name: path for name, path in named.items()}
    return dict(named)
