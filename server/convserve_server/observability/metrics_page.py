"""The page of the metrics, which takes a share of the interpreter's time at most, and /healthz beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted

_REST = 3  # times as long as a page took, no other is begun
_OPEN_METRICS = "application/openmetrics-text"


class _Page(NamedTuple):
    began: float
    status: str
    headers: list[tuple[str, str]]
    body: list[bytes]


class MetricsPage:
    """A WSGI application that answers with all of a registry's metrics, and at /healthz whether the server serves.

    A page takes milliseconds in which no call goes on. So one is made at a time, with a pause behind it, and those who
    have waited meanwhile share the next: each gets one that was begun after it had asked.
    """

    def __init__(self, registry: CollectorRegistry, is_serving: Callable[[], bool]) -> None:
        """Takes the registry, and what says whether the gRPC health check does."""
        self._app, self._is_serving = prometheus_client.make_wsgi_app(registry), is_serving
        self._lock = threading.Lock()
        self._pages: dict[tuple[bool, bool], _Page] = {}  # the last in each form
        self._may_begin = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answers a request: with a page in OpenMetrics' form or Prometheus' own, and compressed, where it asks so."""
        if environ["PATH_INFO"] == "/healthz":
            return self._health(start_response)
        if environ["PATH_INFO"] != "/metrics":  # so that a probe with a typing error is not always healthy
            return _said(start_response, "404 Not Found", "Here are /metrics and /healthz.")
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        asked = time.monotonic()
        form = _OPEN_METRICS in environ.get("HTTP_ACCEPT", ""), gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", ""))
        with self._lock:
            page = self._pages.get(form)
            if page is None or page.began < asked:
                time.sleep(max(0.0, self._may_begin - time.monotonic()))
                page = self._pages[form] = self._made(*form)
                self._may_begin = time.monotonic() + _REST * (time.monotonic() - page.began)
        start_response(page.status, page.headers.copy())  # to which a server adds others, for each request by itself
        return page.body

    def _health(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._is_serving():
            return _said(start_response, "200 OK", "SERVING")
        return _said(start_response, "503 Service Unavailable", "NOT_SERVING")

    def _made(self, open_metrics: bool, compressed: bool) -> _Page:
        began, head = time.monotonic(), list[Any]()
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "HTTP_ACCEPT": f"{_OPEN_METRICS}; version=1.0.0" if open_metrics else "",
            "HTTP_ACCEPT_ENCODING": "gzip" if compressed else "",
        }
        body = list(self._app(environ, lambda *said: head.extend(said)))
        status, headers = head
        return _Page(began, status, headers, body)


def _said(start_response: Callable[..., Any], status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
    return [f"{text}\n".encode()]
