"""Where stores keep what they hold: in memory alone, in a folder, or in a bucket that obstore has in memory."""

from __future__ import annotations

from pathlib import Path

from obstore.store import MemoryStore

from convserve_server.layer_store.durable.bucket import Bucket
from convserve_server.layer_store.durable.bucket_layers import BucketLayers
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.durable.local_cache import LocalCache
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.layer_store.store import LayerStore

PLENTY = 2**30
Place = Path | MemoryStore | None


def opened(
    place: Place, memory_bytes: int = PLENTY, budget: int = PLENTY, *, age_s: float = 0, cache: Path | None = None
) -> LayerStore:
    """Returns a server's store; in a bucket one of which, by default, each name is asked for whenever it is used."""
    durable: Storage | None = None
    if isinstance(place, Path):
        durable = LayerFiles(place, budget)
    elif place is not None:
        kept = LocalCache(cache, PLENTY) if cache else None
        durable = BucketLayers(Bucket(place, place, place, "s3://bucket"), budget, age_s=age_s, cache=kept)
    return LayerStore(memory_bytes, durable)
