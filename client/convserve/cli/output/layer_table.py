"""How stored layers are shown: a table for many, lines for one, a document for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format

from convserve.cli.output import report
from convserve.display.units import bytes_text, counted
from convserve.errors import InvalidConfigurationError
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import parameter_count
from convserve.layers.weight_shapes import weight_bytes, weight_rows
from convserve.protocol.name_messages import NameVersion
from convserve.protocol.stored_layers import COLUMNS, StoredLayerBase, cells


def under_name(layer: Layer | StoredLayerBase, name: str) -> StoredLayerBase:
    """Returns a layer that has its weights, with this name alone."""
    assert layer.kernel_shape is not None  # noqa: S101 (an import finds no other)
    return StoredLayerBase(layer.digest, layer.config, layer.kernel_shape, name, (name,))


def print_table(layers: Sequence[StoredLayerBase]) -> None:
    """Prints a line for each layer, and the sum."""
    if layers:
        report.print_table(COLUMNS, map(cells, layers))
    print(total_text(layers))


def total_text(layers: Iterable[StoredLayerBase]) -> str:
    """Returns "2 layers, 18.4 kB of weights"; a layer that several names lead to is counted once."""
    distinct = {layer.digest: weight_bytes(layer.config, layer.kernel_shape) for layer in layers}
    return f"{counted(len(distinct), 'layer')}, {bytes_text(sum(distinct.values()))} of weights"


def rows(layer: StoredLayerBase) -> Iterable[tuple[str, str]]:
    """Returns labels and texts that describe one layer."""
    return [
        ("name", ", ".join(layer.names)),
        ("digest", layer.digest.hex()),
        ("layer", repr(layer.config)),
        *((label, str(text)) for label, text in weight_rows(layer.config, layer.kernel_shape)),
    ]


def document(layer: StoredLayerBase) -> dict[str, Any]:
    """Returns a layer as JSON; its configuration in the contract's form, and in Keras' if that has one."""
    return {
        "name": layer.name,
        "names": layer.names,
        "digest": layer.digest.hex(),
        "kernel_shape": layer.kernel_shape,
        "parameters": parameter_count(layer.config, layer.kernel_shape),
        "weight_bytes": weight_bytes(layer.config, layer.kernel_shape),
        "keras_config": _keras_config(layer.config),
        "config": json_format.MessageToDict(messages.to_message(layer.config), preserving_proto_field_name=True),
    }


def print_versions(versions: Sequence[NameVersion]) -> None:
    """Prints a line for each version of a name, the newest first."""
    rows = []
    for version in reversed(versions):
        moved = "not known" if version.moved_at is None else f"{version.moved_at:%Y-%m-%d %H:%M:%S} UTC"
        state = "current" if version.is_current else ""
        gone = "" if version.is_stored else "not stored any more"
        rows.append((str(version.number), version.digest.hex()[:12], moved, ", ".join(filter(None, (state, gone)))))
    report.print_table(("version", "digest", "moved there", ""), rows)


def version_document(version: NameVersion) -> dict[str, Any]:
    """Returns a version of a name as JSON."""
    return {
        "version": version.number,
        "digest": version.digest.hex(),
        "moved_at": None if version.moved_at is None else version.moved_at.isoformat(),
        "stored": version.is_stored,
        "current": version.is_current,
    }


def _keras_config(config: Conv2D) -> dict[str, Any] | None:
    try:
        return config.to_keras_config()
    except InvalidConfigurationError:
        return None  # such as of explicit padding
