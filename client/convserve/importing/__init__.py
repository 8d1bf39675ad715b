"""Real weights out of files: every convolution of a Keras or ONNX model, a state dictionary, or arrays by name.

>>> from convserve import importing
>>> imported = importing.read("resnet50.keras")
>>> imported.layers["resnet50/conv1_conv"]
<Layer Conv2D(filters=64, kernel_size=(7, 7), strides=(2, 2), ...), kernel (7, 7, 3, 64), bias (64,)>
>>> for name, layer in imported.layers.items():
...     client.put(layer, name=name)

Nothing in a file is run, unpickled, or looked up outside of it. Neither Keras nor PyTorch is needed; h5py is for
`.keras` and `.h5`, safetensors and onnx for their own formats: `pip install 'convserve[import]'`. h5py runs in a
process of its own with a time limit, because some damaged files make libhdf5 loop or crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from convserve.errors import InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.files.reading import wrap_read_errors
from convserve.importing import array_files, keras_files, onnx_files
from convserve.importing.arrays.geometry import Geometry
from convserve.importing.imported import Contents, Imported, Skipped
from convserve.importing.untrusted import Budget, check_file, reason_in, refusal

__all__ = ["Imported", "Skipped", "read"]

_READERS: dict[str, tuple[str, Callable[..., Contents]]] = {
    ".keras": ("a .keras archive", keras_files.read_archive),
    ".h5": ("an .h5 file of a Keras model", keras_files.read_h5),
    ".hdf5": ("an .hdf5 file of a Keras model", keras_files.read_h5),
    ".npz": ("a .npz archive of arrays of numbers", array_files.read_npz),
    ".npy": ("a .npy file with an array of numbers", array_files.read_npy),
    ".safetensors": ("a .safetensors file", array_files.read_safetensors),
    ".onnx": ("an .onnx file with a serialized model", onnx_files.read),
}
_WHOLE_MODELS = (".keras", ".h5", ".hdf5", ".onnx")
"""Those that say what follows what, and so can be folded."""
# Whatever a file is called: TensorFlow up to 2.12 wrote HDF5 under the name of .keras.
_BY_FIRST_BYTES = {
    b"\x89HDF\r\n\x1a\n": {".keras": ".h5"},
    b"PK\x03\x04": {".h5": ".keras", ".hdf5": ".keras", ".npy": ".npz"},
    b"\x93NUMPY": {".npz": ".npy"},
}
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib")


def read(
    path: str | Path,
    *,
    prefix: str | None = None,
    config: Mapping[str, Mapping[str, Any] | None] | None = None,
    fold_batch_norm: bool = False,
    assume_defaults: bool = False,
    **parameters: Any,
) -> Imported:
    """Returns every convolution in a file, with its weights.

    Keras' others than Conv2D are read as `Layer.from_keras` takes them; a separable one as two layers, NAME/depthwise
    and NAME/pointwise. What is no such layer itself, or has something wrong, is skipped with the reason, and others are
    read all the same: subclasses, wrappers, quantized weights, arrays that don't fit, orders of axes that would have to
    be guessed.

    Args:
        path: One of
            `.keras` or `.h5`: a whole Keras model of Keras 2 or 3, nested models included; kernels of Theano's are
            turned over, as Keras 2 did;
            `.safetensors`: a state dictionary, in which each `NAME.weight` with four dimensions is taken for the kernel
            of a PyTorch Conv2d, or of an MLX one if the metadata's `format` is "mlx", and each `NAME.kernel` for one
            with Keras' and JAX' order of axes, with a `NAME.bias` where there is one; TensorFlow's "NAME/kernel:0" too;
            or a single layer, as `convserve layers get -o` writes it;
            `.npz`, `.npy`: arrays with such names, or a single one; or, in a `.npz`, a layer likewise;
            `.onnx`: a model, of which each Conv of rank 4 or 3 with constant weights becomes a layer that is
            `channels_first`; its files of external data have to be in the same folder.
            What is another of these by its first bytes is read as that.
        prefix: What stands before every name and a "/". None: the model's name, or the file's; "": nothing.
        config: For files of arrays, which don't have it: parameters of Conv2D by layer, under the name in the file or a
            pattern such as "layer1.*.conv2"; also in PyTorch's wording, such as {"conv1": {"stride": 2, "padding": 3}}.
            {} says that the defaults are right. `batch_norm` is the name of the BatchNorm behind a layer, in the file
            or beside the layer: it is folded into the layer, before the activation, with `epsilon` (by default 1e-5,
            and 1e-3 for arrays with Keras' names). None instead of parameters leaves a layer out, such as a transposed
            convolution, whose arrays look alike.
        assume_defaults: Whether strides are 1 and there is no padding where neither the file nor the caller says them.
            Else such layers are skipped if their arrays are PyTorch's or MLX', unless the kernel is 1x1. `assumed`
            lists what was assumed of each layer.
        fold_batch_norm: For whole models: whether a convolution takes over the BatchNormalization and the activation
            behind it and the zero padding before it, as far as each only follows the other. It then computes what they
            do together. What others read too, or is called at several places, is left and listed. Without it `note`
            says what the layers lack.
        **parameters: The same for every layer.

    Returns:
        The layers by the names to store them under, what was assumed of them, and a list of what was skipped.

    Raises:
        InvalidRequestError: If the file cannot be read, is broken, or is of another kind or version.
        InvalidConfigurationError: If a parameter is wrong, or nobody says any layer's strides and padding.
        InvalidWeightsError: If no layer's weights fit its configuration.
        MissingDependencyError: Without h5py, safetensors or onnx, for the files that need it.
    """
    if not isinstance(path, str | Path):
        raise refusal("the path of a file", short_repr(path))
    if not isinstance(config, Mapping | None) or not all(isinstance(name, str) for name in config or ()):
        raise InvalidConfigurationError.for_field("config", "parameters by the name of a layer", short_repr(config))
    file, geometry = Path(path), Geometry(parameters, config or {}, assume_defaults)
    kind = file.suffix.lower()
    if kind in _PICKLES:
        advice = "Save it from Python: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        received = f"{short_repr(str(path))}, which may be a pickle. {advice}"
        raise refusal("a file that runs no code when it is read", received)
    if kind not in _READERS:
        raise refusal(f"a file that ends in {', '.join(_READERS)}", short_repr(str(path)))
    check_file(file)
    reason = partial(reason_in, file)
    expected, _ = _READERS[kind]
    with wrap_read_errors(file, "file", expected, reason, InvalidRequestError):
        kind = _kind_inside(file, kind)
    if fold_batch_norm and kind not in _WHOLE_MODELS:
        received = f"{short_repr(str(path))}, which has arrays only: name each layer's batch_norm in config"
        raise refusal(f"a whole model ({', '.join(_WHOLE_MODELS)}) for fold_batch_norm", received)
    if kind in _WHOLE_MODELS:
        geometry.check_none()
    expected, read_contents = _READERS[kind]
    with wrap_read_errors(file, "file", expected, reason, InvalidRequestError):
        return read_contents(file, Budget(file), fold_batch_norm if kind in _WHOLE_MODELS else geometry).named(prefix)


def _kind_inside(file: Path, kind: str) -> str:
    """Returns how the name of a file should end, by its first bytes."""
    with file.open("rb") as opened:
        head = opened.read(8)
    return next((kinds.get(kind, kind) for magic, kinds in _BY_FIRST_BYTES.items() if head.startswith(magic)), kind)
