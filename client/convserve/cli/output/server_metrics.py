"""What a server's metrics say, for people: rates, percentiles and amounts, out of Prometheus' text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
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
class Method:
    """What was called in a period, of one method."""

    name: str
    in_flight: float  # at the end of the period
    grown: Scrape  # by how much all values and the time have grown

    def total(self, name: str) -> float:
        """Returns by how much a sample has grown."""
        return self.grown.by("method", f"convserve_{name}").get(self.name, 0.0)

    def rate(self, name: str) -> float:
        """Returns the same a second."""
        return self.total(name) / self.grown.time

    def percentile_ms(self, name: str, percent: float) -> float | None:
        """Returns a percentile of times; None if there are none."""
        buckets = self.grown.samples.get(f"convserve_{name}_seconds_bucket", {}).items()
        own = ((float(dict(labels)["le"]), count) for labels, count in buckets if ("method", self.name) in labels)
        found = quantile(own, percent / 100)
        return None if found is None else found * 1e3

    def batch(self) -> float | None:
        """Returns how many samples were computed together, in the mean; None if none were."""
        passes = self.total("batch_samples_count")
        return self.total("batch_samples_sum") / passes if passes else None


FIGURES: dict[str, Callable[[Method], float | None]] = {
    "calls\n/s": lambda method: method.rate("requests_total"),
    "now": lambda method: method.in_flight,
    "p50\nms": lambda method: method.percentile_ms("request_duration", 50),
    "p90\nms": lambda method: method.percentile_ms("request_duration", 90),
    "p99\nms": lambda method: method.percentile_ms("request_duration", 99),
    "queue\nms": lambda method: method.percentile_ms("queue", 90),  # what was waited for a device
    "compute\nms": lambda method: method.percentile_ms("compute", 90),  # what a device took
    "batch": Method.batch,
    "in\nMB/s": lambda method: method.rate("input_bytes_total") / 1e6,
    "out\nMB/s": lambda method: method.rate("output_bytes_total") / 1e6,
}
"""What is shown of a method, most under two lines, so that a terminal of 80 characters shows them all."""


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


def methods(before: Scrape, after: Scrape) -> list[Method]:
    """Returns the methods that were called in a period, or are, by their names."""
    grown, in_flight = _grown(before, after), after.by("method", "convserve_requests_in_flight")
    found = (Method(name, count, grown) for name, count in sorted(in_flight.items()))
    return [method for method in found if method.total("requests_total") or method.in_flight or method.batch()]


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


def _grown(before: Scrape, after: Scrape) -> Scrape:
    """Returns by how much all values and the time have grown."""
    samples: dict[str, dict[Labels, float]] = {}
    for name, values in after.samples.items():
        old = before.samples.get(name, {})
        samples[name] = {labels: value - old.get(labels, 0.0) for labels, value in values.items()}
    return Scrape(max(after.time - before.time, 1e-9), samples)
