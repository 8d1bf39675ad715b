"""What test_engine.py has a process of its own do, in which the CPU appears to TensorFlow as two devices."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import Conv2D, InvalidRequestError, Layer, OutOfMemoryError
from convserve.protocol.server_info import Device
from convserve.tensors.codec import numpy_dtype
from convserve_server.memory.aligned import aligned, aligned_empty
from convserve_server.scheduling.admission import Limits
from convserve_server.tiling.tiled_engine import TiledEngine
from tests.support.engines.held_engine import HeldEngine
from tests.support.engines.limited_engine import LimitedEngine
from tests.support.engines.numpy_engine import convolved as expected
from tests.support.engines.served import Served
from tests.support.waiting import eventually, waiting_jobs

LAST = {"data_format": "channels_last", "dtype": "float32"}


@functools.cache
def engine() -> Any:
    """Returns the engine, made when it is first asked for."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CPU_ALLOCATOR_USE_BFC": "1"}
    from convserve_server.engine import tensorflow_engine

    tensorflow_engine.claim = two_cpus
    return tensorflow_engine.TensorFlowEngine("cpu", False, intra_op_threads=1)


def two_cpus(_: str) -> tuple[Device, ...]:
    """Stands in for `claim`: the CPU as two devices."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(2)])
    return Device("cpu:0", "cpu", ""), Device("cpu:1", "cpu", "")


def integers(*shape: int, seed: int = 0, dtype: Any = "f4") -> Any:
    """Returns small integers, whose sums are exact, in memory that the engine need not copy."""
    return aligned(np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype))


def layer(channels: int, filters: int, size: int = 3, seed: int = 0, **changes: Any) -> Layer:
    config = Conv2D(filters, size, **{**LAST, **changes})
    kernel = integers(size, size, channels // config.groups, filters, seed=seed).astype(
        numpy_dtype(config.variable_dtype)
    )
    bias = integers(filters, seed=seed + 1).astype(kernel.dtype) if config.use_bias else None
    return Layer(config, aligned(kernel), None if bias is None else aligned(bias))


def output(of: Layer, x: Any, dtype: str = "float32", device: int = 0) -> Any:
    return engine().convolve([of], [x], dtype, device).output


def checks_threads_and_devices() -> None:
    import tensorflow as tf

    assert [device.name for device in engine().devices] == ["cpu:0", "cpu:1"]
    assert tf.config.threading.get_intra_op_parallelism_threads() == 1
    of, x = layer(3, 4), integers(2, 6, 6, 3)
    for device in (0, 1):
        computed = engine().convolve([of], [x], "float32", device)
        assert computed.device == f"cpu:{device}"
        np.testing.assert_array_equal(computed.output, expected(of, x))


def checks_an_engine_for_callers_of_the_process() -> None:
    """It reads an aligned input where it is, gives TensorFlow's output, and has to agree with what is configured."""
    from convserve_server.local import Engine

    engine()
    with pytest.raises(InvalidRequestError, match="devices and threads as this process has given TensorFlow already"):
        Engine("cpu", intra_op_threads=2)
    of, head, x = layer(3, 4), layer(4, 2, 1, activation="relu"), integers(2, 6, 6, 3)
    x.flags.writeable = False  # as Ray's are
    with Engine("cpu", intra_op_threads=1, keep_memory=False) as local:
        result = local.convolve([of, head], x)
        y = np.maximum(expected(head, expected(of, x)), 0)
        np.testing.assert_array_equal(result.output, y)
        out = np.empty(y.shape, "f4")
        assert local.convolve([of, head], x, out=out).output is out
        np.testing.assert_array_equal(out, y)
        drawn = local.convolve(Conv2D(4, 3, **LAST), x)
        np.testing.assert_array_equal(local.convolve(drawn.layers, x).output, drawn.output)


def checks_inputs_are_read_where_they_are_and_not_kept() -> None:
    from convserve_server.engine import tensors

    for dtype in ("float32", "float16", "bfloat16", "float64", "uint8", "int8"):
        x = aligned_empty((1, 5, 5, 2), numpy_dtype(dtype))
        x[...] = 1
        tensor = tensors.to_tensor(x, on_gpu=False)
        assert np.asarray(memoryview(tensor)).ctypes.data == x.ctypes.data, dtype
        del tensor
        alive = weakref.ref(x)
        for device in (0, 1):
            assert (output(layer(2, 1, kernel_initializer="ones"), x, device=device).size) == 9
        del x
        assert alive() is None, dtype


