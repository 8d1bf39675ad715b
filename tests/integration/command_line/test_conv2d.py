"""The command line against a real server."""

import json
import re

import numpy as np
import pytest

import convserve
import convserve.importing

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


@pytest.fixture
def photo(tmp_path):
    """The path of a small RGB picture: a bright square on a dark ground."""
    pixels = np.full((20, 30, 3), 40, np.uint8)
    pixels[5:15, 10:20] = (250, 120, 60)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(server, runs):
    return runs(server.target)


def test_health(run):
    assert run("health") == (0, "SERVING\n", "")


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    assert f"convserve {convserve.__version__}, TensorFlow " in out
    assert "cpu:0" in out or "gpu:0" in out


def test_info_as_json(run):
    _, out, _ = run("info", "--json")
    found = json.loads(out)
    assert found["version"] == convserve.__version__
    assert found["devices"][0]["kind"] in ("cpu", "gpu")
    assert "uint8" in found["input_dtypes"]
    assert found["max_layers_per_call"] >= 1
    assert found["max_call_flops"] >= 10**13


def test_plan_says_whether_the_server_would_take_the_call(run):
    layer = ("--filters", 64, "--kernel-size", 3)
    status, out, _ = run("plan", "--input-shape", "4,60,60,3", *layer)
    assert status == 0
    assert "(4, 58, 58, 64) float32" in out
    assert "admitted    yes" in out
    status, out, _ = run("plan", "--input-shape", "40000,6000,6000,3", *layer, "--json")
    assert status == 0
    assert json.loads(out)["admitted"] is False
    assert "Expected at most" in json.loads(out)["refusal"]


def test_a_classic_kernel_on_a_picture(run, photo, tmp_path):
    drawing = ("--picture", tmp_path / "edges.png", "--picture-scale", 1)
    status, out, err = run("conv2d", photo, "--kernel", "sobel-x", *drawing)
    assert (status, err) == (0, "")
    assert "input    (1, 20, 30, 3) uint8" in out
    assert "output   (1, 20, 30, 3) float32" in out
    assert "range    -840 to 840" in out
    assert "edges.png (black is -840, white is 840)" in out
    with Image.open(tmp_path / "edges.png") as image:
        edges = np.array(image)
    assert edges.shape == (20, 30, 3)
    assert edges[10, 10, 0] == 255  # dark to bright
    assert edges[10, 20, 0] == 0  # bright to dark
    assert edges[10, 15, 0] == 128  # neither: rint(127.5) is even


def test_channels_first_gives_the_same_picture(run, photo, tmp_path):
    run("conv2d", photo, "--kernel", "gaussian", "--picture", tmp_path / "last.png")
    status, out, _ = run(
        "conv2d", photo, "--kernel", "gaussian", "--data-format", "channels_first", "--picture", tmp_path / "first.png"
    )
    assert status == 0
    assert "output   (1, 3, 20, 30) float32" in out
    with Image.open(tmp_path / "last.png") as last, Image.open(tmp_path / "first.png") as first:
        np.testing.assert_allclose(np.array(first, int), np.array(last, int), atol=1)


def width_of(path):
    with Image.open(path) as image:
        return image.width


def test_a_grid_has_the_input_beside_it_and_a_picture_if_wanted(run, photo, tmp_path):
    layer = ("conv2d", photo, "--filters", 6, "--kernel-size", 3, "--seed", 0, "--picture")
    run(*layer, tmp_path / "both.png")
    run(*layer, tmp_path / "alone.png", "--no-picture-input")
    assert width_of(tmp_path / "both.png") > width_of(tmp_path / "alone.png") + 100
    kernel = ("conv2d", photo, "--kernel", "box", "--picture")
    run(*kernel, tmp_path / "picture.png", "--picture-scale", 1)
    assert width_of(tmp_path / "picture.png") == 30  # the output itself
    status, out, _ = run(*kernel, tmp_path / "beside.png", "--picture-input")
    assert status == 0
    assert "beside.png (black is" in out
    assert width_of(tmp_path / "beside.png") > 300


def test_channels_are_chosen_and_share_a_scale(run, photo, tmp_path):
    layer = ("conv2d", photo, "--filters", 100, "--kernel-size", 3, "--seed", 0, "--picture", tmp_path / "y.png")
    _, out, _ = run(*layer)
    assert "(the first 64 of 100 feature maps, each scaled by itself, 0 is white)" in out
    _, out, _ = run(*layer, "--picture-channels", "3,90-99", "--picture-range", "shared")
    assert re.search(r"\(11 of 100 feature maps, blue is -[\d.]+, white is 0, red is [\d.]+\)", out)
    _, out, _ = run(*layer, "--activation", "relu", "--picture-range", "shared", "--picture-channels", "0-3")
    assert re.search(r"\(4 of 100 feature maps, dark is 0, bright is [\d.]+\)", out)
    status, _, err = run(*layer, "--picture-channels", "100")
    assert status == 2
    assert err.startswith("error: --picture-channels: Expected numbers from 0 to 99, one at least. Received [100].")


