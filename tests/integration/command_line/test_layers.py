"""`convserve layers` against a real server."""

import json

import numpy as np
import pytest

import convserve
from convserve import cli
from tests.support.keras.archives import BIAS, KERNEL, WEIGHTS, conv2d, model, weights_file, write_archive


@pytest.fixture
def run(client, own_server, runs):
    """Runs `convserve layers` on an empty store."""
    for layer in client.layers():
        client.delete(layer)
    return runs(own_server.target, "layers")


@pytest.fixture
def client(own_server):
    with convserve.Client(own_server.target) as connected:
        yield connected


@pytest.fixture
def archive(tmp_path):
    """A model of two Conv2Ds, a ReLU, and a class that calls itself Conv2D."""
    layers = [conv2d("stem", strides=2), conv2d("mine") | {"module": "mine"}, conv2d("head", activation="relu")]
    relu = {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"}, "registered_name": None}
    weights = weights_file({"layers/conv2d": WEIGHTS, "layers/conv2d_2": {"0": KERNEL + 1, "1": BIAS}})
    return write_archive(tmp_path / "net.keras", model("net", *layers, relu), weights)


@pytest.fixture
def kernel(tmp_path):
    np.save(tmp_path / "kernel.npy", KERNEL)
    np.save(tmp_path / "bias.npy", BIAS)
    return ["--kernel", tmp_path / "kernel.npy", "--bias", tmp_path / "bias.npy"]


def test_an_empty_store(run):
    assert run("list") == (0, "0 layers, 0 bytes of weights\n", "")
    status, out, _ = run("list", "--json")
    assert (status, json.loads(out)) == (0, {"layers": []})


def test_import_says_what_was_imported_and_what_was_skipped(run, client, archive):
    status, out, err = run("import", archive)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "digest", "kernel", "strides", "padding", "activation", "weights"]
    assert lines[1].startswith("net/stem  ")
    assert lines[2].startswith("net/head  ")
    assert lines[3] == "2 layers, 304 bytes of weights"
    assert "sent     2 layers, 304 bytes of weights\n" in out
    assert "skipped  1 ReLU" in out
    assert "note     the model computes 1 ReLU beside these layers, so they alone give other numbers" in out
    assert "net/mine (Conv2D): custom ('mine') class that calls itself Conv2D" in out
    x = np.ones((1, 5, 5, 2), np.float32)
    np.testing.assert_allclose(client.layer("net/stem")(x)[0, 0, 0], KERNEL.sum((0, 1, 2)) + BIAS, rtol=1e-5)
    assert client.layer("net/head").config.activation.keras_name == "relu"


def test_what_surrounds_a_convolution_is_folded_where_that_is_asked(run, client, tmp_path):
    relu = {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"}, "registered_name": None}
    path = write_archive(tmp_path / "net.keras", model("net", conv2d("stem"), relu, kind="Sequential"))
    status, out, _ = run("import", path, "--fold-batch-norm", "--json")
    found = json.loads(out)
    assert (status, found["skipped"], found["note"]) == (0, [], "")
    assert client.layer("net/stem").config.activation.keras_name == "relu"
    assert "--fold-batch-norm" in json.loads(run("import", path, "--json")[1])["note"]
    np.savez(tmp_path / "x.npz", **{"c.kernel": KERNEL})
    status, _, err = run("import", tmp_path / "x.npz", "--fold-batch-norm")
    assert status == 1
    assert err.startswith("error: file: Expected a whole model")


def test_only_what_is_missing_is_sent(run, client, archive):
    client.put(convserve.Conv2D(2, 3, strides=2, data_format="channels_last", dtype="float32"), KERNEL, BIAS)
    _, out, _ = run("import", archive, "--prefix", "a/b", "--json")
    found = json.loads(out)
    assert {each["name"]: each["sent"] for each in found["imported"]} == {"a/b/stem": False, "a/b/head": True}
    assert found["layers"] == found["imported"]  # by the name that `layers list` has for them
    assert client.layer("a/b/stem").config.strides == (2, 2)
    _, out, _ = run("import", archive)
    assert "nothing: the server held them all" in out
    assert {each["kind"] for each in found["skipped"]} == {"ReLU", "Conv2D"}


def test_a_dry_run_asks_no_server(archive, capsys):
    assert cli.main(["layers", "import", str(archive), "--dry-run", "--target", "127.0.0.1:1"]) == 0
    out = capsys.readouterr().out
    assert "net/stem" in out
    assert "nothing: --dry-run" in out


def test_arrays_take_their_geometry_from_options_and_a_file(run, client, tmp_path):
    weight = np.ascontiguousarray(KERNEL.transpose(3, 2, 0, 1))
    np.savez(
        tmp_path / "state.npz", **{"conv1.weight": weight, "conv1.bias": BIAS, "up.weight": weight, "b.weight": weight}
    )
    (tmp_path / "geometry.json").write_text(json.dumps({"conv1": {"stride": 2, "padding": [0, 1]}, "up": None}))
    status, out, _ = run(
        *("import", tmp_path / "state.npz", "--config", tmp_path / "geometry.json", "--padding", 1),
        *("--activation", "relu"),
    )
    assert status == 0
    assert "up (array of rank 4): left out, as was asked" in out
    assert client.layer("state/conv1").config.padding == ((0, 0), (1, 1))
    assert client.layer("state/conv1").config.strides == (2, 2)
    assert client.layer("state/b").config.padding == ((1, 1), (1, 1))
    assert client.layer("state/b").config.activation.keras_name == "relu"


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("1", ((1, 1), (1, 1))),
        ("1,2", ((1, 1), (2, 2))),
        ("0", "valid"),
        ("SAME", "same"),
        ("1x2x3x4", ((1, 2), (3, 4))),
    ],
)
def test_padding_in_each_wording(run, client, tmp_path, padding, expected):
    np.save(tmp_path / "k.npy", KERNEL)
    assert run("import", tmp_path / "k.npy", "--padding", padding)[0] == 0
    assert client.layer("k").config.padding == expected


