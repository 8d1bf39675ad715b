"""`.keras` archives of Keras 2.12 to 2.15, whose groups have other names and numbers, and what files say of themselves.

`tests/data/keras_2.zip` has files that these versions wrote; others are made like them.
"""

import os
import shutil
import sys
import zipfile

import h5py
import numpy as np
import pytest

import convserve
from convserve import activations, importing
from tests.support.keras.archives import BIAS, KERNEL, WEIGHTS, conv2d, model, weights_file, write_archive, write_h5
from tests.support.repository import ROOT

OLD = "_layer_checkpoint_dependencies"
KERAS_2 = {"keras_version": "2.13.1"}


def firsts(imported):
    """Returns the first number of each layer's kernel, which tells whose it is."""
    return {name: int(layer.kernel[0, 0, 0, 0]) for name, layer in imported.layers.items()}


def reasons(imported):
    """Returns why things were skipped, by name."""
    return {each.name: each.reason for each in imported.skipped}


def written(path, config, places, metadata, **others):
    """Writes an archive that has a kernel beginning with 0, 1, 2, ... in the groups at some places."""
    groups = {place: {"0": KERNEL + number, "1": BIAS} for number, place in enumerate(places)}
    return write_archive(path, config, weights_file(groups | others), metadata=metadata)


@pytest.mark.parametrize("version", ["2.12.1", "2.13.1", "2.14.1", "2.15.1"])
def test_archives_that_tensorflow_wrote_have_what_its_h5_files_have(tmp_path, version):
    """Which find layers by their names. A shared layer is in a nested model too, and a model has no weights."""
    with zipfile.ZipFile(ROOT / "tests/data/keras_2.zip") as recorded:
        paths = [recorded.extract(f"{version}.{suffix}", tmp_path) for suffix in ("keras", "h5")]
    archived, by_name = (importing.read(path) for path in paths)
    names = ["a", "shared", "inner/shared", "inner/a", "sequence/a", "sequence/b", "depthwise_conv2d", "last"]
    assert list(archived.layers) == [f"outer/{name}" for name in names]
    assert {name: layer.digest for name, layer in archived.layers.items()} == {
        name: layer.digest for name, layer in by_name.layers.items()
    }
    assert len({layer.digest for layer in archived.layers.values()}) == 7
    assert {each.kind for each in archived.skipped} >= {"InputLayer", "BatchNormalization", "ReLU"}
    folded, folded_by_name = (importing.read(path, fold_batch_norm=True) for path in paths)
    for each in (folded, folded_by_name):  # it follows a model, and one that models share is not clear
        assert [skipped.name for skipped in each.skipped if skipped.kind == "BatchNormalization"]
        assert {name: layer.digest for name, layer in each.layers.items()} == {
            name: layer.digest for name, layer in archived.layers.items()
        }
    last = archived.layers["outer/last"].config
    assert (last.groups, last.dtype) == (2, "mixed_float16")
    assert last.activation == activations.LeakyReLU(float(np.float32(0.1)))


