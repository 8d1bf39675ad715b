"""What is observed under which settings and variables."""

import logging
import os
import sys

import pytest

from convserve_server.observability.setup import Observability, span_exporters
from convserve_server.settings import Settings, SettingsError

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.fixture(autouse=True)
def no_variables_of_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
        (HTTP, []),
        (ENDPOINT, ["grpc"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, ["grpc"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": ""}, ["grpc"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["grpc"]),
        (ENDPOINT | HTTP, ["http/protobuf"]),
        (ENDPOINT | HTTP | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, ["grpc"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, ["http/protobuf"]),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, []),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp"}, ["grpc"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["grpc"]),  # to the usual address
        ({"OTEL_TRACES_EXPORTER": "console"}, ["console"]),
        (HTTP | {"OTEL_TRACES_EXPORTER": "otlp, console"}, ["http/protobuf", "console"]),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, []),
    ],
)
def test_spans_are_sent_where_opentelemetrys_variables_say_so(environment, exporters):
    assert span_exporters(environment) == exporters


@pytest.mark.parametrize(
    ("variable", "value", "known"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "thrift", "grpc, http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp, console, none"),
        ("OTEL_TRACES_EXPORTER", "otlp,jaeger", "otlp, console, none"),
    ],
)
def test_what_the_server_cannot_send_spans_by_is_refused(monkeypatch, variable, value, known):
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}: Expected one of {known}. Received '.*{value[-6:]}'"):
        Observability(Settings(), [], logging.NullHandler())


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem", "No such file"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "'many'"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "'soon'"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "zstd"),
        ("OTEL_TRACES_SAMPLER", "nonsense", "sampler nonsense"),
        ("OTEL_TRACES_SAMPLER_ARG", "most", "TRACES_SAMPLER_ARG"),
        ("OTEL_TRACES_SAMPLER_ARG", "", "TRACES_SAMPLER_ARG"),
    ],
)
def test_what_opentelemetry_would_go_on_without_is_refused(monkeypatch, variable, value, why):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")  # which has an argument
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^OTEL_\*: .*{why}"):
        Observability(Settings(), [], logging.NullHandler())


@pytest.mark.parametrize("variable", ["OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"])
def test_what_is_sent_another_way_is_warned_of(monkeypatch, caplog, variable):
    for value, lines in (("none", 0), ("", 0), ("otlp", 1)):
        monkeypatch.setenv(variable, value)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="convserve"):
            Observability(Settings(), [], logging.NullHandler()).close()
        assert [record.getMessage().partition(" ")[0] for record in caplog.records] == [variable] * lines


def test_spans_that_are_wanted_without_their_packages_are_warned_of(monkeypatch, caplog):
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.delitem(sys.modules, "convserve_server.observability.tracing", raising=False)
    for name in ("opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))):
        monkeypatch.setitem(sys.modules, name, None)
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
    monkeypatch.setitem(sys.modules, "convserve_server.observability.metrics", None)
    monkeypatch.setitem(sys.modules, "convserve_server.observability.tracing", None)
    found = Observability(Settings(), [], logging.NullHandler())
    assert found.metrics_url == ""
    found.close()
