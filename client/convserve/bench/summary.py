"""Stretches of calls as figures: percentiles, rates, shares, and ratios between neighbours."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convserve.bench.loops import Block

Figures = dict[str, Any]

_PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "max_ms": 100}
_RATIOS: dict[str, Callable[[Block], float]] = {
    "latency": lambda block: statistics.median(block.latencies),
    "rate": lambda block: block.rate,
}


def figures(blocks: Sequence[Block], sent_bytes: int, received_bytes: int) -> Figures:
    """Returns what some stretches of the same calls, one per round, come to; counts alone if no call was answered.

    Latencies are in milliseconds over all calls; the rate, in calls per second, and what it moves, in 10**6 bytes per
    second, are the medians of the rounds.
    """
    failures: Counter[str] = sum((block.failures for block in blocks), Counter())
    totals: Figures = {
        "calls": sum(block.answers for block in blocks),
        "not_begun": sum(block.not_begun for block in blocks),
        "failures": dict(failures),
        "failure": next((block.failure for block in blocks if block.failure), ""),
        "rounds": len(blocks),
    }
    if not totals["calls"]:
        return totals
    latencies = [latency for block in blocks for latency in block.latencies]
    # Of values that were measured, none between two of them.
    values = np.percentile(latencies, list(_PERCENTILES.values()), method="inverted_cdf") * 1e3
    rate = statistics.median(block.rate for block in blocks)
    return {
        **totals,
        **dict(zip(_PERCENTILES, map(float, values), strict=True)),
        "mean_ms": statistics.fmean(latencies) * 1e3,
        "calls_per_s": rate,
        "sent_mb_per_s": rate * sent_bytes / 1e6,
        "received_mb_per_s": rate * received_bytes / 1e6,
    }


def server_side(blocks: Sequence[Block]) -> Figures:
    """Returns what the server said of its calls, as means; the blocks' notes are (queue_us, compute_us, batch_size).

    They are milliseconds of waiting, of computing, and of everything else (the way there and back, and the two ends of
    it), and batch sizes.
    """
    notes = [note for block in blocks for note in block.notes]
    if not notes:
        return {}
    queue, compute, batch = (statistics.fmean(column) for column in zip(*notes, strict=True))
    mean_ms = statistics.fmean(latency for block in blocks for latency in block.latencies) * 1e3
    return {
        "queue_ms": queue / 1e3,
        "compute_ms": compute / 1e3,
        "way_ms": max(0.0, mean_ms - (queue + compute) / 1e3),
        "mean_batch_size": batch,
        "largest_batch_size": max(note[2] for note in notes),
    }


def ratios(blocks: Sequence[Block], others: Sequence[Block]) -> Figures:
    """Returns by how much calls took as long, and how many were answered, as others in the same rounds.

    `latency` and `rate` are medians over the rounds of the quotient of neighbours, with their extremes.
    """
    pairs = [(a, b) for a, b in zip(blocks, others, strict=False) if a.answers and b.answers]
    result: Figures = {}
    for name, value in _RATIOS.items() if pairs else ():
        quotients = [value(a) / value(b) for a, b in pairs]
        result[name] = statistics.median(quotients)
        result[f"{name}_least"], result[f"{name}_most"] = min(quotients), max(quotients)
    return result
