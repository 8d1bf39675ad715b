"""`convserve.plot`: figures of feature maps and kernels, as somebody in a notebook asks for them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convserve import Conv2D, Layer
from convserve.errors import InvalidArgumentError
from convserve.protocol.stored_layers import StoredLayerBase

pytest.importorskip("matplotlib")

from convserve import plot
from convserve.display import notebook

Image = pytest.importorskip("PIL.Image")


def pixels_of(figure: Any) -> np.ndarray:
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        with Image.open(file) as image:
            return np.array(image.convert("RGB")).astype(int)


def texts(figure: Any) -> list[str]:
    """Returns all text of a figure: the title first, then each panel's, then the colour bar's."""
    of_panels = [axes.get_title(end) for axes in figure.axes for end in ("left", "right")]
    return [figure.get_suptitle(), *of_panels, *(text.get_text() for text in figure.axes[-1].get_yticklabels())]


def labels(figure: Any) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if axes.images]


def output(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def refused(field: str, call: Any) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    (violation,) = caught.value.violations
    assert violation.field == field
    return violation.description


def test_each_map_has_its_label_and_range() -> None:
    y = output(1, 9, 9, 4)
    figure = plot.feature_maps(y)
    assert labels(figure) == [f"filter {number}" for number in range(4)]
    assert texts(figure)[0].splitlines()[0] == "(1, 9, 9, 4) float32"
    assert f"{y[..., 2].min():.3g} to {y[..., 2].max():.3g}" in texts(figure)


def test_of_hundreds_the_first_are_drawn_or_those_that_are_named() -> None:
    y = np.abs(output(2, 3, 3, 300))
    figure = plot.feature_maps(y)
    assert len(labels(figure)) == 64
    assert texts(figure)[0] == "(2, 3, 3, 300) float32, sample 0\nthe first 64 of 300 filters"
    figure = plot.feature_maps(y, channels=range(290, 300), title="mine")
    assert labels(figure)[0] == "filter 290"
    assert texts(figure)[0] == "mine\n10 of 300 filters"


def test_the_input_stands_beside() -> None:
    figure = plot.feature_maps(output(1, 9, 9, 4), np.zeros((1, 11, 11, 3), np.uint8))
    assert labels(figure)[0] == "input"
    assert len(labels(figure)) == 5
    figure = plot.feature_maps(output(1, 9, 9, 4), output(1, 11, 11, 16))
    assert labels(figure)[0] == "input, mean of 16 channels"


def test_one_or_three_channels_are_a_picture_unless_they_are_named() -> None:
    for channels in (1, 3):
        assert labels(plot.feature_maps(output(1, 5, 5, channels))) == ["output"]
    assert labels(plot.feature_maps(output(1, 5, 5, 3), channels=[2, 0])) == ["filter 2", "filter 0"]
    red = np.zeros((1, 4, 4, 3), np.float32)
    red[..., 0] = 1
    pixels = pixels_of(plot.feature_maps(red))
    np.testing.assert_array_equal(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2], (255, 0, 0))


def test_a_scale_that_is_shared_is_explained() -> None:
    y = np.zeros((1, 4, 4, 2), np.float32)
    y[..., 1] = 5
    figure = plot.feature_maps(y, value_range="shared")
    assert {"0", "5"} <= set(texts(figure))
    assert len({axes.images[0].norm.vmax for axes in figure.axes if axes.images}) == 1
    assert {"-1", "9"} <= set(texts(plot.feature_maps(y, value_range=(-1.0, 9.0))))


def test_samples_and_formats() -> None:
    y = output(2, 4, 6, 5)
    last = plot.feature_maps(y, sample=1, title="y")
    first = plot.feature_maps(np.moveaxis(y, -1, 1), sample=1, title="y", data_format="channels_first")
    np.testing.assert_array_equal(pixels_of(last), pixels_of(first))
    one = plot.feature_maps(y[1], title="y")
    np.testing.assert_array_equal(pixels_of(last), pixels_of(one))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8])
def test_every_dtype_is_drawn(dtype: Any) -> None:
    y = np.arange(32).reshape(1, 4, 4, 2).astype(dtype)
    assert "0 to 30" in texts(plot.feature_maps(y, y))


def test_what_cannot_be_drawn_is_refused() -> None:
    y = output(2, 4, 4, 5)
    assert "rank 4" in refused("y", lambda: plot.feature_maps(np.zeros((4, 4))))
    assert "0 to 1" in refused("sample", lambda: plot.feature_maps(y, sample=2))
    assert "0 to 4" in refused("channels", lambda: plot.feature_maps(y, channels=[5]))
    assert "as many samples" in refused("x", lambda: plot.feature_maps(y, y[:1]))
    assert "dtype" in refused("y", lambda: plot.feature_maps("y"))
    for value_range in ("Shared", (1, 1), (2, 1), 3, (1, 2, 3), np.array([0, 1]), ("a", "b"), (None, 1)):
        assert "'shared' or None" in refused(
            "value_range", lambda given=value_range: plot.feature_maps(y, value_range=given)
        )
    for channels in (5, np.array(1), []):
        assert "0 to 4" in refused("channels", lambda given=channels: plot.feature_maps(y, channels=given))
    for number in (3.0, np.array(3.0)):
        assert "rank 4" in refused("y", lambda given=number: plot.feature_maps(given))
        assert "as many samples" in refused("x", lambda given=number: plot.feature_maps(y, given))
    assert "channels_last" in refused("data_format", lambda: plot.feature_maps(y, data_format="NHWC"))


def layer(*shape: int, name: str | None = None) -> Layer:
    kernel = output(*shape)
    return Layer(Conv2D(shape[3], shape[:2], use_bias=False, name=name), kernel)


def test_filters_of_one_channel_are_maps_around_zero() -> None:
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 1, 0, 1] = -2
    figure = plot.kernels(Layer(Conv2D(2, 3, use_bias=False), kernel))
    assert labels(figure) == ["filter 0", "filter 1"]
    norms = [axes.images[0].norm for axes in figure.axes[:2]]
    assert [(norm.vmin, norm.vmax) for norm in norms] == [(-2, 2), (-2, 2)]
    assert texts(figure)[0] == "kernel (3, 3, 1, 2)"


def test_filters_of_three_channels_are_coloured_tiles() -> None:
    kernel = np.zeros((1, 1, 3, 2), np.float32)
    kernel[0, 0, 2, 0] = 4
    figure = plot.kernels(Layer(Conv2D(2, 1, use_bias=False, name="stem"), kernel))
    assert texts(figure)[0] == "stem: kernel (1, 1, 3, 2)\ngrey is 0, full colour 4"
    tile = pixels_of(figure)
    assert ((tile == (128, 128, 255)).all(axis=-1) | (tile == (127, 127, 255)).all(axis=-1)).any()


def test_other_filters_are_rows() -> None:
    figure = plot.kernels(layer(3, 3, 64, 128))
    assert len(labels(figure)) == 64
    assert labels(figure)[:2] == ["filter 0, channel 0", "filter 0, channel 1"]
    assert texts(figure)[0].splitlines()[1:] == ["8 of 128 filters", "8 of 64 input channels"]
    figure = plot.kernels(layer(3, 3, 3, 4), filters=[3], channels=[1, 2])
    assert labels(figure) == ["filter 3, channel 1", "filter 3, channel 2"]


class Stored(StoredLayerBase):
    """A layer whose weights a server has."""

    def weights(self) -> tuple[np.ndarray, None]:
        return output(3, 3, 1, 4), None


class Awaited(StoredLayerBase):
    """One whose weights are awaited."""

    async def weights(self) -> tuple[np.ndarray, None]:
        raise AssertionError("nobody awaits it")


def known(kind: type[StoredLayerBase], local: Layer | None = None) -> StoredLayerBase:
    return kind(bytes(32), Conv2D(4, 3, use_bias=False), (3, 3, 1, 4), "edges", local=local)


def test_stored_layers_and_bare_kernels() -> None:
    assert texts(plot.kernels(known(Stored)))[0] == "edges: kernel (3, 3, 1, 4)"
    assert len(labels(plot.kernels(known(Awaited, layer(3, 3, 1, 4))))) == 4
    assert len(labels(plot.kernels(output(3, 3, 1, 4).astype(np.float16)))) == 4
    assert len(labels(plot.kernels(np.arange(36).reshape(3, 3, 1, 4)))) == 4
    assert "await" in refused("layer", lambda: plot.kernels(known(Awaited)))


def test_what_has_no_kernel_is_refused() -> None:
    assert "with weights" in refused("layer", lambda: plot.kernels(Layer(Conv2D(4, 3))))
    assert "kernel of" in refused("layer", lambda: plot.kernels(np.zeros((3, 3))))
    assert "with weights" in refused("layer", lambda: plot.kernels(None))  # type: ignore[arg-type]
    assert "0 to 3" in refused("filters", lambda: plot.kernels(layer(3, 3, 1, 4), filters=[4]))
    assert "0 to 0" in refused("channels", lambda: plot.kernels(layer(3, 3, 1, 4), channels=[1]))


def test_weights_that_are_not_finite_or_all_zero_are_drawn() -> None:
    kernel = np.full((3, 3, 1, 2), np.nan, np.float32)
    assert len(labels(plot.kernels(kernel))) == 2
    assert len(labels(plot.kernels(np.zeros((3, 3, 1, 2), np.float32)))) == 2


def test_a_notebook_shows_a_figure_though_nobody_imported_pyplot() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(plot.kernels(layer(3, 3, 1, 4)))
    assert data["image/png"].startswith(b"\x89PNG")


CELL_OF_FIGURES = """
import numpy as np
from convserve import plot
y = np.ones((1, 2, 2, 2), np.float32)
for title in ("first", "second"):
    plot.feature_maps(y, title=title)
