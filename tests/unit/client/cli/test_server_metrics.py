"""What `convserve top` makes of metrics: rates, percentiles, and what was refused, between two scrapes."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from convserve import OverloadedError
from convserve.cli.output import server_metrics
from convserve.cli.output.server_metrics import quantile
from convserve_server.observability.call_record import CallRecord
from convserve_server.observability.metrics import CallMetrics
from tests.support.observability.observers import PASS

INF = float("inf")
CONVOLVE = "convserve.v1.ConvolutionService/Convolve"


@pytest.mark.parametrize(
    ("share", "value"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.3, 1.5), (0.5, 2), (0.7, 3), (0.9, 4), (0.95, 4), (1, 4)],
)
def test_a_quantile_is_interpolated_within_its_bucket(share, value):
    buckets = [(4, 9), (1, 1), (INF, 10), (2, 5)]  # in any order
    assert quantile(buckets, share) == pytest.approx(value)


def test_a_quantile_skips_empty_buckets():
    assert quantile([(1, 0), (2, 0), (4, 8), (INF, 8)], 0.5) == 3


@pytest.fixture
def metrics():
    """Metrics to count with, and a function that scrapes them."""
    registry = CollectorRegistry()
    counting = CallMetrics(registry)

    def scrape(time):
        return server_metrics.read(generate_latest(registry).decode(), time)

    return counting, scrape


def call(counting, *passes, code="OK", duration_us=3000):
    record = CallRecord(CONVOLVE, CONVOLVE, (), (counting,))
    record.begin()
    for each in passes:
        record.computed(each)
    if code != "OK":
        record.refused(OverloadedError("busy"))
    record.code, record.duration_us = code, duration_us
    counting.ended(record)


def figures(before, after):
    """Returns the figures of the only method that was called between two scrapes."""
    (method,) = server_metrics.methods(before, after)
    return {name.replace("\n", " "): figure(method) for name, figure in server_metrics.FIGURES.items()}


def test_figures_are_of_the_time_between_two_scrapes(metrics):
    counting, scrape = metrics
    call(counting, PASS, PASS._replace(batch_size=64), duration_us=10_000_000)
    before = scrape(100.0)
    for _ in range(8):
        call(counting, PASS, PASS._replace(batch_size=2, output_bytes=52))
    call(counting, code="RESOURCE_EXHAUSTED")
    after = scrape(104.0)
    assert figures(before, after) == {
        "calls /s": 9 / 4,
        "now": 0,
        "p50 ms": pytest.approx(3.75),  # of the bucket from 2.5 to 5 ms
        "p90 ms": pytest.approx(4.75),
        "p99 ms": pytest.approx(4.975),
        "queue ms": pytest.approx(0.09),
        "compute ms": pytest.approx(0.235),
        "batch": 3,
        "in MB/s": pytest.approx(8 * 32 / 4 / 1e6),
        "out MB/s": pytest.approx(8 * 100 / 4 / 1e6),
    }
    assert server_metrics.refusals(before, after) == {"OVERLOADED": 1}


def test_a_method_that_was_not_called_is_left_out(metrics):
    counting, scrape = metrics
    call(counting, PASS)
    before = scrape(1.0)
    assert server_metrics.methods(before, scrape(2.0)) == []
    assert server_metrics.refusals(before, scrape(2.0)) == {}


def test_a_call_under_way_is_shown_without_times(metrics):
    counting, scrape = metrics
    CallRecord(CONVOLVE, CONVOLVE, (), (counting,)).begin()
    found = figures(scrape(1.0), scrape(2.0))
    assert {name: value for name, value in found.items() if value != 0} == {
        "now": 1,
        **dict.fromkeys(("p50 ms", "p90 ms", "p99 ms", "queue ms", "compute ms", "batch")),
    }


def test_since_the_start_is_since_the_process_started():
    text = "convserve_refused_total{reason='X'} 2\nprocess_start_time_seconds 50\n".replace("'", '"')
    latest = server_metrics.read(text, 60.0)
    before = server_metrics.counted_from(None, latest)
    assert before.time == 50
    assert server_metrics.refusals(before, latest) == {"X": 2}


def test_a_server_that_was_started_again_counts_from_nothing():
    page = 'convserve_refused_total{{reason="X"}} {}\nprocess_start_time_seconds {}\n'
    before, after, another = (server_metrics.read(page.format(*each), 60.0) for each in ((9, 50), (12, 50), (2, 58)))
    assert server_metrics.counted_from(before, after) is before
    since = server_metrics.counted_from(before, another)
    assert since.time == 58
    assert server_metrics.refusals(since, another) == {"X": 2}


@pytest.mark.parametrize("text", ["", "<html>", "up 1\n", "{", "convserve_refused_total{"])
def test_another_page_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 (the parser's own, whatever it says)
        server_metrics.read(text, 1.0)