def checks_outputs_lie_in_no_input() -> None:
    """Were one to, it would change with the next request that is read into the same memory."""
    cases: list[dict[str, Any]] = [
        {}, {"size": 3}, {"groups": 2}, {"data_format": "channels_first"}, {"padding": ((0, 0), (0, 0))},
        {"activation": "relu"}, {"size": 3, "padding": "same", "groups": 2}, {"dtype": "float64"},
        {"dtype": "bfloat16"}, {"dtype": "float16"}, {"use_bias": False}, {"dilation_rate": 2},
    ]  # fmt: skip
    for changes in cases:
        first, second = (layer(2, 2, **{"size": 1, "seed": seed, **changes}) for seed in (0, 5))
        name = first.config.compute_dtype
        x = aligned(integers(1, 4, 4, 2).astype(numpy_dtype(name)))
        if first.config.data_format == "channels_first":
            x = aligned(x.transpose(0, 3, 1, 2))
        for chain in ([first], [first, second] if first.config.kernel_size == (1, 1) else [first]):
            for weights in chain:
                weights.kernel[...] = np.eye(2).reshape(1, 1, 2, 2) if weights.kernel.shape[2] == 2 else 1
            output = engine().convolve(chain, [x], name, 0).output
            before = output.copy()
            assert not np.shares_memory(output, x), changes
            assert not any(np.shares_memory(output, layer.kernel) for layer in chain), changes
            x += 1
            np.testing.assert_array_equal(output, before)


def checks_memory_that_is_not_aligned_or_not_writable() -> None:
    of, x = layer(3, 4), integers(2, 6, 6, 3)
    data = b"1" + x.tobytes()
    for strange in (np.frombuffer(data, "f4", x.size, 1).reshape(x.shape), x[:, ::2], np.asfortranarray(x)):
        np.testing.assert_array_equal(output(of, strange), expected(of, strange))
    unaligned = Layer(of.config, np.frombuffer(b"1" + of.kernel.tobytes(), "f4", of.kernel.size, 1).reshape(of.kernel.shape), of.bias)  # fmt: skip # noqa: E501
    np.testing.assert_array_equal(output(unaligned, x), expected(of, x))


def checks_inputs_are_joined() -> None:
    of = layer(3, 4, kernel_regularizer="l2")
    inputs = [integers(rows, 6, 6, 3, seed=rows) for rows in (1, 3, 2)]
    computed = engine().convolve([of], inputs, "float32", 0)
    np.testing.assert_array_equal(computed.output, expected(of, np.concatenate(inputs)))
    assert computed.losses[0].kernel is not None


def checks_memory_of_a_gpu() -> None:
    """A GPU gets copies of tensors, and weights are dropped from its memory for a call that does not fit."""
    import tensorflow as tf

    made = type(engine())("cpu", False, intra_op_threads=1)
    made._on_gpu = True
    for dtype in ("float32", "bfloat16", "float16"):
        of, x = layer(3, 4, dtype=dtype), integers(1, 6, 6, 3, dtype=numpy_dtype(dtype))
        computed = made.convolve([of], [x], dtype, 1)
        np.testing.assert_array_equal(computed.output.astype("f4"), expected(of, x).astype("f4"))
        computed.output[...] = 0  # it is memory of its own
        held = made._on_device(of, 1)
        assert dtype == "bfloat16" or np.asarray(memoryview(held[0])).ctypes.data != of.kernel.ctypes.data
    real, left = made._convolve, [1]

    def full(*arguments: Any) -> Any:
        assert bool(made._weights) == bool(left)
        if left:
            left.pop()
            with pytest.raises(OutOfMemoryError), _memory_errors():
                raise tf.errors.ResourceExhaustedError(None, None, "full")
            raise OutOfMemoryError("full")
        return real(*arguments)

    from convserve_server.engine.tensorflow_engine import _memory_errors

    made._convolve = full
    np.testing.assert_array_equal(made.convolve([of], [x], "float32", 0).output, expected(of, x))


def checks_weights_live_as_long_as_their_layer() -> None:
    of, x = layer(3, 4), integers(1, 6, 6, 3)
    output(of, x)
    held = engine()._on_device(of, 0)
    assert engine()._on_device(of, 0) is held  # not made again
    assert np.asarray(memoryview(held[0])).ctypes.data == of.kernel.ctypes.data  # nor copied
    memory = weakref.ref(of.kernel)
    del of, held
    gc.collect()
    assert memory() is None


def checks_initialized_weights_need_no_copy() -> None:
    initialized = engine().initialize(Conv2D(4, 3, **LAST), 3)
    assert initialized.kernel is aligned(initialized.kernel)
    assert initialized.bias is aligned(initialized.bias)


