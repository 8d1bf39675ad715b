"""The metrics that a server exports, without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric

from convserve_server.observability.metrics import CallMetrics, Holdings, new_registry


class _Anything(SimpleNamespace):
    """An engine, or what it has, of which every number is 0."""

    def __getattr__(self, name: str) -> Any:
        return 0


def exported() -> dict[str, Metric]:
    """Returns what a server exports, by the names of its samples."""
    registry, holdings = new_registry(), Holdings()
    CallMetrics(registry)
    engine = _Anything(device_memory=lambda: {"GPU:0": 1}, versions={})
    load, usage = _Anything(load=_Anything), _Anything(usage=_Anything)
    holdings.open(_Anything(engine=engine, admission=load, store=usage))  # type: ignore[arg-type]
    registry.register(holdings)
    found = {}
    for metric in registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        found |= {metric.name + ending: metric for ending in endings}
    return found
