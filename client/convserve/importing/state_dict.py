"""State dictionaries in safetensors files, PyTorch's and JAX', and single layers as convserve writes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from convserve.errors import short_repr
from convserve.files.layers import configuration_in
from convserve.files.safetensors import SafetensorsFile
from convserve.importing.arrays.geometry import Geometry
from convserve.importing.arrays.named_array import NamedArray
from convserve.importing.imported import Contents
from convserve.importing.named_arrays import contents
from convserve.importing.untrusted import Budget, refusal
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array


def read(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what a safetensors file holds."""
    opened = SafetensorsFile(file)

    def tensor(name: str) -> Array:
        budget.spend(opened.tensors[name].nbytes, f"the tensor {short_repr(name)}")
        return opened.read(name)

    config = configuration_in(opened.metadata)
    if config is not None:
        geometry.check_none()
        if "kernel" not in opened.tensors:
            raise refusal("a layer with its kernel", f"the tensors {short_repr(list(opened.tensors))}")
        weights = {name: tensor(name) for name in ("kernel", "bias") if name in opened.tensors}
        return Contents(file.stem, [("", Layer(config, **weights))])
    arrays = [
        NamedArray(name, tensor_info.shape, tensor_info.dtype, partial(tensor, name))
        for name, tensor_info in opened.tensors.items()
    ]
    return contents(file.stem, arrays, geometry, file_format=opened.metadata.get("format"))
