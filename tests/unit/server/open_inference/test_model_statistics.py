"""A model's figures, whatever was computed together."""

from convserve_server.open_inference import model_statistics
from convserve_server.open_inference.model_statistics import Inference, ModelStatistics

ONE = Inference(samples=1, batch_size=4, success=100, queue=10, compute_input=5, compute_infer=40, compute_output=7)


def test_a_batch_counts_once_and_each_of_its_requests_wholly():
    statistics = ModelStatistics()
    for samples in (1, 1, 2):
        statistics.succeeded("a", "1", ONE._replace(samples=samples))
    found = statistics.message("a", "1")
    assert (found.inference_count, found.execution_count) == (4, 1)
    stats = found.inference_stats
    assert (stats.success.count, stats.success.ns) == (3, 300)
    assert (stats.queue.ns, stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns) == (
        30,
        15,
        120,
        21,
    )
    (batch,) = found.batch_stats
    assert (batch.batch_size, batch.compute_infer.count, batch.compute_infer.ns) == (4, 1, 40)
    assert (batch.compute_input.ns, batch.compute_output.ns) == (15, 21)


def test_sizes_of_batches_are_told_apart():
    statistics = ModelStatistics()
    statistics.succeeded("a", "1", ONE._replace(samples=2, batch_size=2))
    for _ in range(8):
        statistics.succeeded("a", "1", ONE)
    found = statistics.message("a", "1")
    assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(2, 1), (4, 2)]
    assert found.execution_count == 3
    assert found.inference_count == 10


def test_a_batch_shared_with_callers_of_other_services_is_an_execution():
    statistics = ModelStatistics()
    statistics.succeeded("a", "1", ONE)
    assert statistics.message("a", "1").execution_count == 1


def test_failures_count_beside():
    statistics = ModelStatistics()
    statistics.failed("a", "1", 50)
    found = statistics.message("a", "1")
    assert (found.inference_stats.fail.count, found.inference_stats.fail.ns) == (1, 50)
    assert (found.inference_count, found.execution_count, found.inference_stats.success.count) == (0, 0, 0)
    assert found.last_inference > 0


def test_versions_and_names_have_their_own(monkeypatch):
    monkeypatch.setattr(model_statistics, "_MAX_MODELS", 2)
    statistics = ModelStatistics()
    for name, version in (("a", "1"), ("b", "1"), ("a", "1"), ("a", "2")):
        statistics.succeeded(name, version, ONE)
    assert statistics.names() == ["a"]  # b was used longest ago
    assert [statistics.message("a", each).inference_count for each in "12"] == [2, 1]
    assert statistics.message("b", "1").inference_count == 0


def test_sizes_of_batches_used_long_ago_count_as_executions_alone():
    """A caller could send one of each, as many as it likes."""
    statistics = ModelStatistics()
    for size in (1, *range(2, 1001), 1):
        statistics.succeeded("a", "1", ONE._replace(samples=size, batch_size=size))
    found = statistics.message("a", "1")
    assert [each.batch_size for each in found.batch_stats] == [1, *range(902, 1001)]
    assert found.execution_count == 1001
    assert found.inference_count == 1 + sum(range(1001))


def test_long_names_are_forgotten_earlier(monkeypatch):
    monkeypatch.setattr(model_statistics, "_MAX_CHARACTERS", 100)
    statistics = ModelStatistics()
    for name in ("a", "b" * 60, "c", "d" * 60):
        statistics.failed(name, "1", 1)
    assert statistics.names() == ["c", "d" * 60]
    for name in ("e" * 200, "f"):
        statistics.failed(name, "1", 1)
    assert statistics.names() == ["f"]


def test_no_answer_is_larger_than_it_was_said_to_be():
    statistics, large = ModelStatistics(), 2**40
    for name in ("a", ",".join(["b" * 200] * 100)):
        for size in range(1, 120):
            statistics.succeeded(name, "1", Inference(large, size + large, *[large] * 5))
        statistics.failed(name, "1", large)
    answers = [statistics.message(name, "1").ByteSize() for name in statistics.names()]
    assert sum(answers) <= statistics.size() < 2 * sum(answers)
