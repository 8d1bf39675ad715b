"""What the upload of layers reserves, refuses and survives; the engine is a fake."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, Layer, Losses, OverloadedError, TooLargeError
from convserve.protocol.layer_messages import layer_upload
from convserve.v1 import layer_service_pb2 as messages
from convserve_server.auth.identity import anyone
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
from convserve_server.memory.slow_callers import SlowCallers
from convserve_server.observability.call_record import CURRENT_CALL, CallRecord
from convserve_server.services import layer_service
from convserve_server.services.layer_service import LayerService

PLENTY = 2**30
CONFIG = Conv2D(256, 1, use_bias=False, data_format="channels_last", dtype="float32")


class FakeEngine:
    """Initializes zeros; counts how many threads do so at once."""

    def __init__(self) -> None:
        self.most = self.now = 0
        self._lock = threading.Lock()

    def initialize(self, _: Conv2D, input_channels: int) -> Layer:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.01)
        with self._lock:
            self.now -= 1
        return layer(0, input_channels)

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        return layer, Losses()


def layer(number: int, channels: int = 4) -> Layer:
    return Layer(CONFIG, np.full((1, 1, channels, 256), number, "f4"))


def registry(
    store: LayerStore | None = None,
    max_call_bytes: int = PLENTY,
    max_admitted_bytes: int = PLENTY,
    max_bytes: int = PLENTY,
) -> LayerRegistry:
    engine: Any = FakeEngine()
    return LayerRegistry(engine, store or LayerStore(PLENTY), max_call_bytes, max_admitted_bytes, max_bytes)


@pytest.fixture(autouse=True)
def caller() -> Iterator[None]:
    token = CURRENT_CALL.set(CallRecord("m", "m", identity=anyone("ipv4:127.0.0.1:1")))
    yield
    CURRENT_CALL.reset(token)


def start(given: Layer, digest: bytes = b"") -> messages.PutLayerRequest:
    first = layer_upload(given, None).start
    assert isinstance(first, messages.PutLayerRequest)
    first.start.expected_digest = digest
    return first


class Context(SimpleNamespace):
    """A call's context that keeps the initial metadata."""

    said: Any = None

    def send_initial_metadata(self, metadata: Any) -> None:
        self.said = metadata

    def cancel(self) -> None:
        """Ends the call."""


def served(kept: LayerRegistry) -> LayerService:
    return LayerService(kept)


def test_a_held_layer_that_goes_before_the_caller_ends_its_stream_is_put_again() -> None:
    store, given = LayerStore(PLENTY), layer(1)
    store.put(given)
    context: Any = Context()

    def requests() -> Iterator[Any]:
        yield start(given, given.digest)
        assert context.said == (("convserve-weights", "held"),)
        store.delete(given.digest)

    answer = served(registry(store)).PutLayer(requests(), context)
    assert answer.layer.digest == given.digest
    np.testing.assert_array_equal(store.layer(given.digest).kernel, given.kernel)