def test_weights_from_files_are_those_of_the_call(run, server, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 2, 2, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, other=bias)
    np.save(tmp_path / "k.npy", kernel)
    np.save(tmp_path / "b.npy", bias)
    options = ("--kernel", tmp_path / "k.npy", "--bias", tmp_path / "b.npy", "--groups", 2, "--strides", "2,1")
    status, out, _ = run(
        *("conv2d", f"{tmp_path}/x.npz:x", *options, "--padding", "0,1,1,0", "--activation", "tanh"),
        *("-o", tmp_path / "y.npy", "--picture", tmp_path / "y.png"),
    )
    assert status == 0
    assert "all 6 feature maps" in out
    assert (tmp_path / "y.png").stat().st_size > 1000
    with convserve.Client(server.target) as client:
        expected = client.conv2d(
            x, kernel=kernel, bias=bias, groups=2, strides=(2, 1), padding=((0, 1), (1, 0)), activation="tanh"
        )
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-6)


def test_a_seed_that_the_server_picked_gives_the_same_weights_again(run, photo, tmp_path):
    layer = ("--filters", 5, "--kernel-size", 3, "--kernel-initializer", "he_normal")
    _, out, _ = run("conv2d", photo, *layer, "-o", tmp_path / "a.npy")
    seed = out.partition("seed     ")[2].partition(",")[0]
    _, out, _ = run("conv2d", photo, *layer, "--seed", seed, "-o", tmp_path / "b.npy")
    assert "picked by the server" not in out
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_the_summary_as_json(run, photo, tmp_path):
    regularizer = '{"class_name": "L2", "config": {"l2": 0.5}}'
    _, out, _ = run(
        *("conv2d", photo, "--filters", 2, "--kernel-size", 3, "--kernel-initializer", "ones"),
        *("--kernel-regularizer", regularizer, "--output-dtype", "bfloat16", "-o", tmp_path / "y.npy", "--json"),
    )
    found = json.loads(out)
    assert found["input"] == {"path": str(photo), "shape": [1, 20, 30, 3], "dtype": "uint8"}
    assert found["output"]["shape"] == [1, 18, 28, 2]
    assert found["output"]["dtype"] == "bfloat16"
    assert found["losses"] == {"kernel": pytest.approx(0.5 * 3 * 3 * 3 * 2)}
    assert found["files"] == [str(tmp_path / "y.npy")]
    assert found["timing"]["total_us"] >= found["timing"]["compute_us"] > 0
    assert np.load(tmp_path / "y.npy").dtype == np.float32  # the format has no bfloat16


def test_a_small_picture_is_enlarged_to_its_inputs_scale_without_smoothing(run, tmp_path):
    x = np.zeros((8, 8, 1), np.float32)
    x[::2] = 1
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "one.npy", np.ones((1, 1, 1, 1), np.float32))
    for strides, side in ((1, 8), (2, 4)):
        options = ("--kernel", tmp_path / "one.npy", "--strides", strides, "--picture", tmp_path / "y.png")
        assert run("conv2d", tmp_path / "x.npy", *options)[0] == 0
        with Image.open(tmp_path / "y.png") as image:
            pixels = np.array(image)
        assert pixels.shape == (32 * side, 32 * side)  # 256 / 8 for each pixel of the input, so of the output too
        drawn = x[::strides, ::strides, 0] * 255 if strides == 1 else np.full((4, 4), 127)
        np.testing.assert_array_equal(pixels, drawn.repeat(32, 0).repeat(32, 1))
    np.save(tmp_path / "x.npy", np.zeros((8, 65, 1), np.float32))
    run("conv2d", tmp_path / "x.npy", "--kernel", "box", "--picture", tmp_path / "y.png")
    assert width_of(tmp_path / "y.png") == 65


def test_a_few_outliers_do_not_decide(run, tmp_path):
    x = np.arange(100, dtype=np.float32).reshape(10, 10)
    x[9, 9] = 1e6
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "one.npy", np.ones((1, 1, 1, 1), np.float32))
    layer = ("conv2d", tmp_path / "x.npy", "--kernel", tmp_path / "one.npy", "--picture", tmp_path / "y.png")
    assert "white is 1e+06" in run(*layer)[1]
    assert "black is 0, white is 49.5" in run(*layer, "--picture-percentiles", "0,50")[1]
    status, _, err = run(*layer, "--picture-percentiles", "0,50", "--picture-range", "0,1")
    assert (status, err.startswith("error: --picture-percentiles: Expected percentiles or a range")) == (2, True)
    assert "two percentiles" in run(*layer, "--picture-percentiles", "50,0")[2]


