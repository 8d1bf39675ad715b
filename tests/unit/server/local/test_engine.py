"""An engine in the caller's own process: what a client returns and raises, without a server."""

from __future__ import annotations

import math
import os
import pickle
import runpy
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import (
    AsyncClient,
    AsyncStoredLayer,
    Client,
    Conv2D,
    ConvserveError,
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidRequestError,
    InvalidTensorError,
    InvalidWeightsError,
    Layer,
    MissingDependencyError,
    OverloadedError,
    StoredLayer,
    TooLargeError,
)
from convserve.protocol.server_info import Device
from convserve.tensors.aligned import aligned_empty
from convserve_server.engine_api import Computed
from convserve_server.local import Engine, parts
from convserve_server.settings import Settings, SettingsError
from tests.support.engines.held_engine import HeldEngine
from tests.support.engines.limited_engine import LimitedEngine
from tests.support.engines.numpy_engine import NumpyEngine
from tests.support.engines.served import batch, weighing
from tests.support.waiting import eventually, waiting_jobs

LAST = {"data_format": "channels_last"}
KERNEL = np.arange(36, dtype="f4").reshape(3, 3, 2, 2) / 36
LAYER = Layer(Conv2D(2, 3, activation="relu", activity_regularizer="l2", **LAST), KERNEL, np.ones(2))
X = np.random.default_rng(0).integers(0, 256, (3, 7, 8, 2), np.uint8)


