"""`convserve layers` with names: versions, moves, and all layers under a prefix, deleted, saved and put back."""

import json
import os
import pty

import numpy as np
import pytest

import convserve
from convserve import Client, Conv2D, Layer
from convserve.errors import UnavailableError
from convserve.files.layers import save_layer

CONFIG = Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")


def layer(number):
    return Layer(CONFIG, np.full((1, 1, 1, 1), number, "f4"))


@pytest.fixture
def client(own_server):
    """A client of an empty store."""
    with Client(own_server.target) as connected:
        for each in connected.layers():
            connected.delete(each)
        yield connected


@pytest.fixture
def run(own_server, runs):
    return runs(own_server.target, "layers")


@pytest.fixture
def names(client):
    """Names of layers: two under m1/ that share a layer, one that has a second name elsewhere, one of another model."""
    for number, name in ((1, "m1/a"), (1, "m1/b"), (2, "m1/c"), (2, "other"), (3, "m10/a")):
        client.put(layer(number), name=name)
    return ["m1/a", "m1/b", "m1/c"]


def digest(number):
    return layer(number).digest.hex()


def left(client):
    return sorted(name for each in client.layers() for name in each.names)


def test_versions(run, client):
    for number in (1, 2, 1):
        client.put(layer(number), name="a")
    client.delete(client.layer(digest=digest(2)))
    status, out, _ = run("versions", "a")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["version", "digest", "moved", "there"]
    assert [line[:2] for line in lines[1:]] == [["3", digest(1)[:12]], ["2", digest(2)[:12]], ["1", digest(1)[:12]]]
    assert [line[5:] for line in lines[1:]] == [["current"], ["not", "stored", "any", "more"], []]
    found = json.loads(run("versions", "a", "--json")[1])
    assert found["name"] == "a"
    assert [(each["version"], each["digest"]) for each in found["versions"]] == [
        (1, digest(1)), (2, digest(2)), (3, digest(1)),
    ]  # fmt: skip
    assert [each["moved_at"] for each in found["versions"]] == [
        each.moved_at.isoformat() for each in client.versions("a")
    ]
    assert [(each["stored"], each["current"]) for each in found["versions"]] == [
        (True, False), (False, False), (True, True),
    ]  # fmt: skip


def test_move(run, client):
    for number in (1, 2, 3):
        client.put(layer(number), name="a")
    assert run("move", "a", digest(1)[:12])[1] == f"a leads to {digest(1)[:12]}\n"
    assert run("move", "a", digest(2), "--expect", digest(1)[:8])[0] == 0
    assert run("move", "a", "--version", 3, "--expect", digest(2))[1] == f"a leads to {digest(3)[:12]}\n"
    assert run("move", "b", "a", "--expect", "absent")[0] == 0
    assert run("move", "a", "--version", 1, "--expect", "b")[0] == 0
    assert [each.digest.hex() for each in client.versions("a")] == [digest(number) for number in (1, 2, 3, 1, 2, 3, 1)]
    assert json.loads(run("move", "b", "--away", "--json")[1]) == {"name": "b", "digest": None}
    assert json.loads(run("move", "b", "a", "--json")[1]) == {"name": "b", "digest": digest(1)}
    assert run("move", "b", "--away", "--expect", digest(1))[1] == "b leads nowhere\n"
    assert left(client) == ["a"]
    assert len(client.layers()) == 3


def test_put_where_it_is_expected(run, client):
    put = ("put", "--kernel", "sobel-x", "--name", "a", "--expect")
    assert run(*put, "absent")[0] == 0
    assert run(*put, "absent")[0] == 0  # it leads there already
    client.put(layer(1), name="a")
    status, out, err = run(*put, "absent")
    assert (status, out) == (1, "")
    received = f"one that leads to {digest(1)}, its version 2: nothing was changed"
    assert err == f"error: Expected no name 'a'. Received {received}.\n"
    assert run(*put, digest(1)[:8])[0] == 0
    assert len(client.versions("a")) == 3


