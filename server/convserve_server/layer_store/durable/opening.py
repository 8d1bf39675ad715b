"""Opens what the settings say: a folder, or a bucket with its cache."""

from __future__ import annotations

from pathlib import Path

from convserve.errors import MissingDependencyError, UnavailableError, needing
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.durable.local_cache import LocalCache
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.settings import BUCKET, Settings, SettingsError

_BUCKET_BYTES = 2**36  # that layers may take in a bucket, where the setting leaves it open


def opened(settings: Settings) -> Storage | None:
    """Returns what makes layers durable, or None without any. Raises SettingsError where it cannot be used."""
    if BUCKET.fullmatch(settings.store):
        return _bucket(settings)
    if settings.store_cache:
        raise SettingsError("--store-cache: Expected a --store in a bucket, whose layers it keeps. Received none.")
    try:
        return LayerFiles(Path(settings.store), settings.store_bytes) if settings.store else None
    except OSError as error:
        expected = "Expected a folder that can be written to and that no other server uses"
        text = f"--store: {expected}. Received {settings.store}: {error.strerror}."
        raise SettingsError(text) from error


def _bucket(settings: Settings) -> Storage:
    try:
        with needing(f"--store {settings.store} needs obstore: pip install 'convserve[object-storage]'."):
            from convserve_server.layer_store.durable.bucket import Bucket, UnusableBucketError
            from convserve_server.layer_store.durable.bucket_layers import BucketLayers
    except MissingDependencyError as error:
        raise SettingsError(f"--store: {error}") from error
    try:
        cache = LocalCache(Path(settings.store_cache), settings.store_cache_bytes) if settings.store_cache else None
    except OSError as error:
        text = f"Expected a folder that can be written to. Received {settings.store_cache}: {error.strerror}."
        raise SettingsError(f"--store-cache: {text}") from error
    try:
        bucket = Bucket.at(settings.store)
        return BucketLayers(bucket, settings.store_bytes or _BUCKET_BYTES, age_s=settings.store_age_s, cache=cache)
    except (UnusableBucketError, UnavailableError) as error:
        raise SettingsError(f"--store: {error}") from error
