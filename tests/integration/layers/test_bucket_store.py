"""Servers that share a bucket which speaks S3: what they share, what they refuse to start with, what they log."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import convserve
from convserve import LayerNotFoundError, NameConflictError, UnavailableError
from convserve_server.layer_store.durable.bucket_layers import BucketLayers
from convserve_server.layer_store.durable.opening import opened
from convserve_server.settings import Settings, SettingsError
from tests.support.layers.numbered import ONES, is_of, numbered
from tests.support.repository import ROOT
from tests.support.servers.server_process import numpy_server
from tests.support.servers.tiny_bucket import TinyBucket, tiny_bucket

STORE = "s3://tiny/some/prefix"
ONCE = convserve.RetryRule(attempts=1)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyBucket]:
    with tiny_bucket() as found:
        for name, value in found.variables.items():
            monkeypatch.setenv(name, value)
        yield found


def test_servers_share_layers_and_names_and_go_on_while_the_bucket_is_away(bucket: TinyBucket, tmp_path: Path) -> None:
    options = ("--store", STORE, "--store-cache", str(tmp_path))
    with (
        numpy_server(*options) as first,
        numpy_server(*options, "--metrics", "127.0.0.1:0") as second,
        convserve.Client(first.target, retry=ONCE) as one,
        convserve.Client(second.target, retry=ONCE) as other,
    ):
        one.put(numbered(1), name="net/a")
        assert is_of(other.layer("net/a")(ONES), 1)
        other.put(numbered(2), name="net/a", expect=numbered(1))
        with pytest.raises(NameConflictError):
            one.put(numbered(3), name="net/a", expect=numbered(1))
        assert [version.number for version in one.versions("net/a")] == [1, 2]
        one.put(numbered(3), name="net/b")
        other.delete("net/b")
        with pytest.raises(LayerNotFoundError):
            one.delete("net/b")
        assert [each.names for each in other.layers("net/a")] == [("net/a",)]
        bucket.refusal = 403
        assert is_of(other.layer("net/a")(ONES), 2)
        with pytest.raises(UnavailableError, match=f"{STORE}, the server's --store, to answer"):
            other.put(numbered(5), name="net/d")
        with urllib.request.urlopen(second.metrics) as page:  # noqa: S310
            shown = page.read().decode()
        assert "\nconvserve_store_reachable 0.0\n" in shown
        listed = re.findall(r"^\| `(convserve_store_\w+)`", (ROOT / "docs/object-storage.md").read_text(), re.MULTILINE)
        assert set(listed) == set(re.findall(r"^(convserve_store_\w+)", shown, re.MULTILINE))
        logs = first.log.read_text() + second.log.read_text()
    assert f"store={STORE}," in logs
    assert logs.count("is away") == 1
    assert "of-the-test" not in logs
    assert {path.split("/")[2] for path in bucket.objects} == {"convserve.json", "layers", "names", "deleted"}
    assert len(list(tmp_path.glob("*.safetensors"))) >= 2


@pytest.mark.parametrize(
    ("status", "text"),
    [(404, "Make the bucket, or check its name"), (403, "credentials which may list, read, write and delete")],
)
def test_a_bucket_that_cannot_be_used_is_an_error_at_the_start(bucket: TinyBucket, status: int, text: str) -> None:
    bucket.refusal = status
    with pytest.raises(SettingsError, match=f"--store: Expected {STORE} to be read and written.*{text}") as refused:
        opened(Settings(store=STORE))
    assert "of-the-test" not in str(refused.value)


def test_a_cache_needs_a_bucket_and_a_folder(bucket: TinyBucket, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--store-cache: Expected a --store in a bucket"):
        opened(Settings(store=str(tmp_path), store_cache=str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--store-cache: Expected a folder that can be written to"):
        opened(Settings(store=STORE, store_cache=str(tmp_path / "file")))
    assert isinstance(opened(Settings(store=STORE)), BucketLayers)
