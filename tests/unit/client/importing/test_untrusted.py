"""Files that want to harm whoever reads them: each is refused with one clear error, and nothing of it is run."""

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import warnings
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest

import convserve
from convserve import importing
from convserve.importing import hdf5
from tests.support import refused_files
from tests.support.keras.archives import BIAS, KERNEL, WEIGHTS, conv2d, model, weights_file, write_archive, write_h5

MAX_MEMORY = 200 * 2**20
ONE_CONV2D = model("m", conv2d("c"))
# What is wrong with arrays of a file is said of them.
refused = partial(refused_files.refused, kind=convserve.ConvserveError)


@pytest.fixture(autouse=True)
def little_memory():
    """Fails a test in which reading took much memory, as a bomb would make it."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_MEMORY


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sprung(tmp_path):
    """A path that a trap makes; after the test it must not be there."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


# Code


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".npz", ".npy", ".safetensors"])
def test_a_pickle_in_place_of_a_model_is_not_run(tmp_path, sprung, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refused(path, "It is a pickle, which would run code: none was run.")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".PT"])
def test_files_that_may_be_pickles_are_refused_with_advice(tmp_path, sprung, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refused(path, "safetensors.torch.save_file(model.state_dict()")


def test_pytorchs_archive_under_another_name_is_not_run(tmp_path, sprung):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(sprung)))
    refused(tmp_path / "x.keras", "data.pkl")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_of_objects_are_not_unpickled(tmp_path, sprung, name):
    trap = np.array([[[[Trap(sprung)]]]], dtype=object)
    (np.save if name == "x.npy" else np.savez)(tmp_path / name, trap)
    refused(tmp_path / name, "of Python objects: a pickle, of which nothing was run")


def test_nothing_that_a_configuration_names_is_imported_or_called(tmp_path, sprung, monkeypatch):
    (tmp_path / "convserve_trap.py").write_text(f"import os; os.mkdir({str(sprung)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    call = {"module": "os", "class_name": "mkdir", "config": str(sprung), "registered_name": "mkdir"}
    code = {
        "class_name": "__lambda__",
        "config": {"value": "4wEAAAAAAAAAAAAAAAAAAAAB", "defaults": None, "closure": None},
    }
    traps = [
        {"module": "convserve_trap", "class_name": "Layer", "config": {}, "registered_name": "Layer"},
        {"module": "convserve_trap", "class_name": "Conv2D", "config": conv2d("x")["config"], "registered_name": None},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": code}},
        conv2d("a", activation=call),
        conv2d("b", activation=code),
        conv2d("c", kernel_regularizer=call),
        conv2d("d", kernel_initializer=call),
        conv2d("e", dtype=call),
    ]
    config = model("m", *traps, conv2d("good")) | {"compile_config": call, "build_config": call}
    weights = weights_file({f"layers/conv2d{'' if i == 0 else f'_{i}'}": WEIGHTS for i in range(9)})
    for path in (
        write_archive(tmp_path / "x.keras", config, weights),
        write_h5(tmp_path / "x.h5", config, {name: {"c/kernel": KERNEL, "c/bias": BIAS} for name in ("good", "d")}),
    ):
        imported = importing.read(path)
        # An initializer that is none of Keras' is left out; everything else that leads elsewhere is skipped.
        assert list(imported.layers) == ["m/d", "m/good"]
        assert imported.layers["m/d"].config.kernel_initializer.keras_name == "glorot_uniform"
        assert len(imported.skipped) == len(traps) - 1
    assert "convserve_trap" not in sys.modules


def test_what_else_is_in_an_archive_is_not_extracted(tmp_path, sprung):
    folder = tmp_path / "in"
    folder.mkdir()
    others = {"../sprung": b"x", str(sprung): b"x", "assets/x/../../../sprung": b"x"}
    path = write_archive(folder / "x.keras", ONE_CONV2D, others=others)
    assert list(importing.read(path).layers) == ["m/c"]
    assert [each.name for each in folder.iterdir()] == ["x.keras"]


def test_names_that_lead_elsewhere_become_names_that_do_not(tmp_path):
    layers = [conv2d("../../etc/passwd"), conv2d("/root"), conv2d("a\0b"), conv2d("a\nb"), conv2d("é" * 300)]
    weights = weights_file({f"layers/conv2d{'' if i == 0 else f'_{i}'}": WEIGHTS for i in range(5)})
    names = list(importing.read(write_archive(tmp_path / "x.keras", model("../m", *layers), weights)).layers)
    assert names[:4] == ["m/./././etc/passwd".replace("/./.", "/.", 1), "m//root", "m/a_b", "m/a_b_2"]
    assert len(names[4]) == 200


# Bombs


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, member):
    path = write_archive(tmp_path / "x.keras", ONE_CONV2D)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "model.weights.h5"):
            with archive.open(name, "w") as opened:
                for _ in range(300 if name == member else 0):
                    opened.write(bytes(2**20))
    if member == "model.weights.h5":
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("config.json", json.dumps(ONE_CONV2D))
    assert path.stat().st_size < 2**20
    refused(path, "Expected a file that unpacks to at most")


