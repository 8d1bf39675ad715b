"""How a layer is named on the command line: a stored one by a name or its digest, any other by its file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import convserve
from convserve.cli.options.weights import Weights, layer_for
from convserve.errors import InvalidRequestError, LayerNotFoundError, PermissionDeniedError, short_repr
from convserve.layers.arguments import standard_data_format
from convserve.layers.classic_kernels import CLASSIC_KERNELS
from convserve.layers.plan import output_channels
from convserve.protocol.name_messages import ABSENT

REFERENCE = "a name, or a digest in hexadecimal, of which the first 8 characters suffice where they are unique"
"""The help text of an option that `find` reads."""

EXPECT = (
    "move the name only if this is there: a digest, or enough of its beginning, another name for the layer, or "
    "'absent' for a name that there is not"
)
"""The help text of an option that `expected` reads."""

FILE = "a .keras or .h5 model or what `convserve layers get -o` wrote (FILE:NAME picks one of its layers)"
"""The help text of an option that `chain` reads, beside `REFERENCE` and `CLASSIC`."""

CLASSIC = (
    "a classic kernel such as sobel-x, for as many channels as the first input has (`conv2d` takes it as --kernel)"
)
"""Likewise."""

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_FILE = re.compile(r"(?P<file>.+\.(keras|h5|hdf5|safetensors|npz))(:(?P<name>.+))?", re.IGNORECASE)
_WHOLE = 64  # digits of a digest
_MAX_LISTED = 20  # layers of a file that an error names


def find(client: convserve.Client, reference: str) -> convserve.StoredLayer:
    """Returns the stored layer that a name or a digest means.

    Raises LayerNotFoundError if there is none, and InvalidRequestError if several digests begin so.
    """
    try:
        return client.layer(reference)
    except LayerNotFoundError:
        if not _DIGEST.fullmatch(reference):
            raise
    if len(reference) == _WHOLE:
        return client.layer(digest=reference)
    layers = [layer for layer in client.layers() if layer.digest.hex().startswith(reference)]
    if len(layers) > 1:
        received = f"{short_repr(reference)}, with which {len(layers)} digests begin"
        raise InvalidRequestError.for_field("layer", "more of the digest", received)
    if not layers:
        text = f"Expected a stored layer. Received {short_repr(reference)}: no name, and no digest begins so."
        raise LayerNotFoundError(text, layer=reference)
    return layers[0]


def find_alone(client: convserve.Client, reference: str) -> convserve.StoredLayer:
    """Returns what `find` does; of a classic kernel or a file, which `chain` takes, it is said how they are given."""
    try:
        return find(client, reference)
    except LayerNotFoundError as error:
        if reference in CLASSIC_KERNELS:
            hint = f"The classic kernel of this name is --kernel {reference}."
        elif _FILE.fullmatch(reference):
            hint = "Of a file, `convserve layers import` stores the layers; `convserve batch` takes it as it is."
        else:
            raise
        raise LayerNotFoundError(f"{error} {hint}", layer=reference) from error


def expected(client: convserve.Client, reference: str | None) -> bytes | str | None:
    """Returns what `expect=` takes for the option's value: a name, a digest, or that there is to be no such name.

    Raises as `find`.
    """
    if reference is None or reference == ABSENT or (len(reference) == _WHOLE and _DIGEST.fullmatch(reference)):
        return reference  # of a digest the layer need not be stored any more
    return find(client, reference).digest


def chain(
    client: convserve.Client, references: Sequence[str], channels_of: Callable[[str], int], *, put: bool = True
) -> list[convserve.Layer | convserve.StoredLayer]:
    """Returns the layers that names, digests, files and names of classic kernels mean, to be applied in this order.

    A stored layer may have the name of a classic kernel, and then is meant. `channels_of` tells the channels of the
    inputs, by their data format. Unless layers are to be `put`, none is sent, and no weights are fetched. Raises as
    `_find_or_read` and `channels_of` do.
    """
    layers: list[convserve.Layer | convserve.StoredLayer] = []
    for reference in references:
        try:
            layers.append(_find_or_read(client, reference, put))
        except LayerNotFoundError as error:
            if reference not in CLASSIC_KERNELS:
                near = difflib.get_close_matches(reference, CLASSIC_KERNELS, n=1)
                if not near:
                    raise
                text = f"{error} Did you mean the classic kernel {near[0]!r}?"
                raise LayerNotFoundError(text, layer=reference) from error
            before = layers[-1].config if layers else None
            data_format = before.data_format if before else standard_data_format(None)
            channels = output_channels(before) if before else channels_of(data_format)
            layers.append(layer_for({"data_format": data_format}, Weights(reference), channels))
    return layers


def _find_or_read(client: convserve.Client, reference: str, put: bool) -> convserve.Layer | convserve.StoredLayer:
    """Returns the layer that a name, a digest or a file means, stored, and with its weights at hand.

    A server that is started again without its layers can then be given it again. Raises as `find`, and
    InvalidRequestError for a file that cannot be read or does not say which layer.
    """
    match = _FILE.fullmatch(reference)
    if match is not None and Path(match["file"]).exists():
        layer = _read(match["file"], match["name"])
        return client.put(layer) if put else layer
    try:
        stored = find(client, reference)
    except LayerNotFoundError as error:
        if match is None:
            raise
        text = f"Expected a file that is there, or a stored layer. Received {short_repr(reference)}, which is neither."
        raise LayerNotFoundError(text, layer=reference) from error
    if put:
        with suppress(PermissionDeniedError):  # who may only compute cannot give it again either
            stored.weights()
    return stored


def _read(file: str, name: str | None) -> convserve.Layer:
    from convserve import importing
    from convserve.files.layers import LAYER_SUFFIXES, holds_a_layer

    if file.lower().endswith(LAYER_SUFFIXES) and not holds_a_layer(file):
        received = f"{short_repr(file)}, which has weights alone"
        hint = "`convserve layers import` stores them with their strides and padding, and --layer takes the name."
        expected = "a file that says the layer's configuration"
        raise InvalidRequestError.for_field("layer", expected, received, hint)
    layers = importing.read(file, prefix="").layers
    if name is None and len(layers) == 1:
        return next(iter(layers.values()))
    if name not in layers:
        listed = ", ".join(list(layers)[:_MAX_LISTED]) + (", ..." if len(layers) > _MAX_LISTED else "")
        expected = f"one layer of the file, as {short_repr(f'{file}:NAME')} ({listed or 'none'})"
        received = short_repr(file if name is None else f"{file}:{name}")
        raise InvalidRequestError.for_field("layer", expected, received)
    return layers[name]