def test_small_outputs_are_printed_and_larger_ones_are_not(run, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(18, dtype=np.float32).reshape(2, 3, 3, 1))
    kernel = np.float32([1, -0.5]).reshape(1, 1, 1, 2)
    np.save(tmp_path / "k.npy", kernel)
    layer = ("conv2d", tmp_path / "x.npy", "--kernel", tmp_path / "k.npy")
    _, out, _ = run(*layer, "--sample", 1)
    block = re.search(r"^values +(.*?)^time", out, re.MULTILINE | re.DOTALL)[1]
    assert [line.split() for line in block.splitlines()] == [
        *(["filter", "0"], ["9", "10", "11"], ["12", "13", "14"], ["15", "16", "17"]),
        *(["filter", "1"], ["-4.5", "-5", "-5.5"], ["-6", "-6.5", "-7"], ["-7.5", "-8", "-8.5"]),
    ]
    assert json.loads(run(*layer, "--json")[1])["values"][1] == [[0, -0.5, -1], [-1.5, -2, -2.5], [-3, -3.5, -4]]
    assert "error: --sample: Expected a sample from 0 to 1" in run(*layer, "--sample", 2)[2]
    np.save(tmp_path / "x.npy", np.zeros((1, 13, 3, 1), np.float32))
    assert "values" not in run(*layer)[1]
    assert json.loads(run(*layer, "--json")[1])["values"] is None


def test_drawn_given_and_stored_weights_are_written(run, photo, tmp_path, client):
    layer = ("conv2d", photo, "--filters", 2, "--kernel-size", 3, "--strides", 2, "-o", tmp_path / "y.npy")
    _, out, _ = run(*layer, "--output-weights", tmp_path / "w.npz")
    assert "w.npz (the layer's weights)" in out
    with np.load(tmp_path / "w.npz") as saved, Image.open(photo) as image:
        again = client.conv2d(np.array(image)[None], kernel=saved["kernel"], bias=saved["bias"], strides=2)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), again)
    run(*layer, "--output-weights", tmp_path / "w.safetensors")  # other weights, with the layer's strides
    (read,) = convserve.importing.read(tmp_path / "w.safetensors").layers.values()
    assert read.config.strides == (2, 2)
    client.put(read, name="written")
    with Image.open(photo) as image:
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), client.convolve(read, np.array(image)[None]).output)
    run("conv2d", photo, "--layer", "written", "--output-weights", tmp_path / "stored.npz")
    with np.load(tmp_path / "stored.npz") as saved:
        np.testing.assert_array_equal(saved["kernel"], read.kernel)
    run("conv2d", photo, "--kernel", "box", "--output-weights", tmp_path / "box.npz")
    with np.load(tmp_path / "box.npz") as saved:
        assert saved["kernel"].shape == (3, 3, 1, 3)
    assert run("conv2d", photo, "--kernel", tmp_path / "box.npz", "--groups", 3)[0] == 0
    status, _, err = run(*layer, "--output-weights", tmp_path / "w.npy")
    assert (status, err.startswith("error: --output-weights: Expected a file name that ends in .safetensors")) == (
        2,
        True,
    )


def test_values_that_are_not_finite_are_counted(run, tmp_path):
    x = np.zeros((4, 4, 1), np.float32)
    x[0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    status, out, _ = run("conv2d", tmp_path / "x.npy", "--kernel", "box", "--padding", "valid")
    assert status == 0
    assert "0 to 0; 1 not finite" in out


def test_what_does_not_fit_is_told_under_its_flag(run, photo, tmp_path, client):
    wide = convserve.Conv2D(2, 3, 2**20, padding=((2**31 - 1, 0), (0, 0)))
    client.put(wide, input_channels=3, name="padded")
    np.save(tmp_path / "k.npy", np.ones((3, 3, 5, 2)))
    for words, told in (
        (("--kernel", tmp_path / "k.npy"), "error: INPUT: Expected as many channels as the layer's kernel takes, 5"),
        (("--layer", "padded"), "error: padding: Expected a height below"),
        (
            ("--kernel", "box", "--strides", 2**20, "--padding", "2147483647,0,0,0"),
            "error: --padding: Expected a height below",
        ),
    ):
        status, out, err = run("conv2d", photo, *words)
        assert (status, out) == (2 if told.startswith("error: --") else 1, "")
        assert err.startswith(told)
    status, _, err = run("conv2d", photo, "--filters", 1, "--kernel-size", 21)
    assert status == 1
    assert err.startswith("error: INPUT: Expected a height of at least 21")


@pytest.mark.parametrize("name", ["$x^$.webp", "\\frac{$.tif", "new\nline.bmp", "\x1b[31m.gif", "\udcff.png"])
def test_a_picture_of_any_name_is_read_and_drawn(run, photo, tmp_path, name):
    with Image.open(photo) as image:
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    drawn = tmp_path / "maps.png"
    status, out, err = run("conv2d", tmp_path / name, "--filters", 2, "--kernel-size", 3, "--picture", drawn)
    assert (status, err) == (0, "")
    assert "1, 20, 30, 3" in out
    assert "\x1b" not in out
    with Image.open(drawn) as image:
        assert image.width > 300


def test_what_another_command_takes_as_a_layer_says_how_it_is_given(run, photo):
    for name, hint in (
        ("sobel-x", "this name is --kernel sobel-x."),
        ("net.keras", "`convserve layers import` stores"),
    ):
        status, _, err = run("conv2d", photo, "--layer", name)
        assert (status, hint in err) == (1, True)