@pytest.mark.parametrize("kind", ["keras", "npz"])
def test_a_zip_bomb_that_says_it_is_small_is_not_unpacked_either(tmp_path, kind):
    name = "model.weights.h5" if kind == "keras" else "a.kernel.npy"
    path = tmp_path / f"x.{kind}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(ONE_CONV2D))
        archive.writestr(name, bytes(400 * 2**20))
    data = bytearray(path.read_bytes())
    tracemalloc.reset_peak()  # what the test itself took
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    data[entry + 24 : entry + 28] = struct.pack("<I", 1000)  # the size in the directory
    path.write_bytes(data)
    refused(path)


def test_arrays_that_are_larger_than_what_is_stored_of_them_are_refused(tmp_path):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as opened:
        opened.create_dataset(
            "layers/conv2d/vars/0", (3, 3, 2**30, 2), "f4", chunks=(3, 3, 2**10, 2), compression="gzip"
        )
    refused(write_archive(tmp_path / "x.keras", ONE_CONV2D, weights.getvalue()), "Expected")
    weights = io.BytesIO()
    with h5py.File(weights, "w") as opened:
        opened.create_dataset("layers/conv2d/vars/0", (3, 3, 2**30, 2), "f4")  # nothing was written
    refused(write_archive(tmp_path / "x.keras", ONE_CONV2D, weights.getvalue()), "Expected")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (3, 3, 2**50, 2)})
    (tmp_path / "x.npy").write_bytes(head.getvalue())
    refused(tmp_path / "x.npy", "of 0 bytes")


def test_one_array_under_many_names_is_counted_each_time(tmp_path):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as opened:
        opened.create_dataset("layers/conv2d/vars/0", data=np.zeros((3, 3, 2**15, 2), np.float32))
        opened["layers/conv2d/vars/1"] = BIAS
        for number in range(1, 200):
            opened[f"layers/conv2d_{number}"] = opened["layers/conv2d"]
    config = model("m", *(conv2d(f"c{number}") for number in range(200)))
    refused(write_archive(tmp_path / "x.keras", config, weights.getvalue()), "Expected a file that unpacks to at most")
    head = {f"c{i}.kernel": {"dtype": "F32", "shape": [1, 1, 2**18, 2], "data_offsets": [0, 2**21]} for i in range(200)}
    text = json.dumps(head).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(2**21))
    refused(tmp_path / "x.safetensors", "invalid offset")


def test_deep_nesting_is_refused(tmp_path):
    deep = conv2d("c")
    for _ in range(100):
        deep = model("m", deep)
    refused(write_archive(tmp_path / "x.keras", deep), "nested at most 64 deep")
    refused(write_archive(tmp_path / "y.keras", b'{"a":' * 100_000))
    activation = {"class_name": "Activation", "config": {"activation": "relu"}}
    for _ in range(200):
        activation = {"class_name": "Activation", "config": {"activation": activation}}
    path = write_archive(tmp_path / "z.keras", model("m", conv2d("c", activation=activation)))
    assert importing.read(path).layers["m/c"].config.activation.keras_name == "relu"


# Other files


def h5_trap(tmp_path, make):
    """Returns an archive and an .h5 file, both with a kernel that `make(group, name)` leads to another file."""
    with h5py.File(tmp_path / "secret.h5", "w") as opened:
        opened["kernel"] = KERNEL
    weights = io.BytesIO()
    with h5py.File(weights, "w") as opened:
        group = opened.create_group("layers/conv2d/vars")
        make(group, "0")
        group["1"] = BIAS
    archive = write_archive(tmp_path / "x.keras", ONE_CONV2D, weights.getvalue())
    path = write_h5(tmp_path / "x.h5", ONE_CONV2D, {"c": {"c/kernel": KERNEL, "c/bias": BIAS}})
    with h5py.File(path, "a") as opened:
        group = opened["model_weights/c/c"]
        del group["kernel"]
        make(group, "kernel")
    return archive, path


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_hdf5_does_not_lead_to_other_files(tmp_path, kind):
    secret = str(tmp_path / "secret.h5")

    def make(group, name):
        if kind == "external link":
            group[name] = h5py.ExternalLink(secret, "kernel")
        elif kind == "soft link":
            group["there"] = KERNEL
            group[name] = h5py.SoftLink(f"{group.name}/there")
        elif kind == "external storage":
            group.create_dataset(name, KERNEL.shape, "f4", external=[(secret, 0, KERNEL.nbytes)])
        else:
            layout = h5py.VirtualLayout(KERNEL.shape, "f4")
            layout[...] = h5py.VirtualSource(secret, "kernel", KERNEL.shape)
            group.create_virtual_dataset(name, layout)

    for path in h5_trap(tmp_path, make):
        text = refused(path)
        assert any(word in text for word in ("link", "in others", "in one piece", "oldest form"))


