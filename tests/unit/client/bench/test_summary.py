"""The figures of a measurement, from calls that were made up."""

import pytest

from convserve.bench.loops import Block
from convserve.bench.summary import figures, ratios, server_side


def block(*milliseconds, seconds=1.0, notes=(), failures=(), not_begun=0):
    made = Block(seconds=seconds, latencies=[each / 1e3 for each in milliseconds], notes=list(notes))
    made.failures.update(failures)
    made.not_begun = not_begun
    return made


def test_percentiles_are_values_that_were_measured():
    found = figures([block(*range(1, 101))], sent_bytes=0, received_bytes=0)
    assert [found[name] for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")] == pytest.approx([50, 90, 99, 100])
    assert found["mean_ms"] == pytest.approx(50.5)


def test_the_rate_is_the_median_of_the_rounds():
    rounds = [block(*[1] * count, seconds=0.5) for count in (10, 500, 20)]
    found = figures(rounds, sent_bytes=1_000_000, received_bytes=2_000_000)
    assert found["calls"] == 530
    assert found["rounds"] == 3
    assert found["calls_per_s"] == pytest.approx(40)
    assert found["sent_mb_per_s"] == pytest.approx(40)
    assert found["received_mb_per_s"] == pytest.approx(80)


def test_without_answers_there_are_counts_only():
    found = figures([block(failures=["OSError", "OSError"])], 1, 1)
    assert found == {"calls": 0, "not_begun": 0, "failures": {"OSError": 2}, "failure": "", "rounds": 1}
    assert figures([], 1, 1)["calls"] == 0


def test_calls_that_were_not_begun_are_late_but_no_answers():
    found = figures([block(1, 1, 1, 900, not_begun=1)], 1, 1)
    assert (found["calls"], found["not_begun"], found["calls_per_s"]) == (3, 1, 3)
    assert found["max_ms"] == pytest.approx(900)


def test_the_time_on_the_way_is_what_the_server_did_not_say():
    found = server_side([block(10, 20, notes=[(1000, 5000, 1), (3000, 7000, 4)])])
    assert found == {
        "queue_ms": pytest.approx(2),
        "compute_ms": pytest.approx(6),
        "way_ms": pytest.approx(7),
        "mean_batch_size": pytest.approx(2.5),
        "largest_batch_size": 4,
    }
    assert server_side([]) == server_side([block()]) == {}


def test_ratios_are_between_neighbours():
    mine = [block(2, 2, 2), block(40, 40), block(3)]
    others = [block(1), block(10, seconds=0.5), block(1, 1)]
    found = ratios(mine, others)
    assert (found["latency"], found["latency_least"], found["latency_most"]) == pytest.approx((3, 2, 4))
    assert (found["rate"], found["rate_least"], found["rate_most"]) == pytest.approx((1, 0.5, 3))


def test_rounds_without_an_answer_have_no_ratio():
    assert ratios([block(2), block()], [block(1), block(1)])["latency"] == pytest.approx(2)
    assert ratios([block()], [block(1)]) == {}
    assert ratios([block(1)], []) == {}