ACTIVATION = {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"}, "registered_name": None}
NESTED = model(
    "m", conv2d("x"), model("empty", ACTIVATION, kind="Sequential"),
    model("s", conv2d("a"), conv2d("b"), kind="Sequential"), conv2d("y"),
    model("t", conv2d("c"), model("u", conv2d("d"), kind="Sequential"), kind="Sequential"),
)  # fmt: skip
NAMES = ["m/x", "m/s/a", "m/s/b", "m/y", "m/t/c", "m/t/u/d"]
AS_KERAS_3 = ["*/conv2d", "*/sequential_1/*/conv2d", "*/sequential_1/*/conv2d_1", "*/conv2d_1",
              "*/sequential_2/*/conv2d", "*/sequential_2/*/sequential/*/conv2d"]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "places"),
    [
        # A layer with weights counts twice, a model without any once.
        ("2.12.0", ["*/conv2d", "*/sequential_1/*/conv2d", "*/sequential_1/*/conv2d_2", "*/conv2d_2",
                    "*/sequential_3/*/conv2d", "*/sequential_3/*/sequential/*/conv2d"]),
        ("2.14.0", AS_KERAS_3),
        ("2.15.0", AS_KERAS_3),
        (None, AS_KERAS_3),
    ],
)  # fmt: skip
def test_layers_are_found_as_each_version_numbered_them(tmp_path, version, places):
    root = "layers" if version == "2.15.0" else OLD
    places = [place.replace("*", root) for place in places]
    empty = {f"{root}/sequential": {}, f"{root}/sequential/{root}/re_lu": {}}
    metadata = {} if version is None else {"keras_version": version}
    imported = importing.read(written(tmp_path / "x.keras", NESTED, places, metadata, **empty))
    assert firsts(imported) == {name: number for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("number", ["2", "1", ""])  # as 2.12 numbers what comes after a shared layer, 3, and 2.14
def test_what_a_shared_layer_leaves_out_of_a_group_is_nobody_elses(tmp_path, number):
    """The second model's only group is that of its second layer; the first was saved before."""
    shared = conv2d("s") | {"shared_object_id": 7}
    config = model("m", conv2d("a"), shared, model("n", shared, conv2d("b")), conv2d("c"))
    inner = f"{OLD}/functional/{OLD}/conv2d{number and '_'}{number}"
    places = [f"{OLD}/conv2d", f"{OLD}/conv2d_2", inner, f"{OLD}/conv2d_4"]
    imported = importing.read(written(tmp_path / "x.keras", config, places, KERAS_2))
    assert firsts(imported) == {"m/a": 0, "m/s": 1, "m/n/s": 1, "m/n/b": 2, "m/c": 3}


def test_a_shared_model_is_found_under_each_of_its_names(tmp_path):
    shared = model("s", conv2d("a")) | {"shared_object_id": 7}
    config = model("m", shared, model("n", shared, model("other", conv2d("a"))))
    places = [f"{OLD}/functional/{OLD}/conv2d", f"{OLD}/functional_2/{OLD}/functional_2/{OLD}/conv2d"]
    imported = importing.read(written(tmp_path / "x.keras", config, places, KERAS_2))
    assert firsts(imported) == {"m/s/a": 0, "m/n/s/a": 0, "m/n/other/a": 1}


def test_groups_that_do_not_tell_their_layers_apart_are_not_guessed(tmp_path):
    config = model("m", conv2d("a"), conv2d("b"), model("n", conv2d("c")))
    places = [f"{OLD}/conv2d_2", f"{OLD}/functional/{OLD}/conv2d"]  # whose, of two layers
    imported = importing.read(written(tmp_path / "x.keras", config, places, KERAS_2))
    assert firsts(imported) == {"m/n/c": 1}
    assert "does not tell which of 1 groups conv2d" in reasons(imported)["m/a"] == reasons(imported)["m/b"]


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_saved_remote_layer_is_a_conv2d(tmp_path, suffix):
    remote = conv2d("r", server="localhost:1", timeout=None, activation="relu")
    remote |= {"module": "convserve.keras", "class_name": "RemoteConv2D", "registered_name": "convserve>RemoteConv2D"}
    foreign = remote | {"module": "mine", "registered_name": "mine>RemoteConv2D"}
    path = tmp_path / f"x.{suffix}"
    if suffix == "keras":
        places = [f"layers/{place}" for place in ("conv2d", "remote_conv2d", "remote_conv2d_1", "remote_conv2d_2")]
        written(path, model("m", conv2d("a"), remote, foreign, remote), places, {"keras_version": "3.15.1"})
        assert firsts(importing.read(path)) == {"m/a": 0, "m/r": 1, "m/r_2": 3}
    else:
        entry = {"class_name": "convserve>RemoteConv2D", "config": remote["config"]}
        write_h5(path, model("m", foreign, entry), {"r": {"r/kernel": KERNEL, "r/bias": BIAS}})
    imported = importing.read(path)
    assert imported.layers["m/r"].config.activation.keras_name == "relu"
    assert "class" in reasons(imported)["m/r"]


# One odd layer beside sound ones


def test_one_odd_layer_does_not_stand_in_the_way_of_others(tmp_path):
    groups = [
        WEIGHTS, {"0": KERNEL.astype(int), "1": BIAS}, {"0": KERNEL}, {"0": KERNEL[0], "1": BIAS},
        {"0": KERNEL, "1": BIAS[:1]}, WEIGHTS | {"2": BIAS}, {"0": KERNEL * 1j, "1": BIAS}, WEIGHTS,
    ]  # fmt: skip
    places = {f"layers/conv2d{f'_{number}' if number else ''}": group for number, group in enumerate(groups)}
    config = model("m", *(conv2d(f"c{number}") for number in range(len(groups))))
    path = write_archive(tmp_path / "x.keras", config, weights_file(places))
    imported = importing.read(path)
    assert list(imported.layers) == ["m/c0", "m/c7"]
    said = reasons(imported)
    for number, words in enumerate(
        ["floating-point numbers. Received dtype int64", "a bias together", "shape (3, 2, 2)", "shape (1,)",
         "more than a kernel and a bias at layers/conv2d_5/vars: 2", "complex"], 1,
    ):  # fmt: skip
        assert words in said[f"m/c{number}"]


def test_a_filter_of_others_making_is_one_layers_affair(tmp_path):
    path = write_h5(tmp_path / "x.h5", model("m", conv2d("c"), conv2d("d")), {
        "c": {"c/kernel": KERNEL, "c/bias": BIAS}, "d": {"d/kernel": KERNEL, "d/bias": BIAS}})  # fmt: skip
    with h5py.File(path, "a") as opened:
        group = opened["model_weights/d/d"]
        del group["kernel"]
        group.create_dataset("kernel", data=KERNEL, chunks=KERNEL.shape, compression="lzf")
    imported = importing.read(path)
    assert list(imported.layers) == ["m/c"]
    assert "filters" in reasons(imported)["m/d"]


# What files say of themselves


def says(path, **attributes):
    for name, value in attributes.items():
        with h5py.File(path, "a") as opened:
            opened.attrs[name] = value
    return path


@pytest.fixture
def h5(tmp_path):
    """A whole model of one Conv2D."""
    return write_h5(tmp_path / "x.h5", model("m", conv2d("c")), {"c": {"c/kernel:0": KERNEL, "c/bias:0": BIAS}})


def test_kernels_of_theanos_are_turned_over(h5):
    layer = importing.read(says(h5, backend="theano", keras_version="2.2.4")).layers["m/c"]
    np.testing.assert_array_equal(layer.kernel, KERNEL[::-1, ::-1])
    layer = importing.read(says(h5, backend=b"tensorflow", keras_version=b"2.2.4-tf")).layers["m/c"]
    np.testing.assert_array_equal(layer.kernel, KERNEL)


@pytest.mark.parametrize("said", [{"keras_version": "1.2.2"}, {"keras_version": "4.0"}, {"backend": "plaidml"}])
def test_a_version_or_backend_whose_layout_is_not_known_is_refused(tmp_path, h5, said):
    ((name, value),) = said.items()
    nested = write_h5(tmp_path / "y.h5", model("m", conv2d("c")) | said, {"c": {"c/kernel": KERNEL}})
    beside = shutil.copy(h5, tmp_path / "z.h5")
    with h5py.File(beside, "a") as opened:
        opened["model_weights"].attrs[name] = value
    for path in (says(h5, **said), nested, beside):
        with pytest.raises(convserve.InvalidRequestError, match=f"{name}='{value}'"):
            importing.read(path)
    if "keras_version" in said:
        with pytest.raises(convserve.InvalidRequestError, match=f"{name}='{value}'"):
            importing.read(says(h5, backend="another", **said))  # which a layout that is not known may have
        path = write_archive(tmp_path / "x.keras", model("m", conv2d("c")), metadata=said)
        with pytest.raises(convserve.InvalidRequestError, match="a file of Keras 2 or 3"):
            importing.read(path)


def test_a_file_is_read_as_what_its_first_bytes_say(tmp_path, h5):
    archive = write_archive(tmp_path / "y.keras", model("m", conv2d("c")))
    np.savez(tmp_path / "arrays.npz", **{"c.kernel": KERNEL, "c.bias": BIAS})
    np.save(tmp_path / "array.npy", KERNEL)
    for source, name in ((h5, "h.keras"), (archive, "k.hdf5"), ("arrays.npz", "a.npy"), ("array.npy", "n.npz")):
        shutil.copy(tmp_path / source, tmp_path / name)
        (layer,) = importing.read(tmp_path / name, assume_defaults=True).layers.values()
        np.testing.assert_array_equal(layer.kernel, KERNEL)


def test_python_is_found_where_another_program_embeds_it(h5, tmp_path, monkeypatch):
    (tmp_path / "uwsgi").write_text("#!/bin/sh\nexit 3\n")
    os.chmod(tmp_path / "uwsgi", 0o700)
    for executable in (str(tmp_path / "uwsgi"), "", None):
        monkeypatch.setattr(sys, "executable", executable)
        assert list(importing.read(h5).layers) == ["m/c"]
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    with pytest.raises(convserve.InvalidRequestError, match=r"a Python .* Received sys\.executable=None"):
        importing.read(h5)


def test_weights_as_a_pickle_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.npz", b"")
    with pytest.raises(convserve.InvalidRequestError, match=r"model\.weights\.npz, which is a pickle"):
        importing.read(tmp_path / "x.keras")
