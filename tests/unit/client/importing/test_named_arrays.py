"""Arrays by name: what makes a layer, where its geometry comes from, and how layers are named."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import convserve
from convserve import importing
from convserve.files.arrays import CONFIGURATION, load_array
from convserve.files.layers import save_layer
from convserve.importing.imported import fitting_name

HWIO = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
OIHW = np.ascontiguousarray(HWIO.transpose(3, 2, 0, 1))
BIAS = np.arange(5, dtype=np.float32)


@pytest.fixture
def write(tmp_path):
    """Writes arrays to a file, whose name's end says how."""

    def save(name, arrays):
        path = tmp_path / name
        if path.suffix == ".npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)
        return path

    return save


def refusal(path, **options):
    """Returns the violation with which a file is refused."""
    with pytest.raises(convserve.InvalidArgumentError) as caught:
        importing.read(path, **options)
    return caught.value.violations[0]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_kernels_have_keras_order_of_axes_and_weights_pytorchs(write, suffix):
    arrays = {"a.kernel": HWIO, "a.bias": BIAS, "b.weight": OIHW, "params/c/kernel": HWIO.astype(np.float64)}
    layers = importing.read(write(f"net.{suffix}", arrays), strides=1).layers
    assert set(layers) == {"net/a", "net/b", "net/params/c"}
    for layer in layers.values():
        np.testing.assert_array_equal(layer.kernel, HWIO)
        assert layer.config.kernel_size == (2, 3)
        assert layer.config.dtype == "float32"
    np.testing.assert_array_equal(layers["net/a"].bias, BIAS)
    assert layers["net/b"].bias is None
    assert not layers["net/b"].config.use_bias


@pytest.mark.parametrize(
    ("arrays", "name", "with_prefix"),
    [
        ({"kernel": HWIO, "bias": BIAS}, "x", "p/x"),
        ({"weight": OIHW, "bias": BIAS}, "x", "p/x"),
        ({"kernel": HWIO}, "x", "p/x"),
        ({"anything": HWIO}, "x/anything", "p/anything"),
    ],
)
def test_a_single_layer_may_have_no_name(write, arrays, name, with_prefix):
    path = write("x.npz", arrays)
    ((found, layer),) = importing.read(path, padding=0).layers.items()
    assert found == name
    np.testing.assert_array_equal(layer.kernel, HWIO)
    assert list(importing.read(path, prefix="p", padding=0).layers) == [with_prefix]


def test_an_array_alone_is_a_kernel(tmp_path):
    np.save(tmp_path / "sobel.npy", np.asfortranarray(HWIO))
    ((name, layer),) = importing.read(tmp_path / "sobel.npy", strides=2, padding="same").layers.items()
    assert name == "sobel"
    np.testing.assert_array_equal(layer.kernel, HWIO)
    assert layer.config == convserve.Conv2D(5, (2, 3), strides=2, padding="same", use_bias=False)


