"""Grafana's dashboard shows all that the server exports and nothing else."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric

from convserve_server.observability.metrics import CallMetrics, Holdings, new_registry
from tests.support.repository import ROOT

GRAFANA = ROOT / "server/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/convserve.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
EXPRESSIONS = {(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]}
(VARIABLE,) = DASHBOARD["templating"]["list"]


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


EXPORTED = exported()


def short_repr() -> set[str]:
    """Returns the names in the dashboard's queries."""
    return {name for _, expression in EXPRESSIONS for name in re.findall(r"\b(?:convserve|process)_\w+", expression)}


def test_every_name_on_the_dashboard_is_exported() -> None:
    assert short_repr() <= set(EXPORTED)
    assert set(re.findall(r"convserve_\w+", VARIABLE["definition"])) <= set(EXPORTED)


def test_everything_that_is_exported_is_on_the_dashboard() -> None:
    assert {EXPORTED[name].name for name in short_repr()} == {each.name for each in EXPORTED.values()}