def test_wrong_words_are_told(run, client):
    client.put(layer(1), name="a")
    for words, status, message in (
        (("move", "a"), 2, "one of NAME|DIGEST, --version and --away is needed"),
        (("move", "a", "a", "--away"), 2, "one of NAME|DIGEST, --version and --away is needed"),
        (("move", "a", "--version", 2), 1, "versions 1 to 1 of the name 'a'. Received 2"),
        (("move", "a", "--version", 0), 2, "error: --version: Expected the number of a version"),
        (("move", "a", "b"), 1, "error: Expected the name of a stored layer. Received 'b'"),
        (("move", "a", "0" * 64), 1, "which this server does not hold"),
        (("move", "a", "--away", "--expect", "b"), 1, "error: Expected the name of a stored layer. Received 'b'"),
        (("put", "--kernel", "sobel-x", "--expect", "absent"), 2, "error: --expect: Expected a name"),
        (("versions", "b"), 1, "Received 'b', which leads nowhere"),
        (("delete",), 2, "NAME|DIGEST or --prefix is needed"),
        (("delete", "a", "--prefix", "a"), 2, "NAME|DIGEST with --prefix is one too many"),
        (("delete", "a", "--dry-run"), 2, "--dry-run and --yes are for --prefix"),
        (("delete", "--prefix", ""), 2, "error: --prefix: Expected the beginning of names"),
        (("get",), 2, "NAME|DIGEST or --prefix is needed"),
        (("get", "--prefix", "a"), 2, "--prefix needs --output"),
    ):
        found, _, err = run(*words)
        assert (found, message in err) == (status, True), (words, err)
    assert left(client) == ["a"]


def test_json_has_keras_configuration(run, client):
    stem = Conv2D(2, 3, strides=2, padding="same", activation="relu", name="stem", data_format="channels_last")
    client.put(stem, input_channels=1, seed=0, name="a")
    client.put(CONFIG.replace(padding=((1, 1), (0, 0))), input_channels=1, name="b")
    listed = {each["name"]: each for each in json.loads(run("list", "--json")[1])["layers"]}
    keras_config = listed["a"]["keras_config"]
    assert (keras_config["filters"], keras_config["kernel_size"], keras_config["padding"]) == (2, [3, 3], "same")
    assert keras_config == json.loads(json.dumps(client.layer("a").config.to_keras_config()))
    assert listed["b"]["keras_config"] is None  # which Keras has no word for


# Under a prefix


def test_delete_under_a_prefix_says_what_goes(run, client, names, tmp_path):
    status, out, err = run("delete", "--prefix", "m1/", "--dry-run")
    goes = ["m1/a", "m1/b", "m1/c", "3 names, and with their last names 1 layer, 4 bytes of weights"]
    assert (status, out.splitlines(), err) == (0, [*goes, "deleted nothing: --dry-run"], "")
    assert len(left(client)) == 5
    assert run("delete", "--prefix", "m1/")[1].splitlines() == [*goes, "deleted 3 names"]
    assert left(client) == ["m10/a", "other"]
    assert len(client.layers()) == 2
    for words in (("delete", "--prefix", "m1/"), ("get", "--prefix", "m1/", "-o", tmp_path / "none")):
        status, _, err = run(*words)
        assert (status, "begins with. Received 'm1/', as none does" in err) == (1, True)
    found = json.loads(run("delete", "--prefix", "m", "--json")[1])
    assert found == {"prefix": "m", "dry_run": False, "names": ["m10/a"], "layers": [digest(3)], "deleted": ["m10/a"]}


@pytest.mark.parametrize(("answer", "status", "kept"), [("y", 0, 2), ("n", 130, 5)])
def test_a_terminal_is_asked(run, client, names, monkeypatch, answer, status, kept):
    terminal, stdin = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    with os.fdopen(stdin) as opened:
        monkeypatch.setattr("sys.stdin", opened)
        assert run("delete", "--prefix", "m1/")[0] == status
        assert len(left(client)) == kept
        assert run("delete", "--prefix", "m1", "--yes")[0] == 0
    os.close(terminal)


