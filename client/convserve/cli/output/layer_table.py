"""How stored layers are shown: a table for many, lines for one, a document for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf import json_format

from convserve.cli.output import report
from convserve.display.units import bytes_text
from convserve.errors import InvalidConfigurationError
from convserve.layers import messages
from convserve.layers.plan import parameter_count
from convserve.layers.weight_shapes import weight_bytes, weight_rows
from convserve.tensors.codec import Shape

if TYPE_CHECKING:
    from convserve import Conv2D, Layer, NameVersion, StoredLayer

_HEADINGS = ("name", "digest", "kernel", "strides", "padding", "activation", "weights")


class Row(NamedTuple):
    """A layer with its weights, as far as it is shown."""

    name: str | None  # a name that leads to it
    names: tuple[str, ...]  # all of them
    digest: str  # in hexadecimal
    config: Conv2D
    kernel_shape: Shape

    @classmethod
    def of_stored(cls, layer: StoredLayer) -> Row:
        """Returns a stored layer's row."""
        return cls(layer.name, layer.names, layer.digest.hex(), layer.config, layer.kernel_shape)

    @classmethod
    def of_layer(cls, name: str, layer: Layer) -> Row:
        """Returns the row of a layer that has its weights."""
        assert layer.kernel is not None  # noqa: S101 (an import finds no other)
        return cls(name, (name,), layer.digest.hex(), layer.config, layer.kernel.shape)

    @property
    def weight_bytes(self) -> int:
        """How many bytes its weights take."""
        return weight_bytes(self.config, self.kernel_shape)


def print_table(rows: Sequence[Row]) -> None:
    """Prints a line for each layer, and the sum."""
    if rows:
        report.print_table(_HEADINGS, map(_cells, rows))
    print(total_text(rows))


def total_text(rows: Sequence[Row]) -> str:
    """Returns "2 layers, 18.4 kB of weights"; a layer that several names lead to is counted once."""
    distinct = {row.digest: row.weight_bytes for row in rows}
    return f"{len(distinct)} layer{'' if len(distinct) == 1 else 's'}, {bytes_text(sum(distinct.values()))} of weights"


def layer_rows(row: Row) -> Iterable[tuple[str, str]]:
    """Returns labels and texts that describe one layer."""
    return [
        ("name", ", ".join(row.names)),
        ("digest", row.digest),
        ("layer", repr(row.config)),
        *((label, str(text)) for label, text in weight_rows(row.config, row.kernel_shape)),
    ]


def document(row: Row) -> dict[str, Any]:
    """Returns a layer as JSON; its configuration in the contract's form, and in Keras' if that has one."""
    return {
        "name": row.name,
        "names": row.names,
        "digest": row.digest,
        "kernel_shape": row.kernel_shape,
        "parameters": parameter_count(row.config, row.kernel_shape),
        "weight_bytes": row.weight_bytes,
        "keras_config": _keras_config(row.config),
        "config": json_format.MessageToDict(messages.to_message(row.config), preserving_proto_field_name=True),
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


def _cells(row: Row) -> tuple[str, ...]:
    config = row.config
    padding = config.padding
    amounts = padding if isinstance(padding, str) else ",".join(str(rows) for side in padding for rows in side)
    groups = f" in {config.groups} groups" if config.groups > 1 else ""
    dilated = f" dilated {_pair(config.dilation_rate)}" if max(config.dilation_rate) > 1 else ""
    return (
        ", ".join(row.names) or "-",
        row.digest[:12],
        f"{row.kernel_shape}{groups}{dilated}",
        _pair(config.strides),
        amounts,
        config.activation.keras_name,
        bytes_text(row.weight_bytes),
    )


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]},{pair[1]}"