def test_geometry_that_nobody_says_is_refused_or_told(run, client, tmp_path):
    weight, path = np.ascontiguousarray(KERNEL.transpose(3, 2, 0, 1)), tmp_path / "said.npz"
    np.savez(path, **{"conv1.weight": weight, "conv2.weight": weight})
    status, _, err = run("import", path)
    assert status == 2
    assert err.startswith("error: --config: Expected strides and padding of each layer, which the file does not say.")
    assert "--assume-defaults" in err
    status, out, _ = run("import", path, "--assume-defaults")
    assert status == 0
    text = "strides 1, padding 'valid', dilation 1, groups 1"
    assert f"assumed  said/conv1: {text}\n         said/conv2: {text}\n" in out
    assert client.layer("said/conv2").config.strides == (1, 1)
    (tmp_path / "one.json").write_text('{"conv1": {"stride": 2}}')
    status, out, _ = run("import", path, "--config", tmp_path / "one.json", "--json")
    found = json.loads(out)
    assert ([each["name"] for each in found["layers"]], found["assumed"]) == (["said/conv1"], {})
    assert "--padding" in found["skipped"][0]["reason"]


def test_what_cannot_be_imported_is_told_in_one_line(run, tmp_path, archive):
    np.save(tmp_path / "flat.npy", KERNEL.ravel())
    (tmp_path / "bad.json").write_text("[1")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "m.pt").write_bytes(b"\x80\x02")
    for words, message in (
        ((tmp_path / "no.keras",), "error: file: Expected a file that can be read"),
        ((tmp_path / "m.pt",), "error: file: Expected a file that runs no code"),
        ((tmp_path / "flat.npy",), "error: file: Expected a file with a Conv2D"),
        ((archive, "--strides", 2), "error: --config: Expected no parameters"),
        ((archive, "--prefix", "../x"), "error: --prefix: Expected 1 to 200 letters"),
        (
            (tmp_path / "flat.npy", "--config", tmp_path / "no.json"),
            "error: --config: Expected a file that can be read",
        ),
        ((tmp_path / "flat.npy", "--config", tmp_path / "bad.json"), "error: --config: Expected a JSON file"),
        ((tmp_path / "flat.npy", "--config", tmp_path / "list.json"), "error: --config: Expected a JSON file"),
    ):
        status, _, err = run("import", *words)
        assert status == (2 if "no parameters" in message or "prefix" in message else 1)
        assert err.startswith(message)
        assert err.count("\n") == 1


