"""Files as Keras writes them, made without Keras, so that a test can put into them what Keras would not."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

KERNEL = np.arange(36, dtype=np.float32).reshape(3, 3, 2, 2)
BIAS = np.float32([5, 6])
WEIGHTS = {"0": KERNEL, "1": BIAS}


def conv2d(name: str, **config: Any) -> dict[str, Any]:
    """Returns the entry of a Conv2D that KERNEL and BIAS fit."""
    given = {"name": name, "filters": 2, "kernel_size": [3, 3], "data_format": "channels_last", "dtype": "float32"}
    return {"module": "keras.layers", "class_name": "Conv2D", "config": given | config, "registered_name": None}


def model(name: str, *layers: Mapping[str, Any], kind: str = "Functional") -> dict[str, Any]:
    """Returns the configuration of a model."""
    module = {"Functional": "keras.src.models.functional", "Sequential": "keras"}[kind]
    return {"module": module, "class_name": kind, "config": {"name": name, "layers": list(layers)}}


def weights_file(groups: Mapping[str, Mapping[str, Any]], names: Mapping[str, str] | None = None) -> bytes:
    """Returns a model.weights.h5: arrays by name for each group, and the layers' names beside them."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for group, arrays in groups.items():
            variables = opened.create_group(f"{group}/vars")
            for name, array in arrays.items():
                variables.create_dataset(name, data=array)
            if names and group in names:
                variables.attrs["name"] = names[group]
    return file.getvalue()


def write_archive(
    path: Path,
    config: Mapping[str, Any] | bytes,
    weights: bytes | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    others: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a `.keras` archive; the weights are by default those of one Conv2D."""
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps(metadata or {}))
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", weights_file({"layers/conv2d": WEIGHTS}) if weights is None else weights)
        for name, data in (others or {}).items():
            archive.writestr(name, data)
    return path


def write_h5(path: Path, config: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes a whole model as an `.h5` file: for each layer of the outermost model, arrays by their names."""
    with h5py.File(path, "w") as opened:
        opened.attrs["model_config"] = json.dumps(config)
        root = opened.create_group("model_weights")
        for layer, arrays in groups.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group.create_dataset(name, data=array)
    return path
