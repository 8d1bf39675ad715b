"""What is observed under which settings and variables."""

import logging
import sys

import pytest

from convserve_server.observability.setup import Observability, wants_spans
from convserve_server.settings import Settings, SettingsError

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_spans_are_sent_where_opentelemetrys_variables_say_so(environment, wanted):
    assert wants_spans(environment) is wanted


def test_spans_that_are_wanted_without_their_packages_are_warned_of(monkeypatch, caplog):
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.setitem(sys.modules, "convserve_server.observability.tracing", None)
    with caplog.at_level(logging.WARNING, logger="convserve"):
        Observability(Settings(), [], logging.NullHandler()).close()
    (record,) = caplog.records
    assert "pip install 'convserve[tracing]'" in record.getMessage()


@pytest.mark.parametrize(("name", "value"), [("OTLP_TIMEOUT", "soon"), ("OTLP_COMPRESSION", "zip")])
def test_a_variable_that_opentelemetry_does_not_take_is_told_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:4317")
    monkeypatch.setenv(f"OTEL_EXPORTER_{name}", value)
    with pytest.raises(SettingsError, match=rf"^OTEL_\*: Expected .* Received .*{value}.*\.$"):
        Observability(Settings(), [], logging.NullHandler())


def test_nothing_is_loaded_that_is_not_asked_for(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "convserve_server.observability.metrics", None)
    monkeypatch.setitem(sys.modules, "convserve_server.observability.tracing", None)
    found = Observability(Settings(), [], logging.NullHandler())
    assert found.metrics_url == ""
    found.close()