def test_what_is_no_conv2d_is_skipped(write):
    arrays = {
        "bn.weight": BIAS, "bn.bias": BIAS, "fc.weight": HWIO[0, 0], "up.weight": OIHW, "up.bias": BIAS[:4],
        "quantized.weight": OIHW.astype(np.int8), "video.weight": OIHW[None], "steps": np.int64(3), "a.weight": OIHW,
    }  # fmt: skip
    imported = importing.read(write("n.npz", arrays), strides=1)
    assert list(imported.layers) == ["n/a"]
    reasons = {each.name: (each.kind, each.reason) for each in imported.skipped}
    assert reasons["n/bn.weight"] == ("array of rank 1", "not the kernel of a Conv2D")
    assert reasons["n/video.weight"] == ("array of rank 5", "not the kernel of a Conv2D")
    assert "transposed" in reasons["n/up"][1]
    assert "int8" in reasons["n/quantized"][1]
    assert set(reasons) == {
        "n/up",
        "n/quantized",
        "n/bn.weight",
        "n/bn.bias",
        "n/fc.weight",
        "n/video.weight",
        "n/steps",
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_type_of_weights_is_read_without_loss(write, dtype):
    weight = (OIHW / 7).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    path = write("n.safetensors", {"a.weight": weight, "b.weight": weight + 1})
    layers = importing.read(path, strides=1).layers
    np.testing.assert_array_equal(layers["n/a"].kernel, weight.astype(np.float32).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(layers["n/b"].kernel, (weight + 1).astype(np.float32).transpose(2, 3, 1, 0))
    assert importing.read(path, dtype=dtype, strides=1).layers["n/a"].kernel.dtype == weight.dtype


# What the file does not say


def test_parameters_are_for_every_layer_and_patterns_for_some(write):
    path = write("n.npz", {f"{name}.weight": OIHW for name in ("conv1", "layer1.0.conv2", "layer2.0.conv2", "up")})
    config = {"conv1": {}, "*.conv2": {"padding": [1, 2]}, "layer2.*": {"stride": 2, "dilation": 1}, "up": None}
    imported = importing.read(path, config=config, activation="relu")
    paddings = {name: (layer.config.padding, layer.config.strides) for name, layer in imported.layers.items()}
    assert paddings == {
        "n/conv1": ("valid", (1, 1)),
        "n/layer1.0.conv2": (((1, 1), (2, 2)), (1, 1)),
        "n/layer2.0.conv2": (((1, 1), (2, 2)), (2, 2)),
    }
    assert all(layer.config.activation.keras_name == "relu" for layer in imported.layers.values())
    assert imported.skipped == [importing.Skipped("n/up", "array of rank 4", "left out, as was asked")]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_strides_and_padding_that_nobody_says_are_not_assumed(write, suffix):
    point = np.ascontiguousarray(OIHW[:, :, :1, :1])
    path = write(f"n.{suffix}", {"a.weight": OIHW, "b.weight": point, "c.weight": OIHW})
    # Of a kernel of 1x1 almost everybody means the defaults; what is assumed of it is told all the same.
    for options in ({}, {"activation": "relu", "dtype": "float64", "groups": 1}, {"config": {"c": {"groups": 1}}}):
        imported = importing.read(path, **options)
        assert list(imported.layers) == ["n/b"]
        assert imported.assumed.keys() == {"n/b"}
        for name, reason in ((each.name, each.reason) for each in imported.skipped):
            assert name in ("n/a", "n/c")
            assert "strides: Expected strides and padding, which the file does not say" in reason
            assert "none for a kernel of 2x3. Give them by layer in config (--config)" in reason
            assert "assume_defaults=True (--assume-defaults)" in reason


@pytest.mark.parametrize("config", [5, [1], "a", {5: {}}, np.arange(2)])
def test_a_configuration_that_is_none_is_no_fault_of_the_files(write, config):
    violation = refusal(write("n.npz", {"a.weight": OIHW}), config=config)
    assert (violation.field, violation.description[:8]) == ("config", "Expected")


def test_a_file_of_which_nothing_is_left_is_refused(write):
    arrays = {f"{name}.weight": OIHW for name in "abcde"}
    violation = refusal(write("n.npz", arrays), activation="relu")
    assert violation.field == "config"
    assert "none for 'a', 'b', 'c' and 2 more. Give them" in violation.description


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 1}, {"stride": 1}, {"padding": 0}, {"dilation": 1}, {"padding": "valid"}, {"config": {"a": {}}},
        {"config": {"*": {"stride": 1}}}, {"config": {"a": {"padding": "valid"}}},
    ],
)  # fmt: skip
def test_either_of_them_says_it(write, options):
    imported = importing.read(write("n.npz", {"a.weight": OIHW}), **options)
    assert imported.layers["n/a"].config == convserve.Conv2D(5, (2, 3), use_bias=False)
    assert imported.assumed == {}


def test_what_is_assumed_is_told_of_each_layer(write):
    arrays = {f"{name}.weight": OIHW for name in ("a", "b", "a b")}
    path = write("n.npz", arrays)
    imported = importing.read(path, assume_defaults=True, config={"b": {"stride": 2}}, activation="relu")
    text = "strides 1, padding 'valid', dilation 1, groups 1"
    assert imported.assumed == {"n/a": text, "n/a_b": text}
    assert imported.layers["n/a"].config == convserve.Conv2D(5, (2, 3), activation="relu", use_bias=False)
    assert imported.layers["n/b"].config.strides == (2, 2)
    assert importing.read(path, assume_defaults=True, groups=1).assumed["n/a"] == text.removesuffix(", groups 1")


def test_a_layer_that_convserve_wrote_says_it_all(tmp_path):
    layer = convserve.Layer(convserve.Conv2D(5, (2, 3), strides=2), HWIO, BIAS)
    for name in ("l.safetensors", "l.npz"):
        save_layer(tmp_path / name, layer)
        for assume_defaults in (False, True):
            imported = importing.read(tmp_path / name, assume_defaults=assume_defaults)
            assert imported.layers["l"].digest == layer.digest
            assert imported.assumed == {}
        assert "has the configuration" in refusal(tmp_path / name, strides=1).description