def local(made: Any = None, **settings: Any) -> Engine:
    return Engine("cpu", load_engine=lambda *_, **__: made or NumpyEngine(), **settings)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring NumPy takes longer than anything else here."""
    monkeypatch.setattr(parts, "flops_per_s", lambda _: math.inf)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with local() as opened:
        yield opened


def stored(layer: Layer, kind: Any = Client) -> Any:
    stored_kind = StoredLayer if kind is Client else AsyncStoredLayer
    parts = {"digest": layer.digest, "config": layer.config, "kernel_shape": layer.kernel_shape}
    return stored_kind(kind("localhost:1"), **parts, local=layer)


def test_a_result_says_what_a_servers_says(engine: Engine) -> None:
    head = Conv2D(4, 1, kernel_initializer="ones", **LAST)
    result = engine.convolve([LAYER, head], X, output_dtype="float64")
    expected = NumpyEngine().convolve([LAYER], [X], "float64", 0)
    np.testing.assert_allclose(result.output, expected.output.sum(-1, keepdims=True).repeat(4, -1), rtol=1e-6)
    assert (result.output.dtype, result.batch_size, result.device) == ("float64", 3, "cpu:0")
    assert result.losses[0] == expected.losses[0]
    assert result.layers[0] is None
    assert result.layers[1] == head.with_seed(0)
    assert result.timing.queue_us >= 0 < result.timing.compute_us + 1
    assert not engine.convolve(LAYER, X[:, :5]).warm
    assert engine.convolve(LAYER, X[:, :5]).warm


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_stored_layer_is_computed_with_the_weights_that_are_known_here(engine: Engine, kind: Any) -> None:
    layer = stored(LAYER, kind)
    np.testing.assert_array_equal(engine.convolve(layer, X).output, engine.convolve(LAYER, X).output)
    layer.local = None
    with pytest.raises(InvalidWeightsError, match=r"layers: .*only servers have\. Its weights\(\) brings them here"):
        engine.convolve(layer, X)
    assert engine.plan(layer, X.shape).output_shape == (3, 5, 6, 2)


def test_an_aligned_input_is_read_where_it_is() -> None:
    class Keeping(NumpyEngine):
        def convolve(self, layers: Any, inputs: Any, *arguments: Any) -> Computed:
            self.inputs = inputs
            return super().convolve(layers, inputs, *arguments)

    made = Keeping()
    engine, x = local(made), aligned_empty(X.shape, X.dtype)
    x[...] = X
    x.flags.writeable = False  # as Ray's batches are
    engine.convolve(LAYER, x)
    assert np.shares_memory(made.inputs[0], x)


def test_weights_that_are_written_to_take_effect_in_the_next_call(engine: Engine) -> None:
    kernel = np.ones((1, 1, 2, 1), "f4")
    layer = Layer(Conv2D(1, 1, use_bias=False, **LAST), kernel)
    before = engine.convolve(layer, X).output.copy()
    kernel *= 2
    np.testing.assert_array_equal(engine.convolve(layer, X).output, 2 * before)


def test_drawn_weights_are_those_that_the_returned_seeds_give(engine: Engine) -> None:
    result = engine.convolve(Conv2D(4, 3, **LAST), X)
    np.testing.assert_array_equal(engine.convolve(result.layers, X).output, result.output)


def test_an_output_is_read_only_or_in_the_callers_array(engine: Engine) -> None:
    result = engine.convolve(LAYER, X)
    assert not result.output.flags.writeable
    out = np.empty(result.output.shape, "f4")
    assert engine.convolve(LAYER, X, out=out).output is out
    np.testing.assert_array_equal(out, result.output)
    with pytest.raises(InvalidTensorError, match="out: Expected the output's shape"):
        engine.convolve(LAYER, X, out=out[:1])
    double = Layer(Conv2D(1, 1, use_bias=False, **LAST), np.ones((1, 1, 2, 1), "f4"))
    with pytest.raises(InvalidTensorError, match="memory apart"):
        engine.convolve(double, np.ones((1, 1, 2, 2), "f4"), out=double.kernel.reshape(1, 1, 2, 1))


@pytest.mark.parametrize(
    ("layers", "x", "options", "error", "text"),
    [
        ([], X, {}, InvalidRequestError, "layers: Expected a Layer, Conv2D or stored layer"),
        ("edges", X, {}, InvalidRequestError, "layers: Expected a Layer, Conv2D or stored layer"),
        (LAYER, X[..., :1], {}, InvalidWeightsError, "input"),
        (LAYER, X[0], {}, InvalidTensorError, "input"),
        (LAYER, X.astype("i8"), {}, InvalidTensorError, "input"),
        ([LAYER, Conv2D(1, 9, **LAST)], X, {}, InvalidArgumentError, r"layers\[1\]\."),
        (LAYER, X, {"output_dtype": "int8"}, InvalidArgumentError, "output_dtype"),
        (LAYER, X, {"timeout": 0}, InvalidRequestError, "timeout"),
    ],
)
def test_what_a_client_refuses(
    engine: Engine, layers: Any, x: Any, options: Any, error: type[ConvserveError], text: str
) -> None:
    with pytest.raises(error, match=text):
        engine.convolve(layers, x, **options)
    with pytest.raises(error, match=text):
        Client("localhost:1").convolve(layers, x, **options)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"max_call_bytes": "1KB"}, "max-call-bytes"),
        ({"max_call_bytes": 1000}, "max-call-bytes"),
        ({"max_call_flops": "1K"}, "max-call-flops"),
        ({"max_admitted_bytes": "300"}, "max-admitted-bytes"),
        ({"max_layers_per_call": 1}, "max-layers-per-call"),
    ],
)
def test_limits_are_a_servers(settings: dict[str, Any], flag: str) -> None:
    engine = local(**settings)
    with pytest.raises(TooLargeError, match=f"the server's --{flag}"):
        engine.convolve([LAYER, LAYER], X)
    plan = engine.plan([LAYER, LAYER], X.shape, input_dtype="uint8")
    assert plan.admitted is False
    assert flag in str(plan.refusal)
    assert local().plan([LAYER, LAYER], X.shape).admitted


def test_what_does_not_fit_the_device_is_computed_in_parts() -> None:
    limited = LimitedEngine(NumpyEngine(), 2**30)
    engine = local(limited)
    limited.max_bytes = 600
    result = engine.convolve(LAYER, X)
    np.testing.assert_array_equal(result.output, NumpyEngine().convolve([LAYER], [X], "float32", 0).output)
    assert result.batch_size == 1
    assert [attempt.fitted for attempt in limited.attempts].count(True) > 1


def test_threads_share_batches_and_have_slots() -> None:
    held, layer = HeldEngine(NumpyEngine()), weighing(2)
    layer.kernel.flags.writeable = False  # so that it is one layer for all calls
    engine = local(held, max_waiting_calls=2)
    held.calls = 0
    held.go.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(engine.convolve, layer, batch(1))
        eventually(lambda: held.calls == 1)
        others = [threads.submit(engine.convolve, layer, batch(number)) for number in (2, 3, 4)]
        eventually(lambda: waiting_jobs(engine._scheduler._batcher) == 3)
        with pytest.raises(OverloadedError, match="--max-waiting-calls"):
            engine.convolve(layer, batch(5))
        held.go.set()
        results = [future.result(30) for future in (first, *others)]
    assert [float(result.output.item()) for result in results] == [2, 4, 6, 8]
    assert [result.batch_size for result in results] == [1, 3, 3, 3]


@pytest.mark.parametrize(("kind", "large"), [("cpu", 4), ("gpu", 2)])
def test_each_device_has_computations_of_its_own(kind: str, large: int) -> None:
    class Two(NumpyEngine):
        devices = (Device(f"{kind}:0", kind, ""), Device(f"{kind}:1", kind, ""))

    settings = parts.fitted_to(Two(), Settings(max_waiting_calls=5))
    queue: Any = parts.admission_of(settings, Two())._enter.__self__  # type: ignore[attr-defined]
    assert (queue._concurrent, queue.load().waiting_calls, queue._slots.total) == ((2, large), 0, 5 + large)


@pytest.mark.parametrize(
    ("kind", "size", "settings", "at_once"),
    [
        *(("cpu", 2**18, {}, 2), ("cpu", 2**18, {"concurrent_calls": 3}, 3), ("gpu", 2**20, {}, 1)),
        *(("cpu", 2**12, {"concurrent_calls": 3}, 1), ("gpu", 2**17, {"concurrent_calls": 3}, 1)),
        ("gpu", 2**18, {"concurrent_calls": 3, "max_batch_bytes": 2**20}, 3),
    ],
)
def test_large_calls_are_computed_at_once_by_kind_of_device_and_settings(
    kind: str, size: int, settings: dict[str, int], at_once: int
) -> None:
    class OfKind(NumpyEngine):
        devices = (Device(f"{kind}:0", kind, ""),)

    held = HeldEngine(OfKind())
    engine = local(held, **settings)
    held.calls = 0
    held.go.clear()
    with ThreadPoolExecutor(4) as threads:
        futures = [
            threads.submit(engine.convolve, weighing(2), np.ones((1, size, 1, 1), "f4"), timeout=None) for _ in range(4)
        ]
        eventually(lambda: (waiting_jobs(engine._scheduler._batcher), held.calls) == (4 - at_once, at_once))
        held.go.set()
        for future in futures:
            future.result(30)


def test_what_waits_beyond_its_timeout_is_not_computed() -> None:
    held = HeldEngine(NumpyEngine())
    engine = local(held)
    held.calls = 0
    held.go.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.convolve, weighing(2), batch(1), timeout=None)
        eventually(lambda: held.calls == 1)
        late = threads.submit(engine.convolve, weighing(2), batch(2), timeout=1e-3)
        eventually(lambda: late.done() or waiting_jobs(engine._scheduler._batcher))
        over = time.monotonic() + 1e-3  # or before: it waits since its timeout began
        eventually(lambda: late.done() or time.monotonic() > over)
        held.go.set()
        assert first.result(30).output.item() == 2
        with pytest.raises(DeadlineExceededError):
            late.result(30)
    assert held.calls == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_call_bytes": "much"}, "--max-call-bytes .*: Expected a size"),
        ({"listen": "0.0.0.0:1"}, "listen: Expected a setting out of"),
        ({"max_call_byte": 1}, "max_call_byte: Expected a setting out of"),
    ],
)
def test_settings_that_there_are_not(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        local(**settings)


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (SettingsError("--device: Expected a GPU."), InvalidRequestError, "--device: Expected a GPU"),
        (RuntimeError("Visible devices cannot be modified"), InvalidRequestError, "as this process has given"),
    ],
)
def test_a_framework_that_does_not_start(raised: Exception, expected: type[ConvserveError], text: str) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise raised

    with pytest.raises(expected, match=text):
        Engine(load_engine=load)
    with pytest.raises(InvalidRequestError, match=r"--device .*: Expected auto, cpu or gpu:N"):
        Engine("tpu", load_engine=load)


def test_a_framework_that_is_not_installed(tmp_path: Path) -> None:
    startup = tmp_path / "startup.py"
    startup.write_text("import nosuchpackage")

    def load(*_: Any, **__: Any) -> Any:
        runpy.run_path(str(startup), run_name="convserve_server.engine.startup")

    with pytest.raises(MissingDependencyError, match=r"pip install 'convserve\[server"):
        Engine(load_engine=load)


def test_a_variable_of_the_environment_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_MAX_CALL_BYTES", "1KB")
    assert local().plan(LAYER, X.shape).admitted is False
    assert local(max_call_bytes="1MB").plan(LAYER, X.shape).admitted


def test_a_closed_engine_a_fork_and_a_pickle_are_refused() -> None:
    with local() as engine:
        engine.convolve(LAYER, X)
    with pytest.raises(InvalidRequestError, match="a call after it was closed"):
        engine.convolve(LAYER, X)
    with pytest.raises(InvalidRequestError, match="make an Engine with its arguments there"):
        pickle.dumps(engine)
    inherited, child = local(), os.fork()
    if not child:
        try:
            inherited.convolve(LAYER, X)
        except InvalidRequestError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_without_the_servers_packages_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("convserve_server.local", "convserve_server.settings"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'convserve\[server\]'"):
        __import__("convserve_server.local")
