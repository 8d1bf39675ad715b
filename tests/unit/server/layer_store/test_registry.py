"""What the upload of layers reserves, refuses and survives; the engine is a fake."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, Layer, Losses, OverloadedError, TooLargeError
from convserve.protocol.layer_messages import layer_upload
from convserve.v1 import layer_service_pb2 as messages
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.store import LayerStore
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


def registry(store: LayerStore | None = None, max_call_bytes: int = PLENTY, max_bytes: int = 0) -> LayerRegistry:
    engine: Any = FakeEngine()
    return LayerRegistry(engine, store or LayerStore(PLENTY), max_call_bytes, max_bytes)


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


def test_bytes_are_shared_and_what_is_larger_than_all_goes_alone() -> None:
    def receiving(kibibytes: int) -> AbstractContextManager[None]:
        return kept.receiving(CONFIG.replace(filters=256 * kibibytes), 1, "float64")  # each filter is counted as 16

    kept = registry(max_call_bytes=400 * 1024)
    with receiving(60), receiving(40):
        refused = pytest.raises(OverloadedError, match=r"Received none.*take 409600 of 409600 bytes")
        with refused as error, receiving(1):
            pass
        assert error.value.retry_after_s > 0
    with receiving(1000), pytest.raises(OverloadedError), receiving(1):
        pass
    with pytest.raises(KeyError), receiving(100):
        raise KeyError
    with receiving(100):
        pass


@pytest.mark.parametrize("bounds", [{"max_call_bytes": 20_000}, {"max_bytes": 20_000}, {"max_bytes": 1}])
def test_puts_under_way_share_the_memory_of_their_buffers(bounds: dict[str, int]) -> None:
    kept = registry(**bounds)
    service, context = served(kept), Context()

    def requests() -> Iterator[Any]:
        yield start(layer(1))
        with pytest.raises(OverloadedError, match="layers that others put"):
            service.PutLayer(iter([start(layer(2))]), Context())
        yield messages.PutLayerRequest(piece=layer(1).kernel.tobytes())

    service.PutLayer(requests(), context)
    assert context.said == (("convserve-weights", "wanted"),)
    assert kept.store.usage().layers == 1


def test_weights_that_no_call_may_have_are_neither_initialized_nor_updated() -> None:
    kept = registry(max_call_bytes=5000)
    kept.store.put(layer(1), Move("large"))
    for channels, initializer, size in ((8, "ones", 3 * 8192), (2, "ones", 3 * 2048), (1, "orthogonal", 7 * 1024)):
        config = CONFIG.replace(kernel_initializer=initializer)  # which is there several times while it is drawn
        with pytest.raises(TooLargeError, match=rf"at most 5000 bytes, the server's --max-call-bytes. Received {size}"):
            kept.initialize_and_put(config, channels, Move(""), b"")
    kept.initialize_and_put(CONFIG, 1, Move(""), b"")
    header = messages.WeightsHeader(dtype=1, kernel_shape=(1, 1, 8, 256))
    begin = messages.UpdateWeightsStart(layer={"digest": layer(1).digest}, weights=header)  # type: ignore[arg-type]
    context = Context()
    with pytest.raises(TooLargeError, match="max-call-bytes"):
        served(kept).UpdateWeights(iter([messages.UpdateWeightsRequest(start=begin)]), context)
    assert context.said is None


def test_one_initialization_computes_at_a_time() -> None:
    kept = registry()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda channels: kept.initialize_and_put(CONFIG, channels, Move(""), b""), range(1, 9)))
    assert kept._engine.most == 1  # type: ignore[attr-defined]
    assert kept.store.usage().layers == 8