def test_the_configuration_in_an_archive_is_no_array_and_no_pickle(tmp_path, write):
    layer = convserve.Layer(convserve.Conv2D(5, (2, 3), strides=2, use_bias=False), HWIO)
    save_layer(tmp_path / "l.npz", layer)
    np.testing.assert_array_equal(load_array(tmp_path / "l.npz"), HWIO)
    with np.load(tmp_path / "l.npz") as saved:
        arrays = dict(saved)
    assert sorted(arrays) == [CONFIGURATION, "kernel"]
    for text in ("{", "{}", "5", np.array([1.5]), np.array([])):
        refusal(write("l.npz", arrays | {CONFIGURATION: text}))
    assert "with its kernel" in refusal(write("l.npz", {CONFIGURATION: arrays[CONFIGURATION]})).description


@pytest.mark.parametrize("name", ["a.kernel", "a/kernel", "a/kernel:0"])
def test_arrays_with_keras_names_have_the_defaults_and_say_so(write, name):
    imported = importing.read(write("n.npz", {name: HWIO}))
    assert imported.layers["n/a"].config.strides == (1, 1)
    assert imported.assumed.keys() == {"n/a"}


def test_strides_and_dilation_together_are_pytorchs(write):
    path = write("n.npz", {"a.weight": OIHW})
    for options in ({}, {"padding": 0}, {"padding": ((0, 0), (0, 0))}):
        config = importing.read(path, stride=2, dilation=2, **options).layers["n/a"].config
        assert (config.strides, config.dilation_rate, config.padding) == ((2, 2), (2, 2), ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, "valid"), ((0, 0), "valid"), (1, ((1, 1), (1, 1))), ([1, 0], ((1, 1), (0, 0))), ("same", "same"),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))), (np.int64(2), ((2, 2), (2, 2))),
    ],
)  # fmt: skip
def test_pytorchs_amounts_of_padding_are_explicit(write, padding, expected):
    path = write("n.npz", {"a.weight": OIHW})
    assert importing.read(path, padding=padding).layers["n/a"].config.padding == expected


def test_groups_are_the_callers(write):
    path = write("n.npz", {"a.weight": np.ones((6, 1, 3, 3), np.float32)})
    assert importing.read(path, strides=1).layers["n/a"].input_channels == 1
    assert importing.read(path, strides=1, groups=6).layers["n/a"].input_channels == 6


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"stride": 0}, "a.strides", "greater than 0"),
        ({"stride": 1, "strides": 1}, "strides", "PyTorch's wording"),
        ({"padding_mode": "reflect"}, "padding_mode", "what a Conv2D pads with"),
        ({"padding": -1}, "a.padding", "amounts from 0"),
        ({"padding": "full"}, "a.padding", "'valid', 'same'"),
        ({"padding_mode": "reflect"}, "padding_mode", "'zeros'"),
        ({"groups": 2, "strides": 1}, "a.filters", "divisible"),
        ({"filters": 3}, "filters", "Expected one of strides"),
        ({"strade": 3}, "strade", "Expected one of strides"),
        ({"strides": 2, "dilation": 2, "padding": "same"}, "a.strides", "as in Keras"),
        ({"batch_norm": 3}, "batch_norm", "the name of a BatchNorm"),
        ({"config": {"a": {"eps": -1}}}, "a.eps", "at least 0"),
        ({"epsilon": "1e-5"}, "epsilon", "at least 0"),
        ({"eps": 1, "epsilon": 1}, "epsilon", "PyTorch's wording"),
        ({"config": {"a": {"kernel_size": 3}}}, "a.kernel_size", "Expected one of strides"),
        ({"config": {"a": 3}}, "a", "Expected parameters by name, or null"),
        ({"config": {"b*": {}}}, "config", "Expected the name of a layer, or a pattern, out of a. Received 'b*'"),
        ({"prefix": "../x", "strides": 1}, "prefix", "without '..'"),
        ({"prefix": "ä", "strides": 1}, "prefix", "letters"),
    ],
)
def test_wrong_parameters_are_told_with_their_layer(write, options, field, text):
    violation = refusal(write("n.npz", {"a.weight": OIHW}), **options)
    assert violation.field == field
    assert text in violation.description
    assert "Received" in violation.description


def test_a_bias_that_does_not_fit_is_told_with_its_layer(write):
    assert refusal(write("n.npz", {"a.kernel": HWIO, "a.bias": np.ones(4, np.float32)}), strides=1).field == "a.bias"
    assert "a kernel and a weight" in refusal(write("n.npz", {"a.kernel": HWIO, "a.weight": OIHW})).description