def test_put_get_and_delete(run, client, kernel, tmp_path):
    status, out, _ = run("put", "--name", "edges/x", *kernel, "--strides", 2, "--padding", "1,1,1,1")
    assert status == 0
    digest = client.layer("edges/x").digest.hex()
    assert f"digest      {digest}" in out
    assert "padding=((1, 1), (1, 1))" in out
    for reference in ("edges/x", digest, digest[:8]):
        assert run("get", reference)[1] == out
    _, out, _ = run("get", "edges/x", "--json")
    found = json.loads(out)
    assert (found["name"], found["digest"], found["parameters"]) == ("edges/x", digest, 38)
    assert found["config"]["filters"] == 2
    status, out, _ = run("get", digest[:10], "-o", tmp_path / "l.safetensors")
    assert f"written     {tmp_path / 'l.safetensors'}" in out
    assert run("get", "edges/x", "-o", tmp_path / "l.npz")[0] == 0
    with np.load(tmp_path / "l.npz") as arrays:
        np.testing.assert_array_equal(arrays["kernel"], KERNEL)
        np.testing.assert_array_equal(arrays["bias"], BIAS)
    assert run("import", tmp_path / "l.npz", "--dry-run", "--json")[1].count(digest) == 2
    assert run("delete", "edges/x")[1] == f"deleted the name edges/x, which led to {digest[:12]}\n"
    assert run("list")[1].startswith("0 layers")
    assert run("import", tmp_path / "l.safetensors")[0] == 0
    assert client.layer("l").digest.hex() == digest
    assert run("delete", digest[:12])[1] == f"deleted the layer {digest[:12]}\n"
    assert not client.layers()


def test_put_of_classic_and_drawn_weights(run, client):
    assert run("put", "--name", "edges", "--kernel", "sobel-x", "--input-channels", 3)[0] == 0
    assert client.layer("edges").kernel_shape == (3, 3, 1, 3)
    drawn = ("put", "--name", "random", "--filters", 4, "--kernel-size", 3, "--input-channels", 3, "--seed", 7)
    digest = json.loads(run(*drawn, "--json")[1])["digest"]
    assert json.loads(run(*drawn, "--json")[1])["digest"] == digest
    assert client.layer("random").config.kernel_initializer.seed == 7


def test_list_in_the_order_of_names(run, kernel):
    for strides, name in enumerate(("b", "a/2", "a/1"), 1):
        run("put", "--name", name, *kernel, "--strides", strides)
    status, out, _ = run("list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "a/1", "a/2", "b", "3"]
    assert out.splitlines()[-1] == "3 layers, 456 bytes of weights"
    listed = json.loads(run("list", "--prefix", "a/", "--json")[1])["layers"]
    assert [each["name"] for each in listed] == ["a/1", "a/2"]


def test_a_layers_names_are_all_shown(run, kernel):
    for name in ("b", "a/x", "a"):
        run("put", "--name", name, *kernel)
    assert run("list")[1].splitlines()[1].startswith("a, a/x, b  ")
    assert run("get", "b")[1].splitlines()[0].split(maxsplit=1) == ["name", "a, a/x, b"]
    (listed,) = json.loads(run("list", "--prefix", "a/", "--json")[1])["layers"]
    assert (listed["name"], listed["names"]) == ("a/x", ["a", "a/x", "b"])


def test_wrong_references_and_names_are_told(run, kernel, tmp_path):
    run("put", "--name", "deadbeef", *kernel)
    for words, message in (
        (("get", "nothing"), "error: Expected the name of a stored layer. Received 'nothing'"),
        (("get", "0" * 8), "error: Expected a stored layer. Received '00000000'"),
        (("delete", "../../x"), "error: "),
        (("put", "--name", "../x", *kernel), "error: --name: Expected 1 to 200 letters"),
        (("put", "--name", "a b", *kernel), "error: --name: Expected 1 to 200 letters"),
        (("put", *kernel, "--input-channels", 3), "error: --kernel: Expected shape (3, 3, 3, 2)"),
        (("get", "deadbeef", "-o", tmp_path / "x.pkl"), "error: --output: Expected a file name that ends in"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (2 if "--name" in message or "--output" in message else 1, "")
        assert err.startswith(message)
    assert run("get", "deadbeef")[0] == 0  # a name, though it could be the beginning of a digest


def test_a_stored_layer_on_a_picture(run, own_server, client, capsys, tmp_path):
    run("put", "--name", "edges", "--kernel", "sobel-x", "--input-channels", 2)
    x = np.random.default_rng(0).random((1, 6, 6, 2), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--target", own_server.target, "-o", str(tmp_path / "y.npy")]
    assert cli.main(["conv2d", str(tmp_path / "x.npy"), "--layer", "edges", *options]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), client.layer("edges")(x))
    assert cli.main(["conv2d", str(tmp_path / "x.npy"), "--layer", "edges", "--strides", "2", *options]) == 2
    assert "--strides: not allowed with --layer" in capsys.readouterr().err


def test_help_needs_no_server(capsys):
    for words in ([], ["list"], ["put"], ["get"], ["versions"], ["move"], ["delete"], ["import"]):
        assert cli.main(["layers", *words, "--help"]) == 0
        assert "examples:" in capsys.readouterr().out