def test_a_call_that_breaks_off_leaves_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, though gRPC keeps the error: not when Python looks for cycles."""
    buffers: list[weakref.ref[Any]] = []
    empty = layer_service.aligned_empty

    def seen_empty(*arguments: Any) -> Any:
        buffers.append(weakref.ref(made := empty(*arguments)))
        return made

    def requests() -> Iterator[Any]:
        yield start(layer(1))
        yield messages.PutLayerRequest(piece=bytes(100))
        raise ConnectionError

    monkeypatch.setattr(layer_service, "aligned_empty", seen_empty)
    gc.disable()
    try:
        with pytest.raises(ConnectionError) as kept_error:
            served(registry()).PutLayer(requests(), Context())
        assert [each() for each in buffers] == [None]
        assert kept_error.value.__traceback__
    finally:
        gc.enable()


def receiving(
    kept: LayerRegistry, kibibytes: float, caller: str = "", end: Callable[[], object] | None = None
) -> AbstractContextManager[Callable[[], None]]:
    config = CONFIG.replace(filters=int(64 * kibibytes))  # each filter is counted as 16 bytes
    return kept.receiving(config, 1, "float64", caller=caller, end=end)


def test_what_is_larger_than_all_bytes_goes_alone() -> None:
    kept = registry(max_bytes=400 * 1024)
    with receiving(kept, 200), receiving(kept, 175):
        refused = pytest.raises(OverloadedError, match=r"Received none.*take 384000 of 384000 bytes")
        with refused as error, receiving(kept, 2):
            pass
        assert error.value.retry_after_s > 0
    with receiving(kept, 1000), pytest.raises(OverloadedError), receiving(kept, 2):
        pass
    with pytest.raises(KeyError), receiving(kept, 100):
        raise KeyError
    with receiving(kept, 375):
        pass


def test_an_upload_that_takes_too_long_is_ended_where_another_finds_no_memory() -> None:
    now, ended = [0.0], list[str]()
    kept = registry(max_bytes=400 * 1024)
    kept._slow = SlowCallers(lambda: now[0])
    with receiving(kept, 1000, "slow", lambda: ended.append("slow")):
        for now[0], expected in ((10.0, []), (11.0, ["slow"])):  # 512,000 bytes at 2 MB/s, and ten seconds
            with pytest.raises(OverloadedError), receiving(kept, 100, "other"):
                pass
            assert ended == expected
    now[0] = 100.0
    with receiving(kept, 1000, "other"), pytest.raises(OverloadedError), receiving(kept, 100):
        pass
    assert ended == ["slow"]  # it is over


def test_an_upload_is_not_ended_once_it_is_here_nor_for_one_that_exceeds_its_share() -> None:
    now, ended = [0.0], list[str]()
    kept = registry(max_bytes=640 * 1024)
    kept._slow = SlowCallers(lambda: now[0])
    with receiving(kept, 300, "slow", lambda: ended.append("slow")) as received, receiving(kept, 150, "many"):
        now[0] = 100.0
        with pytest.raises(OverloadedError), receiving(kept, 100, "many"):  # of 150 that are free
            pass
        received()
        with pytest.raises(OverloadedError), receiving(kept, 200, "other"):
            pass
    assert ended == []


def test_slow_uploads_of_small_layers_are_ended_for_other_small_ones() -> None:
    now, ended = [0.0], list[str]()
    kept = registry(max_bytes=400 * 1024)
    kept._slow = SlowCallers(lambda: now[0])
    with ExitStack() as opened:
        for number in range(16):
            opened.enter_context(receiving(kept, 1.5, f"slow {number}", lambda: ended.append("slow")))
        opened.enter_context(receiving(kept, 374, "large"))
        now[0] = 100.0
        with pytest.raises(OverloadedError), receiving(kept, 1.5, "other"):
            pass
        assert ended == ["slow"]


def test_small_layers_wait_for_no_large_ones() -> None:
    kept = registry(max_bytes=400 * 1024)
    with receiving(kept, 1000, "slow"), ExitStack() as opened:
        for _ in range(16):
            opened.enter_context(receiving(kept, 1.5))  # of the 25 that are for such
        with pytest.raises(OverloadedError), receiving(kept, 1.5):
            pass


def test_a_callers_layers_leave_half_to_others_but_for_a_single_one() -> None:
    kept = registry(max_bytes=640 * 1024)
    with receiving(kept, 500, "large"), receiving(kept, 100, "other"):
        pass
    with receiving(kept, 150, "many"), receiving(kept, 150, "many"):
        with pytest.raises(OverloadedError, match="a caller leaves half to others"), receiving(kept, 10, "many"):
            pass
        with receiving(kept, 300, "other"):
            pass
    with receiving(kept, 300), receiving(kept, 300):  # who cannot be told apart
        pass


@pytest.mark.parametrize("max_bytes", [20_000, 1])
def test_puts_under_way_share_the_memory_of_their_buffers(max_bytes: int) -> None:
    kept = registry(max_bytes=max_bytes)
    service, context = served(kept), Context()

    def requests() -> Iterator[Any]:
        yield start(layer(1))
        with pytest.raises(OverloadedError, match="layers that are put"):
            service.PutLayer(iter([start(layer(2))]), Context())
        yield messages.PutLayerRequest(piece=layer(1).kernel.tobytes())

    service.PutLayer(requests(), context)
    assert context.said == (("convserve-weights", "wanted"),)
    assert kept.store.usage().layers == 1


def test_weights_that_no_call_may_have_are_neither_put_nor_initialized_nor_updated() -> None:
    kept = registry(max_call_bytes=5000)
    kept.store.put(layer(1), Move("large"))
    for channels, initializer, size in ((8, "ones", 3 * 8192), (2, "ones", 3 * 2048), (1, "orthogonal", 7 * 1024)):
        config = CONFIG.replace(kernel_initializer=initializer)  # which is there several times while it is drawn
        refusal = rf"at most 5000 bytes, the server's --max-call-bytes. Received one that takes {size}"
        with pytest.raises(TooLargeError, match=refusal):
            kept.initialize_and_put(config, channels, Move(""), b"")
    kept.initialize_and_put(CONFIG, 1, Move(""), b"")
    header = messages.WeightsHeader(dtype=1, kernel_shape=(1, 1, 8, 256))
    begin = messages.UpdateWeightsStart(layer={"digest": layer(1).digest}, weights=header)  # type: ignore[arg-type]
    context, service = Context(), served(kept)
    for call in (
        lambda: service.UpdateWeights(iter([messages.UpdateWeightsRequest(start=begin)]), context),
        lambda: service.PutLayer(iter([start(layer(2, 8))]), context),
    ):
        with pytest.raises(TooLargeError, match="max-call-bytes"):
            call()
    assert context.said is None


def test_a_layer_has_no_more_memory_on_its_way_than_calls_have() -> None:
    kept = registry(max_call_bytes=5000, max_admitted_bytes=3 * 4096)
    put = [start(layer(1)), messages.PutLayerRequest(piece=layer(1).kernel.tobytes())]
    served(kept).PutLayer(iter(put), Context())
    kept, context = registry(max_admitted_bytes=3 * 4096 - 1), Context()
    with pytest.raises(TooLargeError, match=r"at most 12287 bytes, the server's --max-admitted-bytes\. .* takes 12288"):
        served(kept).PutLayer(iter(put), context)
    assert context.said is None
    with pytest.raises(TooLargeError, match="--max-admitted-bytes"):
        kept.initialize_and_put(CONFIG, 8, Move(""), b"")


def test_one_initialization_computes_at_a_time() -> None:
    kept = registry()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda channels: kept.initialize_and_put(CONFIG, channels, Move(""), b""), range(1, 9)))
    assert kept._engine.most == 1  # type: ignore[attr-defined]
    assert kept.store.usage().layers == 8
