"""The page of the metrics: one at a time, with pauses, and never older than the question."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily

from convserve_server.observability import metrics_page
from convserve_server.observability.metrics_page import MetricsPage
from tests.support.waiting import eventually


class Collector:
    """Counts how often it is collected, and takes its time while it is held."""

    def __init__(self) -> None:
        self.collected, self.at_once, self.most = 0, 0, 0
        self.open = threading.Event()
        self.open.set()

    def collect(self) -> Iterable[CounterMetricFamily]:
        self.collected += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        assert self.open.wait(30)
        self.at_once -= 1
        yield CounterMetricFamily("collected", "how often", value=self.collected)


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def page(collector: Collector) -> MetricsPage:
    registry = CollectorRegistry()
    registry.register(collector)  # which collects once
    return MetricsPage(registry, lambda: False)


def got(page: MetricsPage, **environ: str) -> tuple[str, dict[str, str], bytes]:
    said: list[Any] = []
    body = b"".join(page({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"} | environ, lambda *head: said.extend(head)))
    return said[0], dict(said[1]), body


def test_each_page_is_newer_than_its_question(page: MetricsPage, collector: Collector) -> None:
    for _ in range(3):
        _, _, body = got(page)
        assert f"collected_total {collector.collected}.0".encode() in body


class Lock:
    """A lock that knows how many have asked for it."""

    def __init__(self) -> None:
        self.asked, self.lock = 0, threading.Lock()

    def __enter__(self) -> None:
        self.asked += 1
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_those_who_wait_share_the_next_page(
    page: MetricsPage, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, before = Lock(), collector.collected
    monkeypatch.setattr(page, "_lock", lock)
    collector.open.clear()
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(got(page)[2])) for _ in range(8)]
    threads[0].start()
    assert eventually(lambda: collector.at_once)
    for thread in threads[1:]:
        thread.start()
    assert eventually(lambda: lock.asked == len(threads))
    collector.open.set()
    for thread in threads:
        thread.join(30)
    assert len(bodies) == len(threads)
    assert (collector.most, collector.collected - before, len(set(bodies))) == (1, 2, 2)


def test_answers_that_share_a_page_have_their_own_headers(page: MetricsPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page.time, "monotonic", lambda: 100.0)
    answers: list[list[tuple[str, str]]] = []
    for _ in range(2):
        page({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}, lambda _, headers: answers.append(headers))
        answers[-1].append(("Content-Length", "7"))  # as the server does
    assert [len(headers) for headers in answers] == [2, 2]


def test_there_is_a_pause_behind_each(page: MetricsPage, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [100.0], list[float]()
    collect = collector.collect

    def slow() -> Any:
        now[0] += 2.0
        return collect()

    monkeypatch.setattr(collector, "collect", slow)
    monkeypatch.setattr(metrics_page.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics_page.time, "sleep", pauses.append)
    got(page)
    now[0] += 1.0
    got(page)
    assert pauses == [0.0, 5.0]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3", "application/openmetrics-text"),
        ("application/openmetrics-text;version=no version at all", "application/openmetrics-text"),
    ],
)
@pytest.mark.parametrize("encoding", ["", "gzip", "br, gzip;q=1.0"])
def test_its_form_is_the_one_that_is_asked_for(
    page: MetricsPage, accept: str, content_type: str, encoding: str
) -> None:
    status, headers, body = got(page, HTTP_ACCEPT=accept, HTTP_ACCEPT_ENCODING=encoding)
    assert status == "200 OK"
    assert headers["Content-Type"].startswith(content_type)
    assert ("Content-Encoding" in headers) == bool(encoding)
    assert b"collected_total" in (gzip.decompress(body) if encoding else body)


@pytest.mark.parametrize(("serving", "status"), [(True, "200 OK"), (False, "503 Service Unavailable")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_told_beside_it(serving: bool, status: str, method: str, collector: Collector) -> None:
    page = MetricsPage(CollectorRegistry(), lambda: serving)
    assert got(page, PATH_INFO="/healthz", REQUEST_METHOD=method)[0] == status
    assert not collector.collected


@pytest.mark.parametrize("path", ["/healthzz", "/health", "/ready", "/", "", "/metrics/", "/favicon.ico"])
def test_another_path_names_those_that_there_are(path: str, page: MetricsPage, collector: Collector) -> None:
    before = collector.collected
    status, _, body = got(page, PATH_INFO=path)
    assert (status, body) == ("404 Not Found", b"Here are /metrics and /healthz.\n")
    assert collector.collected == before


def test_another_method_is_none(page: MetricsPage, collector: Collector) -> None:
    before = collector.collected
    assert got(page, REQUEST_METHOD="POST")[0].startswith("405")
    assert collector.collected == before
