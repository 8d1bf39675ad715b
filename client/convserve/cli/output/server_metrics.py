"""What a server's metrics say, for people: rates, percentiles and amounts, out of Prometheus' text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_START = "process_start_time_seconds"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """Metrics at one moment."""

    time: float  # in seconds since 1970
    samples: dict[str, dict[Labels, float]]  # values by a sample's name and its labels

    def value(self, name: str) -> float:
        """Returns the sum of a sample's values; 0 for one that is not there."""
        return sum(self.samples.get(name, {}).values())

    def by(self, label: str, name: str) -> dict[str, float]:
        """Returns the sums of a sample's values for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            sums[dict(labels).get(label, "")] += value
        return dict(sums)


@dataclass(frozen=True)
class MethodFigures:
    """What was called in a period; None for what was not measured, as there were no calls or nothing was computed."""

    calls_per_s: float
    in_flight: int  # at the end of the period
    latency_s: tuple[float | None, ...]  # the 50th, 90th and 99th percentile
    queue_s: float | None  # the 90th of what was waited for a device
    compute_s: float | None  # the 90th of what a device took
    batch: float | None  # samples that were computed together, in the mean
    input_bytes_per_s: float
    output_bytes_per_s: float


def read(text: str, time: float) -> Scrape:
    """Returns what a page of metrics says; raises ValueError if it is not one of a convserve server."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    if "convserve_refused_total" not in samples:  # which is there from the start
        raise ValueError("no metrics of a convserve server")
    return Scrape(time, dict(samples))


def counted_from(before: Scrape | None, after: Scrape) -> Scrape:
    """Returns what the later metrics count from: the earlier ones, or nothing where the server has started since."""
    start = after.value(_START)
    return before if before is not None and before.value(_START) == start else Scrape(start, {})


def methods(before: Scrape, after: Scrape) -> dict[str, MethodFigures]:
    """Returns the figures of each method that was called in a period, or is."""
    grown, in_flight = _grown(before, after), after.by("method", "convserve_requests_in_flight")
    figures = {method: _figures(grown, method, int(count)) for method, count in sorted(in_flight.items())}
    return {method: own for method, own in figures.items() if own.calls_per_s or own.in_flight or own.batch}


def refusals(before: Scrape, after: Scrape) -> dict[str, int]:
    """Returns how many calls and items were refused in a period, by reason."""
    refused = _grown(before, after).by("reason", "convserve_refused_total")
    return {reason: int(count) for reason, count in sorted(refused.items()) if count}


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float | None:
    """Returns a quantile of a histogram as Prometheus' histogram_quantile does; None without values.

    The buckets are upper bounds, the last infinite, and how many values are at most as large.
    """
    listed = sorted(buckets)
    if not listed or not listed[-1][1]:
        return None
    rank = share * listed[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in listed:
        if count >= rank and count > below:
            # Of what is above the largest bound nothing is known but that.
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


def _figures(grown: Scrape, method: str, in_flight: int) -> MethodFigures:
    def total(name: str) -> float:
        return grown.by("method", f"convserve_{name}").get(method, 0.0)

    def percentile(name: str, share: float) -> float | None:
        buckets = grown.samples.get(f"convserve_{name}_seconds_bucket", {}).items()
        own = ((float(dict(labels)["le"]), count) for labels, count in buckets if ("method", method) in labels)
        return quantile(own, share)

    passes = total("batch_samples_count")
    return MethodFigures(
        calls_per_s=total("requests_total") / grown.time,
        in_flight=in_flight,
        latency_s=tuple(percentile("request_duration", share) for share in (0.5, 0.9, 0.99)),
        queue_s=percentile("queue", 0.9),
        compute_s=percentile("compute", 0.9),
        batch=total("batch_samples_sum") / passes if passes else None,
        input_bytes_per_s=total("input_bytes_total") / grown.time,
        output_bytes_per_s=total("output_bytes_total") / grown.time,
    )


def _grown(before: Scrape, after: Scrape) -> Scrape:
    """Returns by how much all values and the time have grown."""
    samples: dict[str, dict[Labels, float]] = {}
    for name, values in after.samples.items():
        old = before.samples.get(name, {})
        samples[name] = {labels: value - old.get(labels, 0.0) for labels, value in values.items()}
    return Scrape(max(after.time - before.time, 1e-9), samples)
