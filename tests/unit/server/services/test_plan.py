"""Plans of stored layers: what they say, and what is not read for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, InvalidConfigurationError, Layer, LayerNotFoundError
from convserve.layers.layer import planned
from convserve.protocol.results import plan_to_message
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import layer_pb2
from convserve_server.auth.identity import anyone
from convserve_server.backend import Backend
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from convserve_server.observability.call_record import CURRENT_CALL, CallRecord
from convserve_server.services.convolution_service import ConvolutionService
from tests.support.engines.numpy_engine import NumpyEngine
from tests.support.engines.served import Served
from tests.support.layers.places import opened
from tests.support.layers.tiny import key, layer


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    """Layers 1 and 2, the latter named a, of which none is in memory."""
    store = opened(tmp_path, memory_bytes=0)
    store.put(layer(1))
    store.put(layer(2), Move("a"))
    return store


@pytest.fixture
def service(store: LayerStore) -> Iterator[Any]:
    engine = NumpyEngine()
    served, registry = Served(engine), None
    backend = Backend(engine, served.admission, served.scheduler, store, registry)  # type: ignore[arg-type]
    token = CURRENT_CALL.set(CallRecord("m", "m", identity=anyone("ipv4:127.0.0.1:1")))
    yield ConvolutionService(backend, None, None, None, 1)  # type: ignore[arg-type]
    CURRENT_CALL.reset(token)


def request(*references: dict[str, Any]) -> messages.PlanRequest:
    layers = [layer_pb2.LayerReference(**reference) for reference in references]
    return messages.PlanRequest(layers=layers, input_shape=(1, 2, 2, 1))


def test_a_plan_reads_no_weights(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerFiles, "read", None)
    inline = layer(3).to_message()
    answer = service.Plan(request({"digest": key(1)}, {"name": "a"}, {"inline": inline}, {"digest": key(1)}), None)
    assert answer.admission.admitted
    whole = planned([layer(1), layer(2), layer(3), layer(1)], (1, 2, 2, 1), "float32", None)
    assert answer.plan == plan_to_message(whole)


@pytest.mark.parametrize("given", [[], [0], [1], [0, 1], [7]])
def test_weights_that_only_the_call_brings_are_not_drawn(service: Any, given: list[int]) -> None:
    config = Conv2D(64, 3, padding="same", kernel_initializer="orthogonal", data_format="channels_last")
    asked = messages.PlanRequest(layers=2 * [Layer(config).to_reference()], input_shape=(1, 8, 8, 64), given=given)
    kernel, bias = np.ones((3, 3, 64, 64), "f4"), np.ones(64, "f4")
    layers = [Layer(config, kernel, bias) if number in given else Layer(config) for number in range(2)]
    assert service.Plan(asked, None).plan == plan_to_message(planned(layers, (1, 8, 8, 64), "float32", None))


def test_an_initializer_that_is_not_used_need_not_suit(service: Any) -> None:
    layer = Layer(Conv2D(1, 1, kernel_initializer="orthogonal", dtype="bfloat16", data_format="channels_last"))
    asked = messages.PlanRequest(layers=[layer.to_reference()], input_shape=(1, 8, 8, 3))
    with pytest.raises(InvalidConfigurationError, match="orthogonal has no bfloat16"):
        service.Plan(asked, None)
    asked.given.append(0)
    assert service.Plan(asked, None).admission.admitted


@pytest.mark.parametrize("reference", [{"digest": key(3)}, {"name": "b"}], ids=["digest", "name"])
def test_what_is_not_stored_is_not_planned(service: Any, reference: dict[str, Any]) -> None:
    with pytest.raises(LayerNotFoundError):
        service.Plan(request(reference), None)
