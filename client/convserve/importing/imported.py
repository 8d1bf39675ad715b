"""What an import finds: layers under names that a server's store takes, and what was skipped and why."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from convserve.errors import InvalidArgumentError, InvalidConfigurationError
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import MAX_NAME, check_name

NOT_FOLDED = "not a Conv2D, but part of what the model computes: with fold_batch_norm=True it becomes part of one"
"""Why what surrounds convolutions is skipped where it was not asked for."""
NOT_NAMED = "not folded: name it as batch_norm in the configuration of the layer that it follows"
"""Why a BatchNorm of a file that does not say what follows what is skipped."""
_LEFT = "left as it is: "
_HOWS = {
    NOT_FOLDED: "fold_batch_norm=True (--fold-batch-norm) makes them part of the layers where it can",
    NOT_NAMED: "batch_norm in a layer's configuration makes one part of it",
    _LEFT: "they are left as they are, for the reasons given",
}


def left_as_it_is(reason: str) -> str:
    """Returns why something is skipped that surrounds a convolution, and could not become part of it."""
    return f"{_LEFT}{reason}"


class NotImportedError(Exception):
    """Why something in a file cannot be a layer; nothing need be wrong with it."""


class Skipped(NamedTuple):
    """Something in a file that is not imported, and why."""

    name: str
    """Its name in the file, after the names of the models around it."""
    kind: str
    """Its class, or "array of rank N"."""
    reason: str


@dataclass(frozen=True)
class Imported:
    """What `read` found."""

    layers: dict[str, Layer]
    """Every Conv2D with its weights, in the file's order, by the name to store it under."""
    skipped: list[Skipped]
    assumed: dict[str, str] = field(default_factory=dict)
    """What neither the file nor the caller says of a layer and was taken for its defaults, by the same names."""

    @property
    def note(self) -> str:
        """What the layers in a row lack of what the model computes, or nothing."""
        for reason, how in _HOWS.items():
            kinds = Counter(each.kind for each in self.skipped if each.reason.startswith(reason))
            if self.layers and kinds:
                listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
                return f"the model computes {listed} beside these layers, so they alone give other numbers: {how}"
        return ""

    def __repr__(self) -> str:
        """Returns the numbers; weights would fill a screen."""
        note = f"; {self.note}" if self.note else ""
        return f"<Imported {len(self.layers)} layers, {len(self.skipped)} skipped{note}>"


@dataclass
class Contents:
    """What a reader found, under the file's own names."""

    model: str  # the model's name, or the file's where it has none
    layers: list[tuple[str, Layer]] = field(default_factory=list)  # with names; "" for the only one of a file without
    skipped: list[Skipped] = field(default_factory=list)
    odd: list[InvalidArgumentError] = field(default_factory=list)  # what is wrong with layers that were skipped for it
    assumed: dict[str, str] = field(default_factory=dict)  # by layer, what was taken for its defaults

    def skip(self, name: str, kind: str, why: str | Exception) -> None:
        """Lists what is skipped. A layer with wrong weights is odd, but does not stand in the way of others."""
        if isinstance(why, InvalidArgumentError) and not isinstance(why, InvalidConfigurationError):
            self.odd.append(why)
        self.skipped.append(Skipped(name, kind, why if isinstance(why, str) else " ".join(str(why).split())))

    def named(self, prefix: str | None) -> Imported:
        """Returns the same under names for a store, after a prefix; None for the model's name, "" for nothing.

        Raises what is wrong with the first layer if no other is sound, and InvalidRequestError for a wrong prefix.
        """
        if prefix is None:
            before = self.model
        else:
            before = prefix.rstrip("/") if isinstance(prefix, str) else prefix
            if before != "":
                check_name(before, "prefix")
        if self.odd and not self.layers:
            raise self.odd[0]
        layers: dict[str, Layer] = {}
        assumed: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for name, layer in self.layers:
            path = (before, name) if name or prefix is None else (before, self.model)
            free = wanted = fitting_name("/".join(filter(None, path)))
            while free in layers:  # another layer's name became the same one
                numbers[wanted] = numbers.get(wanted, 1) + 1
                ending = f"_{numbers[wanted]}"
                free = wanted[: MAX_NAME - len(ending)] + ending
            layers[free] = layer
            if name in self.assumed:
                assumed[free] = self.assumed[name]
        skipped = [entry._replace(name="/".join(filter(None, (before, entry.name)))) for entry in self.skipped]
        return Imported(layers, skipped, assumed)


def fitting_name(text: str) -> str:
    """Returns a text as a name that LayerService takes; one that it takes already is not changed.

    Other characters become "_", two dots become one, and what is too long is cut and ends in a digest of all of it.
    """
    name = re.sub(r"[^A-Za-z0-9._/-]", "_", text)
    name = re.sub(r"\.{2,}", ".", name)
    name = re.sub(r"^[^A-Za-z0-9]+", "", name) or "layer"
    if len(name) <= MAX_NAME:
        return name
    ending = "-" + hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return name[: MAX_NAME - len(ending)] + ending