def checks_layers_and_sizes_share_a_trace() -> None:
    traced = engine().traces
    first = layer(5, 7, name="a", kernel_constraint="non_neg")
    for of in (first, layer(5, 7, seed=3), layer(5, 7, seed=4, name="b", kernel_initializer="ones")):
        for shape in ((1, 6, 6), (3, 6, 6), (2, 9, 8)):
            x = integers(*shape, 5)
            np.testing.assert_array_equal(output(of, x), expected(of, x))
    assert engine().traces == traced + 1
    x = integers(1, 12, 12, 5)
    assert [engine().convolve([first], [x], "float32", 0).warm for _ in range(2)] == [False, True]
    output(layer(5, 7, activation="relu"), x)
    output(first, x, "float64")
    assert engine().traces == traced + 3


def checks_each_geometry_is_traced_once_by_many_threads() -> None:
    from convserve_server.engine import traces

    made = []
    real = traces.Forward

    class Counted(real):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    traces.Forward = Counted  # type: ignore[misc]
    try:
        of, x, start = layer(3, 11), integers(1, 6, 6, 3), threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            outputs = list(pool.map(lambda _: (start.wait(30), output(of, x))[1], range(8)))
    finally:
        traces.Forward = real  # type: ignore[misc]
    assert len(made) == 1
    for result in outputs:
        np.testing.assert_array_equal(result, expected(of, x))


DEPTHWISE = [
    dict(zip(("channels", "multiplier", "strides", "dilation_rate", "padding", "data_format"), case, strict=True))
    for case in itertools.product(
        (3,), (1, 3), (1, 2, (1, 2)), (1, 2, (1, 3)), ("valid", ((2, 0), (1, 3))), ("channels_last", "channels_first")
    )
    if 1 in case[2:4] or not isinstance(case[4], str)
]