plot.feature_maps(y, title="saved").savefig(FILE)
plot.feature_maps(y, title="at once").show()
plot.feature_maps(y, title="the cell's value")
"""


@pytest.mark.parametrize("with_pyplot", [False, True])
def test_a_notebook_shows_figures_of_a_loop_and_each_one_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pyplot: bool
) -> None:
    """In IPython's own shell, given what only a kernel's has."""
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    capture = pytest.importorskip("IPython.utils.capture")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    config = pytest.importorskip("traitlets.config").Config(HistoryManager={"enabled": False})
    shell = interactiveshell.InteractiveShell.instance(config=config)
    try:
        shell.kernel = object()
        shell.user_ns["FILE"] = str(tmp_path / "y.png")
        if with_pyplot:  # whose import has IPython draw all figures in its own way
            pytest.importorskip("IPython.core.pylabtools").select_figure_formats(shell, {"png"})
        drawn: list[str] = []
        original = notebook.NotebookFigure.draw
        monkeypatch.setattr(
            notebook.NotebookFigure,
            "draw",
            lambda figure, renderer: (drawn.append(figure.get_suptitle()), original(figure, renderer))[1],
        )
        with capture.capture_output() as captured:
            assert shell.run_cell(CELL_OF_FIGURES).success
        assert list(dict.fromkeys(drawn)) == ["saved", "at once", "the cell's value", "first", "second"]
        assert [bool(output.data["image/png"]) for output in captured.outputs] == [True] * 3  # and the cell's value
        with capture.capture_output() as captured:
            assert shell.run_cell("plot.feature_maps(y, title='a failing cell'); 1 / 0").success is False
        assert drawn[-1] == "a failing cell"
        assert len(captured.outputs) == 1
        assert notebook._waiting == []
    finally:
        interactiveshell.InteractiveShell.clear_instance()


def test_outside_of_a_notebook_show_says_what_to_do() -> None:
    assert "savefig" in refused("show", plot.feature_maps(output(1, 2, 2, 2)).show)
    assert notebook._waiting == []


def test_maps_of_both_signs_have_zero_in_the_middle_and_say_so() -> None:
    y = np.zeros((1, 4, 4, 2), np.float32)
    y[0, 0, 0] = (-1, 8)
    figure = plot.feature_maps(y)
    assert "blue is below 0, white is 0, red is above" in texts(figure)[0]
    assert [(each.norm.vmin, each.norm.vmax, each.cmap.name) for axes in figure.axes for each in axes.images] == [
        (-1, 1, "RdBu_r"),
        (-8, 8, "RdBu_r"),
    ]
    for positive in (plot.feature_maps(np.abs(y)), plot.feature_maps(y, value_range=(-1.0, 9.0))):
        assert "blue" not in texts(positive)[0]
        assert {axes.images[0].cmap.name for axes in positive.axes if axes.images} == {"viridis"}
    shared = plot.feature_maps(y, value_range="shared")
    assert {"-8", "0", "8"} <= set(texts(shared))


def test_outliers_are_clipped_on_request() -> None:
    y = np.arange(101, dtype=np.float32).reshape(1, 1, 101, 1).repeat(2, axis=3)
    y[0, 0, 100] = (1e6, 100)
    limits = [
        (each.norm.vmin, each.norm.vmax)
        for axes in plot.feature_maps(y, percentiles=(1, 99)).axes
        for each in axes.images
    ]
    assert limits == [(1, 99), (1, 99)]
    assert plot.feature_maps(y, value_range="shared", percentiles=(0, 50)).axes[0].images[0].norm.vmax == 50
    picture = pixels_of(plot.feature_maps(y[..., :1].reshape(1, 1, 101, 1), percentiles=(0, 50)))
    assert (picture[picture.shape[0] // 2] == 255).all(axis=-1).mean() > 0.4
    for wrong in ((99, 1), (1,), (-1, 99), (0, 101), "1,99", 5):
        assert "(1, 99)" in refused("percentiles", lambda given=wrong: plot.feature_maps(y, percentiles=given))
    assert "or a range" in refused(
        "percentiles", lambda: plot.feature_maps(y, percentiles=(1, 99), value_range=(0.0, 1.0))
    )


def test_an_output_is_drawn_to_its_inputs_scale() -> None:
    def pixels_per_value(axes: Any) -> tuple[float, float]:
        box = axes.get_window_extent()
        height, width = axes.images[0].get_array().shape[:2]
        return round(box.width / width, 6), round(box.height / height, 6)

    for y, x in (((9, 7), (9, 7)), ((4, 3), (9, 7)), ((1, 1), (28, 28)), ((300, 300), (600, 600))):
        for channels in (1, 6):
            figure = plot.feature_maps(output(1, *y, channels), output(1, *x, 3))
            scales = {pixels_per_value(axes) for axes in figure.axes}
            assert len(scales) == 1
            (scale,) = scales
            assert scale[0] == scale[1]
            assert scale[0] < 1 or scale[0] == round(scale[0])  # a whole number, so that no pixel is wider than others
            assert {axes.images[0].get_interpolation() for axes in figure.axes} == (
                {"nearest"} if scale[0] >= 1 else {"auto"}
            )


def test_pyplot_stays_out() -> None:
    program = (
        "import sys, numpy as np; from convserve import plot; plot.feature_maps(np.zeros((1, 2, 2, 4))); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_matplotlib_the_extra_is_named() -> None:
    program = "import sys; sys.modules['matplotlib'] = None; import convserve.plot"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "MissingDependencyError" in answer.stderr
    assert "pip install 'convserve[plot]'" in answer.stderr