def test_parameters_beside_a_files_own_configuration_are_refused(write, tmp_path):
    layer = convserve.Layer(convserve.Conv2D(5, (2, 3)), HWIO, BIAS)
    save_layer(tmp_path / "l.safetensors", layer)
    assert "has the configuration of its layers" in refusal(tmp_path / "l.safetensors", strides=2).description
    (tmp_path / "m.keras").write_bytes(b"")
    assert "has the configuration of its layers" in refusal(tmp_path / "m.keras", config={"a": {}}).description


# A layer that convserve wrote


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_a_layer_comes_back_with_its_configuration(tmp_path, dtype, bias):
    config = convserve.Conv2D(
        5, (2, 3), padding=((1, 0), (2, 3)), dilation_rate=2, activation="gelu", use_bias=bias is not None, dtype=dtype,
        kernel_regularizer=convserve.regularizers.L2(0.25),
    )  # fmt: skip
    layer = convserve.Layer(config, HWIO, bias)
    for name in ("l.safetensors", "l.npz"):
        save_layer(tmp_path / name, layer)
        layers = importing.read(tmp_path / name, prefix="p").layers
        assert {name: each.digest for name, each in layers.items()} == {"p/l": layer.digest}
        assert layers["p/l"].config == config


def test_other_names_of_files_and_places_are_refused(tmp_path):
    layer = convserve.Layer(convserve.Conv2D(5, (2, 3), use_bias=False), HWIO)
    for name, text in (("l.pkl", r"ends in \.safetensors or \.npz"), ("no/l.npz", "can be written")):
        with pytest.raises(convserve.InvalidRequestError, match=text):
            save_layer(tmp_path / name, layer)


# Names for the store

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resnet50/conv1_conv", "resnet50/conv1_conv"), ("a-b.c_d/E9", "a-b.c_d/E9"), ("a b:c", "a_b_c"),
        ("..", "layer"), ("", "layer"), ("../../a", "a"), ("a..b...c", "a.b.c"), ("_a", "a"), ("é", "layer"),
    ],
)  # fmt: skip
def test_names_are_made_to_fit(text, name):
    assert fitting_name(text) == name


@pytest.mark.parametrize("text", ["x" * 201, "é" * 300, "a/" * 300, "x" * 10_000 + "."])
def test_long_names_are_cut_and_stay_apart(text):
    names = {fitting_name(text), fitting_name(text + "1")}
    assert len(names) == 2 or "é" in text
    assert all(NAME.fullmatch(name) and ".." not in name for name in names)


def test_names_that_become_the_same_are_numbered(write):
    arrays = {f"{name}.kernel": HWIO + number for number, name in enumerate(["a b", "a_b", "a:b", "a_b_2"])}
    layers = importing.read(write("n.npz", arrays), prefix="", strides=1).layers
    assert {name: int(layer.kernel[0, 0, 0, 0]) for name, layer in layers.items()} == {
        "a_b": 0, "a_b_2": 1, "a_b_3": 2, "a_b_2_2": 3
    }  # fmt: skip


def test_nothing_optional_is_loaded_before_a_file_needs_it(tmp_path):
    import subprocess
    import sys

    np.savez(tmp_path / "n.npz", **{"a.weight": OIHW})
    code = (
        "import sys; from convserve import importing; "
        f"print(list(importing.read({str(tmp_path / 'n.npz')!r}, strides=1).layers)); "
        "print([name for name in ('h5py', 'safetensors', 'keras', 'tensorflow', 'torch') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.replace("'", '"').splitlines()[0]) == ["n/a"]
    assert answer.stdout.splitlines()[1] == "[]"


@pytest.mark.parametrize(("package", "name"), [("h5py", "x.h5"), ("safetensors", "x.safetensors")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_bytes(b"x" * 100)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(convserve.MissingDependencyError, match=r"pip install 'convserve\[import\]'"):
        importing.read(tmp_path / name)


@pytest.mark.parametrize("prefix", [5, b"x", "../x", "-", "p" * 201])
def test_a_prefix_is_the_beginning_of_a_name(write, prefix):
    assert refusal(write("x.npz", {"kernel": HWIO}), prefix=prefix, strides=1).field == "prefix"


@pytest.mark.parametrize("path", [None, 5, b"x.npz"])
def test_a_path_is_a_path(path):
    assert "the path of a file" in refusal(path).description
