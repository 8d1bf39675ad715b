"""Files of arrays: NumPy's, never unpickled, and safetensors: state dictionaries, or single layers of convserve's."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import InvalidWeightsError, short_repr
from convserve.files.arrays import CONFIGURATION, read_header
from convserve.files.layers import configuration_in, configuration_of
from convserve.files.safetensors import SafetensorsFile
from convserve.importing.arrays.geometry import Geometry
from convserve.importing.arrays.named_array import NamedArray
from convserve.importing.imported import Contents
from convserve.importing.named_arrays import contents
from convserve.importing.untrusted import Budget, read_member, refusal
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array


def read_npy(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns the array in a `.npy` file, as a kernel without a layer's name."""
    data = file.read_bytes()
    budget.spend(len(data), "the array")
    return contents(file.stem, [_array("kernel", data)], geometry)


def read_npz(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns the arrays in a `.npz` archive."""
    arrays, odd = [], {}
    with zipfile.ZipFile(file) as archive:
        for member in (name for name in archive.namelist() if name.endswith(".npy")):
            name, data = member.removesuffix(".npy"), read_member(archive, member, budget)
            try:
                arrays.append(_array(name, data))
            except InvalidWeightsError as error:
                odd[name] = error
            except Exception as error:  # NumPy may raise anything for bytes that make no sense
                received = f"{short_repr(name)}: {error}"
                odd[name] = InvalidWeightsError.for_field("file", "arrays of numbers", received)
    tensors = {array.name: array.read for array in arrays}
    if CONFIGURATION in tensors:
        return _own_layer(file, configuration_of(str(tensors[CONFIGURATION]())), tensors, geometry)
    return contents(file.stem, arrays, geometry, odd=odd)


def _array(name: str, data: bytes) -> NamedArray:
    """Returns the array in the bytes of a `.npy` file; raises InvalidWeightsError if it is none of numbers."""
    opened = io.BytesIO(data)
    shape, fortran_order, dtype = read_header(opened)
    if dtype.hasobject:
        received = f"{short_repr(name)} of Python objects: a pickle, of which nothing was run"
        raise InvalidWeightsError.for_field("file", "arrays of numbers", received)
    elements = memoryview(data)[opened.tell() :]
    if math.prod(shape) * dtype.itemsize != elements.nbytes:
        expected = f"an array of shape {shape} and dtype {dtype}"
        raise InvalidWeightsError.for_field("file", expected, f"{short_repr(name)} of {elements.nbytes} bytes")
    order: Any = "F" if fortran_order else "C"
    return NamedArray(name, shape, dtype.name, lambda: np.frombuffer(elements, dtype).reshape(shape, order=order))


def read_safetensors(file: Path, budget: Budget, geometry: Geometry) -> Contents:
    """Returns what a safetensors file holds."""
    opened = SafetensorsFile(file)

    def tensor(name: str) -> Array:
        budget.spend(opened.tensors[name].nbytes, f"the tensor {short_repr(name)}")
        return opened.read(name)

    config = configuration_in(opened.metadata)
    if config is not None:
        return _own_layer(file, config, {name: partial(tensor, name) for name in opened.tensors}, geometry)
    arrays = [NamedArray(name, *each, partial(tensor, name)) for name, each in opened.tensors.items()]
    return contents(file.stem, arrays, geometry, file_format=opened.metadata.get("format"))


def _own_layer(file: Path, config: Conv2D, tensors: Mapping[str, Callable[[], Array]], geometry: Geometry) -> Contents:
    """Returns the layer in a file that `save_layer` wrote."""
    geometry.check_none()
    if "kernel" not in tensors:
        raise refusal("a layer with its kernel", f"the tensors {short_repr(list(tensors))}")
    return Contents(
        file.stem, [("", Layer(config, *(tensors[name]() for name in ("kernel", "bias") if name in tensors)))]
    )
