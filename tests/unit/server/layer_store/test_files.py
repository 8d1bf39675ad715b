"""The folder of a durable store: what it keeps, and what it survives."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from convserve import Layer, LayerNotFoundError, OverloadedError, UnavailableError
from convserve_server.layer_store.names import Move
from tests.support.layers.folder import CONFIG, KEY, LAYER, OTHER, file_of, is_layer, opened, quarantined


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one layer under one name."""
    opened(tmp_path).put(LAYER, Move("net/stem"))
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_store_that_is_opened_again_has_every_layer_and_name(tmp_path: Path, dtype: str, use_bias: bool) -> None:
    config = CONFIG.replace(dtype=dtype, use_bias=use_bias, padding=((1, 2), (3, 4)), input_shape=(None, 3, 2))
    kernel = np.float64([[[[0.1, -0.0], [np.nan, 1e-7]]]])
    layer = Layer(config, kernel, [np.inf, 1] if use_bias else None)
    first, *_ = opened(tmp_path).put(layer, Move("a"))
    opened(tmp_path).put(layer, Move("b/c"))
    store = opened(tmp_path)
    found = store.layer(store.digest_of("b/c"))
    assert found.config == config
    assert found.digest == layer.digest
    described = store.describe(layer.digest)
    assert described.names == ("a", "b/c")
    assert (described.config, described.kernel_shape) == (first.config, first.kernel_shape)


def test_a_layers_file_is_ordinary_safetensors(folder: Path) -> None:
    tensors = load_file(file_of(folder))
    assert tensors.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(tensors["kernel"], LAYER.kernel)


def test_what_is_deleted_stays_deleted(folder: Path) -> None:
    opened(folder).put(OTHER, Move("other"))
    opened(folder).delete("net/stem")
    opened(folder).delete(OTHER.digest)
    assert opened(folder).page("", b"", 10) == []
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]


def test_a_file_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = opened(tmp_path), []
    fsync, rename = os.fsync, Path.rename

    def seen_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(("sync", path.name if path.is_dir() else path.suffix))
        fsync(descriptor)

    def seen_rename(path: Path, target: Path) -> Path:
        steps.append(("rename", target.suffix))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    store.put(LAYER, Move("a"))
    assert steps == [
        ("sync", ".partial"), ("rename", ".safetensors"), ("sync", "layers"),
        ("sync", ".partial"), ("rename", ".json"), ("sync", "names"),
    ]  # fmt: skip


# Ends before every operation on a file, one after the other, a process that puts OTHER under the name of LAYER.
KILLED = """
import os, shutil, sys
from pathlib import Path
from convserve_server.layer_store.names import Move
from tests.support.layers.folder import KEY, OTHER, opened
base, copies = map(Path, sys.argv[1:])
ended = False
for step in range(100):
    shutil.copytree(base, copies / str(step))
    child = os.fork()
    if not child:
        store, count = opened(copies / str(step)), 0
        def hook(event, arguments):
            global count
            if event in ("open", "os.rename", "os.remove", "os.mkdir"):
                if count == step:
                    os._exit(9)
                count += 1
        sys.addaudithook(hook)
        store.put(OTHER, Move("net/stem", KEY, b"i" * 16))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def test_killed_before_any_step_of_a_put_the_store_has_the_old_or_the_new(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    shutil.rmtree(folder / "quarantine")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    base = shutil.copytree(folder, tmp_path / "base")
    subprocess.run([sys.executable, "-c", KILLED, base, copies], check=True, env=environment)
    led_to = []
    for step in range(len(list(copies.iterdir()))):
        store = opened(copies / str(step))
        assert is_layer(store.layer(KEY))
        key = store.digest_of("net/stem")
        led_to.append(store.layer(key).digest)
        assert quarantined(copies / str(step)) == []
        assert not list((copies / str(step)).rglob("*.partial"))
        # Whoever asks again, not knowing whether it was done, has it done once.
        assert store.put(OTHER, Move("net/stem", KEY, b"i" * 16))[2] == 2
        assert opened(copies / str(step)).versions("net/stem").digests == (KEY, OTHER.digest)
    assert len(led_to) > 6
    assert led_to == sorted(led_to, key=[KEY, OTHER.digest].index)  # first the old, then the new
    assert {led_to[0], led_to[-1]} == {KEY, OTHER.digest}


# Folders and disks that refuse


def test_a_folder_belongs_to_one_process_however_that_ends(folder: Path) -> None:
    code = (
        "import sys; from tests.support.layers.folder import *; store = opened(Path(sys.argv[1])); "
        "print(flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, folder]
    partial = folder / "layers" / "0.safetensors.abc.partial"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as other:
        assert other.stdout is not None
        other.stdout.readline()
        partial.touch()  # the other one's, under way
        with pytest.raises(OSError, match="another server has it open"):
            opened(folder)
        assert partial.exists()
        other.kill()
    assert is_layer(opened(folder).layer(KEY))


@pytest.fixture
def nobodys_folder(folder: Path) -> Iterator[Path]:
    """The same folder for a process that, unlike root, may not do everything."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / "store")
        root = os.geteuid() == 0
        if root:
            for each in (Path(place), copy, *copy.rglob("*")):
                os.chown(each, 65534, -1)
            os.seteuid(65534)
        yield copy
        if root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_used_is_an_error_at_the_start(nobodys_folder: Path) -> None:
    with pytest.raises(NotADirectoryError):
        opened(file_of(nobodys_folder))
    for each in ("layers", "names", "quarantine"):
        (nobodys_folder / each).chmod(0o555)
        with pytest.raises(PermissionError):
            opened(nobodys_folder)
        (nobodys_folder / each).chmod(0o755)
    assert is_layer(opened(nobodys_folder).layer(KEY))


def test_a_file_that_may_not_be_read_is_quarantined(nobodys_folder: Path) -> None:
    file_of(nobodys_folder).chmod(0)
    store = opened(nobodys_folder)
    with pytest.raises(LayerNotFoundError):
        store.layer(KEY)
    assert len(quarantined(nobodys_folder)) == 1
    store.put(LAYER)
    assert is_layer(store.layer(KEY))


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.ENOSPC, OverloadedError, r"--store\. Received none: No space.*Delete some"),
        (errno.EMFILE, OverloadedError, "open files: retry"),
        *((number, UnavailableError, os.strerror(number)) for number in (errno.EIO, errno.EROFS, errno.EACCES)),
    ],
)
def test_a_disk_that_fails_leaves_the_old_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], text: str
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    store = opened(folder)
    usage = store.usage()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(error, match=text):
            store.put(OTHER, Move("net/stem"))
    assert store.usage() == usage
    assert (store.missing([OTHER.digest]), store.digest_of("net/stem")) == ([OTHER.digest], KEY)
    assert sorted(path.suffix for path in folder.glob("*/*") if path.is_file()) == [".json", ".safetensors"]
    store.put(OTHER, Move("net/stem"))
    assert opened(folder).digest_of("net/stem") == OTHER.digest
