"""Arrays that others wrote: orders of axes, names, and what is beside a kernel, heeded or skipped with the reason."""

import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import convserve
from convserve import importing

HWIO = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
OIHW, OHWI = (np.ascontiguousarray(HWIO.transpose(axes)) for axes in ((3, 2, 0, 1), (3, 0, 1, 2)))
BIAS = np.arange(5, dtype=np.float32)
NPY = (
    b"\x93NUMPY\1\0\x76\0"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }".ljust(117)
    + b"\n"
    + BIAS.tobytes()
)


def read(path, arrays, metadata=None, **options):
    """Writes arrays as the end of the name says, and returns what is found in the file, under their own names."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path, metadata)
    return importing.read(path, prefix="", **{"strides": 1, **options})


def reasons(imported):
    return {each.name: each.reason for each in imported.skipped}


@pytest.mark.parametrize(
    ("file_format", "kernel", "weight"),
    [
        (None, HWIO, OIHW), ("np", HWIO, OIHW), ("pt", None, OIHW), ("mlx", None, OHWI), ("tf", HWIO, None),
        ("flax", HWIO, None), ("jax", HWIO, None),
    ],
)  # fmt: skip
def test_axes_are_in_the_order_of_the_files_format(tmp_path, file_format, kernel, weight):
    arrays = {"a.kernel": HWIO if kernel is None else kernel, "b.weight": OIHW if weight is None else weight}
    imported = read(tmp_path / "x.safetensors", arrays, file_format and {"format": file_format})
    known = [name for name, array in (("a", kernel), ("b", weight)) if array is not None]
    assert list(imported.layers) == known
    for layer in imported.layers.values():
        np.testing.assert_array_equal(layer.kernel, HWIO)
    assert all(f"format '{file_format}', the order of axes" in reason for reason in reasons(imported).values())


@pytest.mark.parametrize("file_format", ["convserve.v2.layer", "onnx", ""])
def test_a_format_that_is_not_known_is_refused(tmp_path, file_format):
    with pytest.raises(convserve.InvalidRequestError, match=f"Received format='{file_format}'"):
        read(tmp_path / "x.safetensors", {"kernel": HWIO}, {"format": file_format})


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_variables_of_tensorflows_are_named_as_in_its_files(tmp_path, suffix):
    arrays = {"net/a/kernel:0": HWIO, "net/a/bias:0": BIAS, "b.kernel:0": HWIO, "net/bn/gamma:0": BIAS}
    imported = read(tmp_path / f"x.{suffix}", arrays)
    assert set(imported.layers) == {"net/a", "b"}
    assert imported.layers["net/a"].config.use_bias
    assert reasons(imported) == {"net/bn/gamma:0": "not the kernel of a Conv2D"}


@pytest.mark.parametrize("name", ["conv1_1_W", "conv1/weights", "Conv/W", "a/depthwise_kernel:0", "a.kernel:1"])
def test_names_that_are_not_read_are_told_with_those_that_are(tmp_path, name):
    imported = read(tmp_path / "x.npz", {name: HWIO, "b.kernel": HWIO})
    assert list(imported.layers) == ["b"]
    assert ".kernel, /kernel, .weight or /weight" in reasons(imported)[name]


@pytest.mark.parametrize(
    "others",
    [
        {"a.weight_scale": BIAS},  # quantized
        {"a.weight_u": BIAS, "a.weight_v": BIAS},  # PyTorch's spectral norm
        {"a.weight_mask": OIHW},  # pruned
        {"a/lora_kernel_a:0": HWIO},
        {"a.scales": BIAS, "a.biases": BIAS},  # MLX' quantization
    ],
)
def test_a_layer_with_further_parts_computes_something_else(tmp_path, others):
    imported = read(tmp_path / "x.npz", {"a.weight": OIHW, "a.bias": BIAS, "b.weight": OIHW} | others)
    assert list(imported.layers) == ["b"]
    name = next(iter(others)).replace("/", ".").split(".")[1].removesuffix(":0")
    assert "more than a kernel and a bias" in reasons(imported)["a"]
    assert name in reasons(imported)["a"]


def test_one_odd_array_does_not_stand_in_the_way_of_others(tmp_path):
    arrays = {
        "good.kernel": HWIO, "double.kernel": HWIO, "double.weight": OIHW, "twice.kernel": HWIO, "twice/kernel:0": HWIO,
        "biases.kernel": HWIO, "biases.bias": BIAS, "biases/bias": BIAS, "long.kernel": HWIO, "long.bias": OIHW,
        "empty.kernel": HWIO[:0], "whole.kernel": HWIO.astype(int), "wide.kernel": HWIO.astype(np.longdouble),
        "complex.kernel": HWIO * 1j, "fields.kernel": np.zeros((2, 3, 4, 5), "f4,f4"), "good/bias:0": BIAS,
        "config": np.array({"strides": 2}, dtype=object),
    }  # fmt: skip
    imported = read(tmp_path / "x.npz", arrays)
    assert list(imported.layers) == ["good"]
    assert imported.layers["good"].config.use_bias
    said = reasons(imported)
    for name, words in {
        "double": "a kernel and a weight for 'double'", "twice": "a kernel and a kernel", "biases": "one bias",
        "long": "bias: Expected shape (5,)", "empty": "no elements", "whole": "int64", "wide": "float128",
        "complex": "complex64", "fields": "dtype", "config": "a pickle, of which nothing was run",
    }.items():  # fmt: skip
        assert words in said[name], name


def test_a_layer_is_not_taken_without_a_part_that_cannot_be_read(tmp_path):
    odd = np.array({"a": 1}, dtype=object)
    arrays = {
        "good.kernel": HWIO, "biased.kernel": HWIO, "biased.bias": odd, "scaled/kernel:0": HWIO, "scaled/gamma:0": odd,
        "kernel": HWIO, "bias": odd, "other": odd,
    }  # fmt: skip
    imported = read(tmp_path / "x.npz", arrays)
    assert list(imported.layers) == ["good"]
    for name in ("biased", "scaled", ""):
        assert "is no array of numbers" in reasons(imported)[name]


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"\x93NUMPY\x09\0", b"\x93NUMPY\1\0\xff\xff{", b"\x93NUMPY\1\0\2\0((", NPY[:-9], NPY + b"x"]
)
def test_an_array_that_is_broken_does_not_stand_in_the_way_of_others(tmp_path, data):
    read(tmp_path / "x.npz", {"a.kernel": HWIO, "b.kernel": HWIO})
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("b.bias.npy", data)
        archive.writestr("notes.npy", data)
    imported = importing.read(tmp_path / "x.npz", prefix="", strides=1)
    assert list(imported.layers) == ["a"]
    assert {"b", "b.bias", "notes"} == set(reasons(imported))
    assert all("Expected a" in reasons(imported)[name] for name in ("b.bias", "notes"))


def test_a_member_that_is_there_twice_is_not_guessed(tmp_path):
    read(tmp_path / "x.npz", {"a.kernel": HWIO, "b.kernel": HWIO})
    data = zipfile.ZipFile(tmp_path / "x.npz").read("b.kernel.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("b.kernel.npy", data)
    assert list(importing.read(tmp_path / "x.npz", prefix="", strides=1).layers) == ["a"]


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", ">f2"])
def test_numbers_of_every_size_and_byte_order_are_the_same(tmp_path, dtype):
    imported = read(tmp_path / "x.npz", {"a.kernel": np.asfortranarray(HWIO.astype(dtype)), "a.bias": BIAS})
    np.testing.assert_array_equal(imported.layers["a"].kernel, HWIO)
