"""The observers of calls that the settings ask for: metrics, a line per request, spans."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from google.protobuf.descriptor import ServiceDescriptor

from convserve_server.backend import Backend
from convserve_server.observability.call_record import CallRecorder, Observer
from convserve_server.observability.request_log import RequestLog
from convserve_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from convserve_server.observability.tracing import Tracing

log = logging.getLogger("convserve")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Observability:
    """The observers of all calls, and the metrics' endpoint."""

    def __init__(self, settings: Settings, services: Iterable[ServiceDescriptor], log_handler: logging.Handler) -> None:
        """Starts what the settings and OpenTelemetry's variables ask for. `services`: all that the server may have.

        Raises SettingsError if the metrics' address cannot be listened on, or OpenTelemetry refuses its variables.
        """
        self.metrics_url = ""  # without metrics
        self._closing = ExitStack()
        self._holdings = None
        observers: list[Observer] = []
        if settings.metrics:
            from convserve_server.observability.metrics import CallMetrics, Holdings, new_registry
            from convserve_server.observability.metrics_endpoint import MetricsEndpoint

            registry, self._holdings = new_registry(), Holdings()
            registry.register(self._holdings)
            observers.append(CallMetrics(registry))
            try:
                endpoint = MetricsEndpoint(settings.metrics, registry)
            except OSError as error:
                expected = "Expected an address that is free and may be used"
                raise SettingsError(f"--metrics: {expected}. Received {settings.metrics}: {error.strerror}.") from error
            self.metrics_url = endpoint.url
            self._closing.callback(endpoint.close)
        tracing = _tracing()
        if tracing is not None:  # before the log, whose lines have the spans' ids
            observers.append(tracing)
            self._closing.callback(tracing.close)
        if settings.log_requests:
            request_log = RequestLog(log_handler, as_fields=settings.log_format == "json")
            observers.append(request_log)
            self._closing.callback(request_log.close)
        paths = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
        self.recorder = CallRecorder(paths, observers)

    def open(self, backend: Backend) -> None:
        """Shows what these hold from now on."""
        if self._holdings is not None:
            self._holdings.open(backend)

    def close(self) -> None:
        """Writes and sends what is left, and stops."""
        self._closing.close()


def wants_spans(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether OpenTelemetry's own variables say where spans are to go, and do not turn them off."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    is_unsent = environment.get("OTEL_TRACES_EXPORTER") == "none"
    return not (is_off or is_unsent) and any(environment.get(name) for name in _ENDPOINTS)


def _tracing() -> Tracing | None:
    if not wants_spans():
        return None
    try:
        from convserve_server.observability.tracing import Tracing

        return Tracing()
    except ModuleNotFoundError:
        log.warning("no spans are sent, though %s is set: pip install 'convserve[tracing]'", " or ".join(_ENDPOINTS))
        return None
    except Exception as error:
        text = f"OTEL_*: Expected variables as OpenTelemetry takes them. Received one that it does not take: {error}."
        raise SettingsError(text) from error
