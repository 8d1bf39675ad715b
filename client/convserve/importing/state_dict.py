"""State dictionaries in safetensors files, PyTorch's and JAX', and single layers as convserve writes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from convserve import safetensors_files
from convserve.errors import shown
from convserve.importing.imported import Contents
from convserve.importing.named_arrays import Geometry, NamedArray, contents
from convserve.importing.untrusted import Budget, refusal
from convserve.layer import Layer
from convserve.layer_files import configuration_in
from convserve.tensor import Array


def read(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what a safetensors file holds."""
    head = safetensors_files.read_head(file)

    def tensor(name: str) -> Array:
        budget.spend(head.tensors[name].nbytes, f"the tensor {shown(name)}")
        return head.tensors[name].read(file)

    config = configuration_in(head.metadata)
    if config is not None:
        geometry.check_none()
        if "kernel" not in head.tensors:
            raise refusal("a layer with its kernel", f"the tensors {shown(list(head.tensors))}")
        weights = {name: tensor(name) for name in ("kernel", "bias") if name in head.tensors}
        return Contents(file.stem, [("", Layer(config, **weights))])
    arrays = [NamedArray(name, each.shape, each.dtype, partial(tensor, name)) for name, each in head.tensors.items()]
    return contents(file.stem, arrays, geometry)
