"""Calls that do not fit are computed in parts: the same result, with few attempts, and an end to them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import Conv2D, DeadlineExceededError, Layer, OutOfMemoryError
from convserve.layers.plan import plan
from convserve_server.scheduling.caller import Caller
from convserve_server.tiling import tiled_engine
from convserve_server.tiling.memory_bounds import MemoryBounds
from convserve_server.tiling.tiled_engine import TiledEngine
from convserve_server.tiling.tiles import height_axis, tiling_blocker
from convserve_server.tiling.work import work
from tests.support.engines.limited_engine import LimitedEngine
from tests.support.engines.numpy_engine import NumpyEngine
from tests.support.engines.served import Served
from tests.support.layers.chains import assert_same, chains
from tests.support.waiting import eventually, waiting_jobs

LAST: dict[str, Any] = {"data_format": "channels_last", "dtype": "float32"}
SOFTMAX = {"class_name": "softmax", "config": {"axis": 1}}


def layer(**changes: Any) -> Layer:
    """Returns a layer from one channel to one, of 3 x 3 ones."""
    config = Conv2D(1, 3, **{"use_bias": False, "padding": "same", **LAST, **changes})
    return Layer(config, np.ones((*config.kernel_size, 1, 1), "f4"))


def image(samples: int = 1, height: int = 32, width: int = 8) -> Any:
    return np.arange(samples * height * width, dtype="f4").reshape(samples, height, width, 1) % 7


def convolve(engine: Any, layers: list[Layer], x: Any) -> Any:
    return engine.convolve(layers, [x], "float32", 0)


def attempts(limited: LimitedEngine) -> list[tuple[int, int, bool]]:
    """Returns (samples, rows read, whether it fitted) of every attempt since the last time."""
    result = [(attempt.shape[0], attempt.shape[1], attempt.fitted) for attempt in limited.attempts]
    limited.attempts.clear()
    return result


@settings(max_examples=200)
@given(chains(), st.floats(0, 1), st.sampled_from([OutOfMemoryError, MemoryError]), st.booleans())
def test_parts_equal_the_whole(made: tuple[list[Layer], Any], share: float, error: Any, again: bool) -> None:
    layers, x = made
    whole = NumpyEngine().convolve(layers, [x], "float64", 0)
    limited = LimitedEngine(NumpyEngine(), int(share * (x.nbytes + whole.output.nbytes)), error)
    engine = TiledEngine(limited)
    for _ in range(1 + again):
        try:
            computed = engine.convolve(layers, [x], "float64", 0)
        except OutOfMemoryError:
            last = limited.attempts[-1]
            chain = [layer.config for layer in last.layers]
            rows = plan(chain, last.shape).output_shape[height_axis(chain[-1])]
            assert not last.fitted
            assert last.shape[0] == 1
            alone = any(max(map(max, config.padding)) > 0 for config in chain if not isinstance(config.padding, str))
            assert rows == 1 or tiling_blocker(chain) or alone  # rows of padding alone go with their neighbours
            return
        assert_same(computed.output, whole.output, layers)
        assert computed.output.dtype == whole.output.dtype
        for losses, expected in zip(computed.losses, whole.losses, strict=True):
            for name, value in vars(expected).items():
                assert vars(losses)[name] == (None if value is None else pytest.approx(value, rel=1e-12))


def test_a_call_that_fits_is_not_divided() -> None:
    limited, of, x = LimitedEngine(NumpyEngine(), 2**20), layer(), image(3)
    convolve(TiledEngine(limited), [of], x)
    (only,) = limited.attempts
    assert only.layers == (of,)
    assert only.shape == x.shape


def test_the_batch_is_halved_and_then_the_rows_are() -> None:
    of, x = layer(), image(4)
    sample = x[:1].nbytes * 2
    expected = convolve(NumpyEngine(), [of], x).output
    for max_bytes, way in (
        (2 * sample, [(4, 32, False), (2, 32, True), (2, 32, True)]),
        (sample, [(4, 32, False), (2, 32, False), *[(1, 32, True)] * 4]),
    ):
        limited = LimitedEngine(NumpyEngine(), max_bytes)
        np.testing.assert_array_equal(convolve(TiledEngine(limited), [of], x).output, expected)
        assert attempts(limited) == way
    limited = LimitedEngine(NumpyEngine(), sample // 2 + 32)
    np.testing.assert_array_equal(convolve(TiledEngine(limited), [of], x).output, expected)
    tried = attempts(limited)
    assert [attempt for attempt in tried if not attempt[2]] == [(4, 32, False), (2, 32, False), (1, 32, False)]
    assert {samples for samples, _, fitted in tried if fitted} == {1}
    assert max(rows for _, rows, fitted in tried if fitted) < 20


def test_an_image_larger_than_the_device_goes_row_by_row_if_it_must() -> None:
    of, x = layer(), image(1, 200, 4)
    limited = LimitedEngine(NumpyEngine(), 4 * 4 * 4)  # three rows read and one written
    computed = convolve(TiledEngine(limited), [of], x)
    np.testing.assert_array_equal(computed.output, convolve(NumpyEngine(), [of], x).output)
    assert sum(fitted for _, _, fitted in attempts(limited)) == 200


@pytest.mark.parametrize("x", [image(1, 200, 4), image(50, 4, 4)], ids=["tiles", "samples"])
def test_the_computation_stops_when_the_caller_is_gone(x: Any) -> None:
    limited = LimitedEngine(NumpyEngine(), 4 * 4 * 4 * 2)
    served = Served(limited)
    caller = Caller(is_active=lambda: len(limited.attempts) < 20)
    with pytest.raises(DeadlineExceededError, match="Expected a caller to wait until all parts are computed"):
        served.convolve([layer()], x, None, caller)
    assert len(attempts(limited)) == 20
    assert served.admission.load().admitted_bytes == 0
    served.convolve([layer()], x, None)
    assert len(attempts(limited)) > 20


@settings(max_examples=100)
@given(chains(), st.floats(0, 1))
def test_parts_of_a_long_work_equal_the_whole(made: tuple[list[Layer], Any], share: float) -> None:
    layers, x = made
    whole = NumpyEngine().convolve(layers, [x], "float64", 0)
    chain = [layer.config for layer in layers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiled_engine._MAX_WORK, "cpu", int(share * work(chain, plan(chain, x.shape))))
        computed = TiledEngine(NumpyEngine()).convolve(layers, [x], "float64", 0)
    assert_same(computed.output, whole.output, layers)
    for losses, expected in zip(computed.losses, whole.losses, strict=True):
        for name, value in vars(expected).items():
            assert vars(losses)[name] == (None if value is None else pytest.approx(value, rel=1e-12))


def test_a_long_work_is_divided_into_samples_layers_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, x = layer(), image(4)
    a_layer = work([of.config], plan([of.config], image().shape))
    expected = convolve(NumpyEngine(), [of] * 3, x).output
    for max_work, way in (
        (12 * a_layer, [(4, 32)]),
        (6 * a_layer, [(2, 32)] * 2),
        (2 * a_layer, [(1, 32)] * 12),
        (a_layer // 2, [(1, 17)] * 24),  # a row more than 16, and padding at the edge
    ):
        monkeypatch.setitem(tiled_engine._MAX_WORK, "cpu", max_work)
        limited = LimitedEngine(NumpyEngine(), 2**30)
        np.testing.assert_array_equal(convolve(TiledEngine(limited), [of] * 3, x).output, expected)
        assert [attempt.shape[:2] for attempt in limited.attempts] == way


def test_a_long_work_ends_before_the_part_for_which_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    of, x = layer(), image(4)
    monkeypatch.setitem(tiled_engine._MAX_WORK, "cpu", 2 * work([of.config], plan([of.config], image().shape)))
    for parts in range(4):
        limited = LimitedEngine(NumpyEngine(), 2**30)
        made = limited.attempts
        with pytest.raises(DeadlineExceededError, match="Expected a caller to wait until all parts are computed"):
            TiledEngine(limited).convolve([of] * 3, [x], "float32", 0, lambda made=made, n=parts: len(made) < n)
        assert len(made) == parts


def test_a_long_work_without_memory_is_divided_by_rows_of_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    of, x = layer(), image(2)
    limited = LimitedEngine(NumpyEngine(), 1200)
    monkeypatch.setitem(tiled_engine._MAX_WORK, "cpu", work([of.config], plan([of.config], x.shape)))
    engine, expected = TiledEngine(limited), convolve(NumpyEngine(), [of] * 3, x).output
    for _ in range(2):
        np.testing.assert_array_equal(convolve(engine, [of] * 3, x).output, expected)


def test_the_batch_size_is_that_of_the_largest_part() -> None:
    of, x = layer(), image(4)
    sample = x[:1].nbytes * 2
    for max_bytes, batch_size in ((4 * sample, 4), (3 * sample, 2), (sample, 1), (sample // 2, 1)):
        assert convolve(TiledEngine(LimitedEngine(NumpyEngine(), max_bytes)), [of], x).batch_size == batch_size


def test_tiles_with_the_same_padding_share_layers() -> None:
    """Else a GPU would be sent the weights with every tile."""
    of, x = layer(), image(1, 200, 4)
    limited = LimitedEngine(NumpyEngine(), 20 * 4 * 4)
    convolve(TiledEngine(limited), [of], x)
    used = [attempt.layers[0] for attempt in limited.attempts if attempt.fitted]
    assert len(used) > 15
    assert len(set(map(id, used))) == 3  # at the top, within, and at the bottom
    assert all(np.shares_memory(layer.kernel, of.kernel) for layer in used)


def test_sizes_that_did_not_fit_are_not_tried_again() -> None:
    limited, of, x = LimitedEngine(NumpyEngine(), 4000), layer(), image(4)
    engine = TiledEngine(limited)
    convolve(engine, [of], x)
    assert not all(fitted for _, _, fitted in attempts(limited))
    for samples in (4, 3, 1):
        convolve(engine, [of], image(samples))
        assert all(fitted for _, _, fitted in attempts(limited))
    convolve(engine, [of], image(1, 8))  # as small as what did fit
    assert attempts(limited) == [(1, 8, True)]
    convolve(engine, [layer(activation="relu")], image(4))  # another layer may need less
    assert attempts(limited)[0] == (4, 32, False)


def test_memory_that_is_free_again_is_used_again() -> None:
    limited, of, x = LimitedEngine(NumpyEngine(), 4000), layer(), image(4)
    engine = TiledEngine(limited)
    convolve(engine, [of], x)
    limited.max_bytes = 2**30  # the other process has ended
    for _ in range(200):
        attempts(limited)
        convolve(engine, [of], x)
    assert attempts(limited) == [(4, 32, True)]


def test_the_error_says_what_was_tried_how_much_it_takes_and_what_to_do() -> None:
    of, x = layer(), image(2, 4)
    with pytest.raises(OutOfMemoryError) as caught:
        convolve(TiledEngine(LimitedEngine(NumpyEngine(), 10)), [of], x)
    text, whole = str(caught.value), plan([of.config], x.shape, drawn=[False]).memory_bytes
    row = plan([of.config.replace(padding=((0, 0), (1, 1)))], (1, 3, 8, 1), drawn=[False]).memory_bytes
    assert f"Received one that takes {whole} bytes by its plan, " in text
    assert f"its smallest part, 1 row of a sample's output, takes about {row} of them" in text
    assert "None of these fitted: 2 samples, 1 sample, 1 row." in text
    assert "Expected a call that fits the memory of cpu:0, at least in parts." in text
    assert "Send smaller images or fewer filters at once" in text


def test_a_layer_that_acts_along_the_height_is_not_divided() -> None:
    limited, x = LimitedEngine(NumpyEngine(), 3000), image(2)
    whole = [layer(), layer(activation=SOFTMAX), layer(padding="valid")]
    computed = convolve(TiledEngine(limited), whole, x).output
    np.testing.assert_allclose(computed, convolve(NumpyEngine(), whole, x).output, rtol=1e-6)
    with pytest.raises(OutOfMemoryError, match="softmax along the height does not let it be divided"):
        convolve(TiledEngine(LimitedEngine(NumpyEngine(), 1500)), whole, x)
    limited = LimitedEngine(NumpyEngine(), 1500)
    with pytest.raises(OutOfMemoryError):
        convolve(TiledEngine(limited), whole[1:2], x)
    assert attempts(limited) == [(2, 32, False), (1, 32, False)]  # the latter once


def test_an_activity_in_between_counts_each_row_once() -> None:
    lossy = layer(activity_regularizer={"class_name": "L1", "config": {"l1": 1.0}})
    x = image(2)
    for chain in ([lossy, layer()], [lossy, lossy], [layer(), lossy]):
        limited = LimitedEngine(NumpyEngine(), 1200)
        computed, expected = convolve(TiledEngine(limited), chain, x), convolve(NumpyEngine(), chain, x)
        assert computed.losses == expected.losses
        np.testing.assert_array_equal(computed.output, expected.output)
        assert any(not attempt.fitted for attempt in limited.attempts)


def test_an_activity_over_rows_of_padding_alone_is_not_divided() -> None:
    of = layer(padding=((4, 0), (0, 0)), activity_regularizer="l2")
    with pytest.raises(OutOfMemoryError, match="activity_regularizer with rows of padding alone does not let it"):
        convolve(TiledEngine(LimitedEngine(NumpyEngine(), 1500)), [of], image())


def test_a_loss_too_large_for_its_dtype_is_infinite_as_a_whole_and_in_parts() -> None:
    of = layer(dtype="float16", activity_regularizer={"class_name": "L1", "config": {"l1": 100.0}})
    computed = TiledEngine(LimitedEngine(NumpyEngine(), 600)).convolve([of], [image(2)], "float16", 0)
    assert computed.losses[0].activity == np.inf


def test_no_memory_for_the_output_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(tiled_engine, "aligned_empty", none)
    with pytest.raises(OutOfMemoryError, match="the machine has no memory to put its parts together"):
        convolve(TiledEngine(LimitedEngine(NumpyEngine(), 3000)), [layer()], image(2))


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        convolve(TiledEngine(LimitedEngine(NumpyEngine(), 0, ZeroDivisionError)), [layer()], image())


def test_a_batch_that_does_not_fit_is_computed_once() -> None:
    """What the batcher put together it takes apart, and only then is each divided."""
    of, sizes, sample = layer(), (1, 3, 2), 2 * 32 * 8 * 4
    limited = LimitedEngine(NumpyEngine(), 2 * sample)
    go = threading.Event()
    real = limited.convolve

    def held(*arguments: Any) -> Any:
        assert go.wait(30)
        return real(*arguments)

    limited.convolve = held  # type: ignore[method-assign]
    served = Served(limited)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(served.convolve, [layer()], image(), None)
        eventually(lambda: not served.scheduler._batcher._free[0][0])
        futures = []
        for waiting, samples in enumerate(sizes, 1):
            futures.append(pool.submit(served.convolve, [of], image(samples), None))
            eventually(lambda waiting=waiting: waiting_jobs(served.scheduler._batcher) == waiting)
        go.set()
        first.result(30)
        for samples, future in zip(sizes, futures, strict=True):
            computed = future.result(30).output
            np.testing.assert_array_equal(computed, convolve(NumpyEngine(), [of], image(samples)).output)
    fitted_samples = [samples for samples, _, fitted in attempts(limited)[1:] if fitted]
    assert sum(fitted_samples) == sum(sizes)
    assert max(fitted_samples) <= 2


def test_bounds_are_lowered_widened_and_bounded_in_number() -> None:
    bounds = MemoryBounds()
    bounds.widen("a")
    assert bounds.get("a") is None
    bounds.lower("a", 500)
    assert bounds.get("a") == 500
    bounds.lower("a", 2000)  # a larger failure says nothing new
    assert bounds.get("a") == 500
    bounds.widen("a")
    assert 500 < bounds.get("a") < 550
    bounds.lower("b", 0)
    assert bounds.get("b") == 0
    bounds.widen("b")
    assert bounds.get("b") == 1
    for number in range(2000):
        bounds.get("a")
        bounds.lower(number, 8)
    assert bounds.get("a") is not None
    assert bounds.get("b") is None
    assert sum(bounds.get(number) is not None for number in range(2000)) == 999
