"""The observers of calls that the settings ask for: metrics, a line per request, spans."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from google.protobuf.descriptor import ServiceDescriptor

from convserve.errors import MissingDependencyError, needing
from convserve_server.addresses import refusal
from convserve_server.backend import Backend
from convserve_server.observability.call_record import CallRecorder, Observer
from convserve_server.observability.request_log import RequestLog
from convserve_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from convserve_server.observability.tracing import Tracing

log = logging.getLogger("convserve")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OTHER_EXPORTERS = ("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")
_SAMPLING = "opentelemetry.sdk.trace.sampling"  # warns of a sampler or a rate that it does not take


class Observability:
    """The observers of all calls, and the metrics' endpoint."""

    def __init__(
        self,
        settings: Settings,
        services: Iterable[ServiceDescriptor],
        log_handler: logging.Handler,
        is_serving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Starts what the settings and OpenTelemetry's variables ask for.

        `services` are all that the server may have, and `is_serving` says whether it takes calls.

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
                endpoint = MetricsEndpoint(settings.metrics, registry, is_serving)
            except OSError as error:
                raise refusal("metrics", settings.metrics, error) from error
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


def span_exporters(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns what OpenTelemetry's own variables send spans by: "grpc" or "http/protobuf", and "console"; [] for none.

    Raises SettingsError for an exporter or a protocol that the server has not.
    """
    named = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    exporters = _known("OTEL_TRACES_EXPORTER", [word.strip() for word in named.split(",")], ("otlp", "console", "none"))
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in exporters:
        return []
    variable = next(filter(environment.get, _PROTOCOLS), _PROTOCOLS[0])
    (protocol,) = _known(variable, [environment.get(variable) or "grpc"], ("grpc", "http/protobuf"))
    return [protocol if each == "otlp" else each for each in exporters]


def _known(variable: str, words: list[str], known: tuple[str, ...]) -> list[str]:
    for word in words:
        if word not in known:
            raise SettingsError(f"{variable}: Expected one of {', '.join(known)}. Received {word!r}.")
    return list(dict.fromkeys(words))


def _tracing() -> Tracing | None:
    exporters = span_exporters()
    for variable in _OTHER_EXPORTERS:
        if os.environ.get(variable, "none") not in ("", "none"):
            log.warning("%s is not heeded: the server serves metrics by --metrics, and logs to stderr", variable)
    if not exporters:
        return None
    try:
        with needing("pip install 'convserve[tracing]'"), _raised_errors():
            from convserve_server.observability.tracing import Tracing

            return Tracing(exporters)
    except MissingDependencyError as error:
        asked = " or ".join((*_ENDPOINTS, "OTEL_TRACES_EXPORTER"))
        log.warning("no spans are sent, though %s is set: %s", asked, error)
        return None
    except Exception as error:
        text = f"OTEL_*: Expected variables as OpenTelemetry takes them. Received one that it does not take: {error}."
        raise SettingsError(text) from error


class _Errors(logging.Handler):
    """Keeps what errors say; what is less is for those who handle it else."""

    def __init__(self, others: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._others, self.texts = others, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.name == _SAMPLING:
            self.texts.append(record.getMessage() + (f": {record.exc_info[1]}" if record.exc_info else ""))
            return
        for other in self._others:
            other.handle(record)


@contextmanager
def _raised_errors() -> Iterator[None]:
    """Raises what OpenTelemetry logs as an error, such as of a CA that it cannot read: it would go on without."""
    logger = logging.getLogger("opentelemetry")
    handlers, propagates = logger.handlers, logger.propagate
    errors = _Errors(handlers)
    logger.handlers, logger.propagate = [errors], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
    if errors.texts:
        raise ValueError("; ".join(errors.texts))
