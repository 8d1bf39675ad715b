"""Pages of stored layers: none has more bytes than a page may have, and no layer is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from convserve import Conv2D
from convserve.v1.layer_service_pb2 import ListLayersRequest
from convserve_server.layer_store.stored_layer import StoredLayer
from convserve_server.services.layer_service import LayerService

CONFIG = Conv2D(1, 1, data_format="channels_last", dtype="float32")


def service(*name_bytes: int) -> Any:
    """Returns a service of layers that have names of so many bytes."""
    layers = [
        StoredLayer(bytes([number]) * 32, ("x" * size,), CONFIG, (1, 1, 1, 1)) for number, size in enumerate(name_bytes)
    ]

    def page(prefix: str, after: bytes, size: int) -> list[StoredLayer]:
        return [layer for layer in layers if layer.digest > after][:size]

    registry = SimpleNamespace(store=SimpleNamespace(page=page))
    return LayerService(registry)  # type: ignore[arg-type]


def walked(service: Any, size: int = 0) -> list[list[int]]:
    """Returns the numbers of the layers of each page."""
    pages, token = [], ""
    while not pages or token:
        answer = service.ListLayers(ListLayersRequest(page_size=size, page_token=token), None)
        pages.append([each.digest[0] for each in answer.layers])
        token = answer.next_page_token
        assert answer.ByteSize() < 2**20 + 100 or len(answer.layers) == 1
    return pages


def test_a_page_ends_where_it_has_many_bytes() -> None:
    assert walked(service(400_000, 400_000, 400_000, 100, 5_000_000, 100)) == [[0, 1], [2, 3], [4], [5]]
    assert walked(service(*[500_000] * 5), size=3) == [[0, 1], [2, 3], [4]]


def test_a_page_ends_where_it_has_many_layers() -> None:
    assert walked(service(*[10] * 5), size=2) == [[0, 1], [2, 3], [4]]
    assert walked(service(*[10] * 4), size=2) == [[0, 1], [2, 3]]
    assert walked(service()) == [[]]
