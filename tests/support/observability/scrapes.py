"""Metrics as tests read them: with the parser of Prometheus' own library."""

from __future__ import annotations

import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import eventually

Values = dict[tuple[str, ...], float]
CONVOLVE = "convserve.v1.ConvolutionService/Convolve"
STREAM = "convserve.v1.ConvolutionService/ConvolveStream"


def page(url: str) -> str:
    """Returns the text that a server answers with."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return answer.read().decode()


def families(text: str) -> dict[str, Any]:
    """Returns the families of a page by the names that a query goes by."""
    found = {each.name: each for each in text_string_to_metric_families(text)}
    return {f"{name}_total" if each.type == "counter" else name: each for name, each in found.items()}


def values(text: str) -> Values:
    """Returns each sample's value by its name and the values of its labels in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


class Meter:
    """What grows in a server's metrics while a test calls it and nobody else does."""

    def __init__(self, url: str, quiet: bool = True) -> None:
        self.url = url
        # A call before may be answered and not yet over for the server.
        self.before = eventually(lambda: self._quiet(values(page(url)))) if quiet else values(page(url))

    @staticmethod
    def _quiet(now: Values) -> Values | None:
        return None if any(value for key, value in now.items() if key[0] == "convserve_requests_in_flight") else now

    def after(self, calls: int) -> Values:
        """Returns what grew, as soon as so many calls have ended, without the times and their buckets."""

        def grown() -> Values | None:
            now = values(page(self.url))
            found = {key: value - self.before.get(key, 0) for key, value in now.items() if is_counted(key[0])}
            ended = sum(value for key, value in found.items() if key[0] == "convserve_requests_total")
            assert ended <= calls
            return {key: value for key, value in found.items() if value} if ended == calls else None

        return eventually(grown)


def is_counted(name: str) -> bool:
    """Returns whether a sample counts what a test does, rather than time or what the server is."""
    if not name.startswith("convserve_") or name.endswith(("_bucket", "duration_seconds_sum")):
        return False
    return name.endswith(("_total", "_sum", "_count", "_in_flight"))