def test_what_is_no_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    refused(tmp_path / "pipe.npy", "which is none")
    (tmp_path / "folder.keras").mkdir()
    refused(tmp_path / "folder.keras", "which is none")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    refused(tmp_path / "zero.npz", "which is none")
    refused(tmp_path / "none.h5", "No such file")
    refused("a\0b.h5", "embedded null ")  # byte, or from Python 3.13 on character
    refused(tmp_path / "x.txt", "a file that ends in .keras, .h5")
    refused(tmp_path / "x", "a file that ends in .keras, .h5")


# Damage


def sound_files(folder):
    """Writes one sound file of each kind."""
    write_archive(folder / "x.keras", ONE_CONV2D)
    write_h5(folder / "x.h5", ONE_CONV2D, {"c": {"c/kernel": KERNEL, "c/bias": BIAS}})
    np.savez(folder / "x.npz", **{"c.kernel": KERNEL, "c.bias": BIAS})
    np.save(folder / "x.npy", KERNEL)
    head = json.dumps({"c.kernel": {"dtype": "F32", "shape": [3, 3, 2, 2], "data_offsets": [0, 144]}}).encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + KERNEL.tobytes())
    return sorted(folder.glob("x.*"))


def test_files_that_were_cut_off_are_refused(tmp_path):
    for path in sound_files(tmp_path):
        data = path.read_bytes()
        assert len(importing.read(path, assume_defaults=True).layers) == 1
        cut = tmp_path / f"cut{path.suffix}"
        for length in (0, 1, 7, 8, 9, 60, len(data) // 3, len(data) // 2, len(data) - 1):
            cut.write_bytes(data[:length])
            refused(cut)


def test_damage_anywhere_is_found_or_harmless(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_ALWAYS_SECONDS", 3.0)
    rng = np.random.default_rng(0)
    for path in sound_files(tmp_path):
        data = path.read_bytes()
        damaged = tmp_path / f"damaged{path.suffix}"
        for _ in range(20 if path.suffix == ".h5" else 150):  # each .h5 file starts a process
            content = np.frombuffer(data, np.uint8).copy()
            places = rng.integers(0, len(content), rng.integers(1, 20))
            content[places] = rng.choice([0, 255, rng.integers(256)], len(places))
            damaged.write_bytes(content.tobytes())
            texts: list[str] = []
            try:
                importing.read(damaged, assume_defaults=True)
            except convserve.ConvserveError as error:
                texts.append(str(error))
            assert all("Expected" in text for text in texts)


@pytest.mark.parametrize(
    "head",
    [
        b"[]", b"{}x", b'{"a.kernel": 1}', b'{"a.kernel": {"dtype": "F32"}}', b'{"__metadata__": 1}',
        b'{"a.kernel": {"dtype": "F32", "shape": [1, 1, 1, -1], "data_offsets": [0, 4]}}',
        b'{"a.kernel": {"dtype": "F32", "shape": [1, 1, 1, 2], "data_offsets": [0, 4]}}',
        b'{"a.kernel": {"dtype": "F32", "shape": [1, 1, 1, 1], "data_offsets": [4, 8]}}',
        b'{"a.kernel": {"dtype": "F32", "shape": [1, 1, 1, 1], "data_offsets": [-4, 0]}}',
        b'{"a.kernel": {"dtype": "F32", "shape": [1, 1, 1, 1.0], "data_offsets": [0, 4]}}',
        b'{"a.kernel": {"dtype": ["F32"], "shape": [1, 1, 1, 1], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"format": "convserve.v1.layer", "conv2d": "{"}}',
        b'{"__metadata__": {"format": "convserve.v1.layer", "conv2d": "{\\"filters\\": \\"x\\"}"}}',
    ],
)  # fmt: skip
def test_a_head_that_contradicts_itself_is_refused(tmp_path, head):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    refused(tmp_path / "x.safetensors")


def test_a_head_that_says_it_is_long_is_not_read(tmp_path):
    for length in (2**63, 10**9, 5, 0):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        refused(tmp_path / "x.safetensors")
