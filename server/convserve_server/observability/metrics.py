"""The metrics for Prometheus: calls, and what the server holds. docs/observability.md lists them all."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from convserve._version import __version__
from convserve_server.backend import Backend
from convserve_server.layer_store.stored_layer import DurableUsage
from convserve_server.observability.call_record import REASONS, CallRecord, Observer
from convserve_server.scheduling.scheduler import Computation

# From a small call on this machine to a batch of gigabytes over a network.
_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class CallMetrics(Observer):
    """Counts calls, and what was computed for them.

    `labels` is cached: prometheus_client takes a lock for each.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Callable[..., Counter]:
            return cache(Counter(f"convserve_{name}", text, labels, registry=registry).labels)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Callable[..., Histogram]:
            return cache(Histogram(f"convserve_{name}", text, ("method",), buckets=buckets, registry=registry).labels)

        in_flight = Gauge("convserve_requests_in_flight", "Calls that have not ended.", ("method",), registry=registry)
        self._in_flight = cache(in_flight.labels)
        self._requests = counter("requests_total", "Calls that ended.", "method", "code")
        text = "Calls, from their arrival until all was sent."
        self._duration = histogram("request_duration_seconds", text, _SECONDS)
        self._received = counter("received_bytes_total", "Bytes of messages that arrived.", "method")
        self._sent = counter("sent_bytes_total", "Bytes of messages that were sent.", "method")
        text = "What a call, or an item of a stream, waited for memory and a device."
        self._queue = histogram("queue_seconds", text, _SECONDS)
        text = "What a device took for the batch of a call or an item."
        self._compute = histogram("compute_seconds", text, _SECONDS)
        text = "Samples that were computed together, for each call and item."
        self._batch = histogram("batch_samples", text, _SAMPLES)
        self._input = counter("input_bytes_total", "Bytes of tensors that were computed with.", "method")
        self._output = counter("output_bytes_total", "Bytes of tensors that were computed.", "method")
        text = "Calls, and items of streams, that were answered with an error."
        self._refused = counter("refused_total", text, "reason")
        for reason in REASONS.values():
            self._refused(reason)  # there from the start, so that a rate sees the first

    def began(self, call: CallRecord) -> None:
        """Counts a call that has begun."""
        self._in_flight(call.method).inc()

    def computed(self, call: CallRecord, computation: Computation) -> None:
        """Counts a forward pass."""
        self._queue(call.method).observe(computation.queue_us / 1e6)
        self._compute(call.method).observe(computation.compute_us / 1e6)
        self._batch(call.method).observe(computation.batch_size)
        self._input(call.method).inc(computation.input_bytes)
        self._output(call.method).inc(computation.output_bytes)

    def refused(self, call: CallRecord, reason: str) -> None:  # noqa: ARG002 (whichever call it is)
        """Counts a reason."""
        self._refused(reason).inc()

    def ended(self, call: CallRecord) -> None:
        """Counts a call that is over."""
        self._in_flight(call.method).dec()
        self._duration(call.method).observe(call.duration_us / 1e6)
        self._received(call.method).inc(call.received_bytes)
        self._sent(call.method).inc(call.sent_bytes)
        self._requests(call.method, call.code).inc()


class Holdings(Collector):
    """What the server holds and does at the moment, read at each scrape."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def open(self, backend: Backend) -> None:
        """Shows what this holds from now on."""
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        if self._backend is None:
            return
        engine, load, stored = self._backend.engine, self._backend.admission.load(), self._backend.store.usage()
        versions = {"version": __version__, "python": platform.python_version(), "grpc": grpc.__version__}
        versions |= engine.versions
        made_of = {tuple(versions.values()): 1}
        yield _gauge("build_info", "What this server is made of; the value is 1.", made_of, *versions)
        yield _gauge("admitted_bytes", "Memory reserved for calls in flight.", load.admitted_bytes)
        yield _gauge("max_admitted_bytes", "The most that may be reserved.", load.max_admitted_bytes)
        yield _gauge("waiting_calls", "Calls and items that wait for a device.", load.waiting_calls)
        yield _gauge("running_calls", "Calls and items that a device computes.", load.running_calls)
        yield _gauge("stored_layers", "Layers in memory, on disk, or in the bucket.", stored.layers)
        yield _gauge("stored_memory_bytes", "What the layers in memory take.", stored.memory_bytes)
        yield _counter("evictions", "Layers that left the memory for want of room.", stored.evictions)
        if stored.durable:
            yield from _bucket(stored.durable)
        yield _gauge("traces", "Compiled functions that are kept.", engine.traces)
        yield _gauge("warm_shapes", "Shapes of inputs that were computed before.", engine.warm_shapes)
        memory = {(device,): size for device, size in engine.device_memory().items()}
        yield _gauge("device_memory_bytes", "What TensorFlow has in use on a GPU.", memory, "device")


def _bucket(usage: DurableUsage) -> Iterator[Metric]:
    yield _gauge("store_reachable", "Whether the bucket answers.", usage.is_reachable)
    requests = dict(sorted(usage.requests.items()))
    yield _counter("store_requests", "What was asked of the bucket.", requests, "operation", "result")
    seconds = {(operation,): duration for operation, duration in sorted(usage.seconds.items())}
    yield _counter("store_request_seconds", "How long that took.", seconds, "operation")
    yield _counter("store_damaged_objects", "Objects in the bucket that were not what their path says.", usage.damaged)
    yield _gauge("store_cache_bytes", "What the layers in the cache folder take.", usage.cache_bytes)
    text = "Layers that were read from the cache folder, or had to be fetched."
    yield _counter("store_cache_reads", text, {("hit",): usage.cache_hits, ("miss",): usage.cache_misses}, "result")


_Values = float | Mapping[Any, float]  # one, or one for each tuple of labels


def _filled(family: Any, values: _Values) -> Metric:
    for labels, value in values.items() if isinstance(values, Mapping) else [((), values)]:
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]


def _gauge(name: str, text: str, values: _Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"convserve_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: _Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"convserve_{name}", text, labels=labels), values)


def new_registry() -> CollectorRegistry:
    """Returns a registry that knows this process' memory, time and files."""
    # The time of each label's first use, which would be a third of the page.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