def checks_depthwise_layers() -> None:
    for case in DEPTHWISE:
        channels, multiplier = case["channels"], case["multiplier"]
        changes = {name: value for name, value in case.items() if name not in ("channels", "multiplier")}
        # Types and data formats are chosen apart from each other.
        is_first = case["data_format"] == "channels_first" or multiplier == 1
        for dtype in ("float32",) if is_first else ("float32", "float64", "float16"):
            of = layer(channels, channels * multiplier, groups=channels, dtype=dtype, **changes)
            x = integers(2, 9, 8, channels)
            if of.config.data_format == "channels_first":
                x = aligned(x.transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(output(of, x, dtype), expected(of, x), err_msg=f"{case} {dtype}")


def checks_depthwise_layers_do_not_spread_what_is_not_finite() -> None:
    x = integers(1, 9, 9, 3)
    x[0, 4, 4] = np.nan, np.inf, 1
    both = {"strides": 2, "dilation_rate": 2, "padding": 2}
    for changes in ({}, {"dilation_rate": 2}, {"padding": "same"}, {"strides": 2}, both):
        of = layer(3, 3, groups=3, use_bias=False, **changes)
        of.kernel[...] = 1
        result = output(of, x)
        assert np.isnan(result[..., 0]).any()
        assert np.isposinf(result[..., 1]).any()
        assert np.isfinite(result[..., 2]).all()


def checks_callers_of_real_layers_get_their_own() -> None:
    """Threads with layers in common, on two devices, batched as it comes: each its own rows and its own losses."""
    shared = [
        layer(2, 3, seed=1),
        layer(2, 3, seed=2, kernel_regularizer="l1"),
        layer(2, 3, seed=3, activity_regularizer="l1"),
    ]
    sizes: set[int] = set()
    served = Served(engine(), limits=Limits(2**30, 2**30, 2**32, 100, 64), samples=16, size=2**30)
    call = st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from([5, 6]), st.booleans())

    @settings(deadline=None, max_examples=40, database=None)
    @given(st.lists(st.lists(call, min_size=1, max_size=5), min_size=2, max_size=8))
    def check(callers: list[list[tuple[int, int, int, bool]]]) -> None:
        start = threading.Barrier(len(callers))

        def run(number: int) -> None:
            start.wait(30)
            for index, (which, rows, side, unbatched) in enumerate(callers[number]):
                of, x = shared[which], integers(rows, side, side, 2, seed=1000 * number + index)
                result = served.convolve([of], x, None, unbatched=unbatched)
                true = expected(of, x)
                np.testing.assert_array_equal(result.output, true)
                (losses,) = result.losses
                scale = np.float32(0.01)  # Keras' default
                assert losses.kernel == (None if which != 1 else float(scale * np.abs(of.kernel).sum()))
                assert losses.activity == (
                    None if which != 2 else float(np.float32(scale * np.abs(true).sum(dtype="f4")) / np.float32(rows))
                )
                assert (
                    result.computation.batch_size == rows
                    if unbatched or which == 2
                    else rows <= result.computation.batch_size <= 16
                )
                sizes.add(result.computation.batch_size // rows)

        with ThreadPoolExecutor(len(callers)) as pool:
            list(pool.map(run, range(len(callers))))

    check()
    # Whether some of those were batched is for the threads to say. Of three that wait for two devices, two are.
    held = HeldEngine(engine())
    held.go.clear()
    served = Served(held, limits=Limits(2**30, 2**30, 2**32, 100, 64), samples=16, size=2**30)
    inputs = [integers(rows, 5, 5, 2, seed=rows) for rows in (1, 2, 3)]
    with ThreadPoolExecutor(5) as pool:
        taking = [pool.submit(served.convolve, shared[:1], x, None, unbatched=True) for x in inputs[:2]]
        eventually(lambda: held.calls == 2)
        waiting = [pool.submit(served.convolve, shared[:1], x, None) for x in inputs]
        eventually(lambda: waiting_jobs(served.scheduler._batcher) == 3)
        held.go.set()
        for future, x in zip(taking + waiting, inputs[:2] + inputs, strict=True):
            result = future.result(60)
            np.testing.assert_array_equal(result.output, expected(shared[0], x))
            assert result.computation.batch_size in ({len(x)} if future in taking else {len(x), 3, 4, 5, 6})
            sizes.add(result.computation.batch_size // len(x))
    assert max(sizes) > 1


def checks_parts_equal_the_whole() -> None:
    """With integers, whose sums are exact whatever algorithm TensorFlow chooses for a part's size."""
    cases: list[dict[str, Any]] = [
        {}, {"padding": "same"}, {"padding": ((2, 0), (0, 3)), "strides": (2, 1)}, {"padding": "same", "strides": 3},
        {"padding": "same", "dilation_rate": (2, 1)}, {"groups": 2, "padding": "same"}, {"use_bias": False},
        {"groups": 4, "padding": "same"}, {"groups": 4, "padding": "same", "dilation_rate": 2}, {"activation": "relu"},
        {"dtype": "float64", "padding": "same"}, {"dtype": "mixed_float16", "padding": "same"},
        {"activity_regularizer": "l1", "kernel_regularizer": "l2", "padding": "same"},
        {"strides": 2, "dilation_rate": (2, 3), "padding": ((2, 0), (1, 3))},
        {"strides": 2, "dilation_rate": 2, "padding": 2, "groups": 4},
    ]  # fmt: skip
    for case, data_format in itertools.product(cases, ("channels_last", "channels_first")):
        chain = [layer(4, 4, seed=seed, data_format=data_format, **case) for seed in (0, 7)]
        is_first = data_format == "channels_first"
        for layers in (chain,) if is_first else (chain[:1], chain):
            x = integers(3, 129 if chain[0].config.strides_and_dilates else 33, 20, 4, seed=3)
            if is_first:
                x = aligned(x.transpose(0, 3, 1, 2))
            whole = engine().convolve(layers, [x], "float32", 0)
            for share in (0.15,) if is_first else (0.5, 0.25, 0.15):
                limited = LimitedEngine(engine(), int(share * (x.nbytes + whole.output.nbytes)))
                tiled = TiledEngine(limited).convolve(layers, [x], "float32", 0)
                np.testing.assert_array_equal(tiled.output, whole.output, err_msg=f"{case} {data_format} {share}")
                assert tiled.output.dtype == whole.output.dtype
                assert sum(attempt.fitted for attempt in limited.attempts) > 1
                for part, true in zip(tiled.losses, whole.losses, strict=True):
                    assert part.kernel == true.kernel
                    assert (part.activity is None) == (true.activity is None)
                    assert part.activity is None or part.activity == pytest.approx(true.activity, rel=1e-6)


def checks_parts_of_what_rounds() -> None:
    """TensorFlow chooses its algorithm by size, so parts may differ from the whole by rounding."""
    of = layer(16, 8, padding="same", activation="tanh")
    x = aligned(np.random.default_rng(5).normal(size=(2, 64, 40, 16)).astype("f4"))
    whole = output(of, x)
    tiled = TiledEngine(LimitedEngine(engine(), x.nbytes // 8)).convolve([of], [x], "float32", 0).output
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-6 * np.abs(x).max() * np.abs(of.kernel).sum(axis=(0, 1, 2)).max())  # fmt: skip # noqa: E501


def checks_tiles_add_few_traces() -> None:
    of, x, traced = layer(4, 6, padding="same", strides=2), integers(1, 400, 8, 4), engine().traces
    for max_bytes in (x.nbytes // 4, x.nbytes // 9, x.nbytes // 20):
        limited = LimitedEngine(engine(), max_bytes)
        np.testing.assert_array_equal(TiledEngine(limited).convolve([of], [x], "float32", 0).output, output(of, x))
        assert len(limited.attempts) > 4
    assert engine().traces <= traced + 4  # as a whole, at the top, within, at the bottom
