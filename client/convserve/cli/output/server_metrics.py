"""What a server's metrics say, for people: rates, percentiles and amounts, out of Prometheus' text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

_START = "process_start_time_seconds"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """Metrics at one moment.

    Attributes:
        time: When, in seconds since 1970.
        samples: Values by a sample's name and its labels.
    """

    time: float
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Returns a sample's value; 0 for one that is not there."""
        return self.samples.get(name, {}).get(frozenset(labels.items()), 0.0)

    def by(self, label: str, name: str) -> dict[str, float]:
        """Returns the sums of a sample's values for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            sums[dict(labels).get(label, "")] += value
        return dict(sums)


@dataclass(frozen=True)
class MethodFigures:
    """What was called in a period.

    Attributes:
        calls_per_s: Calls that ended.
        in_flight: Calls that have not, at the end of the period.
        latency_s: The 50th, 90th and 99th percentile of their duration in seconds; None without calls.
        queue_s: The 90th of what was waited for a device; None where nothing was computed.
        compute_s: The 90th of what a device took; None likewise.
        batch: Samples that were computed together, in the mean; None likewise.
        input_bytes_per_s: Of tensors.
        output_bytes_per_s: Of tensors.
    """

    calls_per_s: float
    in_flight: int
    latency_s: tuple[float, float, float] | None
    queue_s: float | None
    compute_s: float | None
    batch: float | None
    input_bytes_per_s: float
    output_bytes_per_s: float


def read(text: str, time: float) -> Scrape:
    """Returns what a page of metrics says.

    Raises:
        ValueError: If it is not one of a convserve server.
    """
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    if "convserve_refused_total" not in samples:  # which is there from the start
        raise ValueError("no metrics of a convserve server")
    return Scrape(time, dict(samples))


def before_the_start(scrape: Scrape) -> Scrape:
    """Returns what the metrics were when the server's process started: nothing."""
    return Scrape(scrape.value(_START))


def counted_from(before: Scrape, after: Scrape) -> Scrape:
    """Returns what the later metrics count from: the earlier ones, or nothing if the server was started in between."""
    return before if before.value(_START) == after.value(_START) else before_the_start(after)


def methods(before: Scrape, after: Scrape) -> dict[str, MethodFigures]:
    """Returns the figures of each method that was called in a period, or is."""
    seconds = max(after.time - before.time, 1e-9)

    def grown(name: str, method: str) -> float:
        return after.by("method", name).get(method, 0.0) - before.by("method", name).get(method, 0.0)

    figures = {}
    for method, in_flight in sorted(after.by("method", "convserve_requests_in_flight").items()):
        calls = grown("convserve_requests_total", method)
        passes = grown("convserve_batch_samples_count", method)
        if not (calls or in_flight or passes):
            continue
        latencies = _buckets(before, after, "convserve_request_duration_seconds", method)
        queue = _buckets(before, after, "convserve_queue_seconds", method)
        compute = _buckets(before, after, "convserve_compute_seconds", method)
        figures[method] = MethodFigures(
            calls_per_s=calls / seconds,
            in_flight=int(in_flight),
            latency_s=(quantile(latencies, 0.5), quantile(latencies, 0.9), quantile(latencies, 0.99))
            if calls
            else None,
            queue_s=quantile(queue, 0.9) if passes else None,
            compute_s=quantile(compute, 0.9) if passes else None,
            batch=grown("convserve_batch_samples_sum", method) / passes if passes else None,
            input_bytes_per_s=grown("convserve_input_bytes_total", method) / seconds,
            output_bytes_per_s=grown("convserve_output_bytes_total", method) / seconds,
        )
    return figures


def refusals(before: Scrape, after: Scrape) -> dict[str, int]:
    """Returns how many calls and items were refused in a period, by reason."""
    old, new = (scrape.by("reason", "convserve_refused_total") for scrape in (before, after))
    grown = {reason: int(count - old.get(reason, 0.0)) for reason, count in new.items()}
    return {reason: count for reason, count in sorted(grown.items()) if count}


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float:
    """Returns a quantile of a histogram as Prometheus' histogram_quantile does, by interpolation within a bucket.

    Args:
        buckets: Upper bounds, the last infinite, and how many values are at most as large.
        share: Which quantile, from 0 to 1.
    """
    listed = sorted(buckets)
    rank = share * listed[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in listed:
        if count >= rank and count > below:
            # Of what is above the largest bound nothing is known but that.
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


def _buckets(before: Scrape, after: Scrape, name: str, method: str) -> list[tuple[float, float]]:
    buckets = []
    old = before.samples.get(f"{name}_bucket", {})
    for labels, count in after.samples.get(f"{name}_bucket", {}).items():
        said = dict(labels)
        if said["method"] == method:
            buckets.append((float(said["le"]), count - old.get(labels, 0.0)))
    return buckets