def test_what_ends_in_the_middle_says_what_was_done_and_is_repeated(run, client, names, monkeypatch, tmp_path):
    delete, weights = Client.delete, convserve.StoredLayer.weights

    def failing(replaced, of):
        def call(self, *arguments, **options):
            if of(self, *arguments):
                raise UnavailableError("gone")
            return replaced(self, *arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Client, "delete", failing(delete, lambda _, name: name == "m1/b"))
        status, _, err = run("delete", "--prefix", "m1/")
        assert status == 1
        done = "deleted 1 of 3 names, the last of them 'm1/a'; another attempt deletes the others"
        assert err.startswith(f"{done}\nerror: ")
        with pytest.raises(UnavailableError) as caught:
            client.delete_all("m1/")
        assert caught.value.__notes__ == ["deleted 0 of 2 names; another attempt deletes the others"]
        patched.setattr(convserve.StoredLayer, "weights", failing(weights, lambda self: self.digest.hex() == digest(2)))
        status, _, err = run("get", "--prefix", "m1/", "-o", tmp_path / "saved")
        assert status == 1
        assert " of 2 files; another attempt writes all again\nerror: " in err
    assert run("get", "--prefix", "m1/", "-o", tmp_path / "saved")[0] == 0
    assert run("delete", "--prefix", "m1/")[0] == 0
    assert left(client) == ["m10/a", "other"]


def test_what_is_saved_is_put_back(run, client, names, tmp_path):
    odd = ["m1//x", "m1/./y", "m1/z/", "m1/.hidden", "m1/w.safetensors", "m1/v.partial", "m1"]
    for number, name in enumerate(odd):
        client.put(layer(10 + number), name=name)
    before = {name: each.digest for each in client.layers() for name in each.names if name.startswith("m1")}
    folder = tmp_path / "saved"
    status, out, _ = run("get", "--prefix", "m1", "-o", folder)
    assert status == 0
    assert out.splitlines()[-1] == f"wrote 11 files into {folder}"
    assert (folder / "m1" / "a.safetensors").is_file()
    assert not list(folder.rglob("*.partial"))
    found = json.loads(run("get", "--prefix", "m1/", "-o", folder, "--json")[1])
    assert {each["name"]: each["file"] for each in found["layers"]}["m1/a"] == str(folder / "m1/a.safetensors")
    assert run("delete", "--prefix", "m")[0] == 0
    (folder / "notes.txt").write_text("no layer")
    (folder / "m1" / "%0123456789ab.partial.safetensors").write_bytes(b"what version 0.2 left when it was killed")
    status, out, _ = run("import", folder)
    assert status == 0
    assert {name: each.digest for each in client.layers() for name in each.names if name.startswith("m1")} == before
    assert run("import", folder, "--prefix", "copy")[0] == 0
    assert client.layer("copy/m1/a").digest == layer(1).digest
    assert run("import", folder / "m1" / "a.safetensors")[0] == 0
    assert client.layer("a").digest == layer(1).digest


def test_a_folders_names_are_made_to_fit_and_a_wrong_prefix_is_refused(run, client, tmp_path):
    for number, name in enumerate(("my layer", "my_layer")):
        save_layer(tmp_path / f"{name}.safetensors", layer(number))
    status, _, err = run("import", tmp_path, "--prefix", "bad..name", "--dry-run")
    assert status == 2
    assert "prefix: Expected" in err
    assert run("import", tmp_path, "--prefix", "copy/")[0] == 0
    assert [client.layer(f"copy/{name}").digest for name in ("my_layer", "my_layer_2")] == [
        layer(number).digest for number in (0, 1)
    ]


def test_a_file_of_weights_alone_is_skipped_in_a_folder(run, client, tmp_path):
    from safetensors.numpy import save_file

    client.put(layer(1), name="a")
    assert run("get", "--prefix", "a", "-o", tmp_path)[0] == 0
    save_file({"conv.weight": np.ones((1, 1, 1, 1), "f4")}, str(tmp_path / "state.safetensors"))
    status, out, _ = run("import", tmp_path, "--dry-run")
    assert status == 0
    assert "state (file): weights without a configuration" in out
    (tmp_path / "b.safetensors").write_bytes(b"torn")
    status, _, err = run("import", tmp_path, "--dry-run")
    assert status == 1
    assert "b.safetensors" in err
