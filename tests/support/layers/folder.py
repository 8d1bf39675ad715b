"""A store's folder with small layers, for the tests that look into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convserve import Conv2D, Layer
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.store import LayerStore

PLENTY = 2**30
CONFIG = Conv2D(2, 1, data_format="channels_last", dtype="float32", name="stem", kernel_regularizer="l2").with_seed(7)
LAYER = Layer(CONFIG, np.float32([[[[1, 2], [3, 4]]]]), np.float32([5, 6]))
OTHER = Layer(CONFIG, np.float32([[[[-1, 2], [3, 4]]]]), np.float32([5, 6]))
KEY = LAYER.digest


def opened(folder: Path, memory_bytes: int = 0) -> LayerStore:
    """Returns a store that by default keeps nothing in memory, so that everything is read."""
    return LayerStore(memory_bytes, LayerFiles(folder, PLENTY))


def file_of(folder: Path, layer: Layer = LAYER) -> Path:
    return folder / "layers" / f"{layer.digest.hex()}.safetensors"


def quarantined(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (folder / "quarantine").iterdir())


def is_layer(found: Layer | None) -> bool:
    return found is not None and found.config == CONFIG and found.digest == KEY
