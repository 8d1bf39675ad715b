"""Metrics without a server: what is held, on devices that this machine may not have, and labels that stay few."""

import platform
from types import SimpleNamespace

import grpc
from prometheus_client import CollectorRegistry, generate_latest

from convserve import InternalError
from convserve._version import __version__
from convserve_server.layer_store.stored_layer import StoreUsage
from convserve_server.observability.call_record import CallRecord
from convserve_server.observability.metrics import CallMetrics, Holdings
from convserve_server.scheduling.admission_queue import Load
from tests.support.observability.observers import PASS
from tests.support.observability.scrapes import values


def read(registry):
    return values(generate_latest(registry).decode())


def test_what_is_held():
    registry, holdings = CollectorRegistry(), Holdings()
    registry.register(holdings)
    assert read(registry) == {}
    memory = {"gpu:0": 1000, "gpu:3": 2000}
    engine = SimpleNamespace(traces=7, warm_shapes=9, device_memory=lambda: memory, versions={"tensorflow": "2.1"})
    admission = SimpleNamespace(load=lambda: Load(100, 4000, 3, 2))
    store = SimpleNamespace(usage=lambda: StoreUsage(5, 600, 4))
    holdings.open(SimpleNamespace(engine=engine, admission=admission, store=store))
    # In the order of the labels' names: grpc, python, tensorflow, version.
    build = ("convserve_build_info", grpc.__version__, platform.python_version(), "2.1", __version__)
    assert read(registry) == {
        build: 1,
        ("convserve_admitted_bytes",): 100,
        ("convserve_max_admitted_bytes",): 4000,
        ("convserve_waiting_calls",): 3,
        ("convserve_running_calls",): 2,
        ("convserve_stored_layers",): 5,
        ("convserve_stored_memory_bytes",): 600,
        ("convserve_evictions_total",): 4,
        ("convserve_traces",): 7,
        ("convserve_warm_shapes",): 9,
        ("convserve_device_memory_bytes", "gpu:0"): 1000,
        ("convserve_device_memory_bytes", "gpu:3"): 2000,
    }
    memory["gpu:0"] = 1
    assert read(registry)["convserve_device_memory_bytes", "gpu:0"] == 1


def test_a_call_counts_from_its_begin_to_its_end():
    registry = CollectorRegistry()
    call = CallRecord("a.B/C", "a.B/C", (), (CallMetrics(registry),))
    call.begin()
    assert read(registry)["convserve_requests_in_flight", "a.B/C"] == 1
    assert not [key for key in read(registry) if key[0] == "convserve_requests_total"]
    call.computed(PASS)
    call.received_bytes, call.sent_bytes = 10, 20
    call.refused(InternalError("", error_id="x"))
    call.end("INTERNAL")
    found = read(registry)
    assert found["convserve_requests_in_flight", "a.B/C"] == 0
    assert found["convserve_requests_total", "INTERNAL", "a.B/C"] == 1
    assert found["convserve_refused_total", "INTERNAL"] == 1
    assert found["convserve_refused_total", "OVERLOADED"] == 0  # there from the start, so that a rate sees the first
    assert (found["convserve_received_bytes_total", "a.B/C"], found["convserve_sent_bytes_total", "a.B/C"]) == (10, 20)
    assert (found["convserve_input_bytes_total", "a.B/C"], found["convserve_output_bytes_total", "a.B/C"]) == (16, 48)
    assert found["convserve_queue_seconds_bucket", "0.0001", "a.B/C"] == 1
    assert found["convserve_compute_seconds_bucket", "0.0001", "a.B/C"] == 0
    assert found["convserve_compute_seconds_bucket", "0.00025", "a.B/C"] == 1
