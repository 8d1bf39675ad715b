"""Grafana's dashboard shows all that the server exports and nothing else, and is provisioned where compose puts it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from convserve_server.observability.metrics import CallMetrics, Holdings, new_registry
from tests.support.repository import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
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
    engine = _Anything(device_memory=lambda: {"GPU:0": 1})
    holdings.open(_Anything(engine=engine, load=_Anything), _Anything(usage=_Anything))  # type: ignore[arg-type]
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


@pytest.mark.parametrize(("title", "expression"), sorted(EXPRESSIONS))
def test_a_query_asks_for_the_chosen_servers_and_for_rates_of_what_only_grows(title: str, expression: str) -> None:
    for name, rest in re.findall(r"\b((?:convserve|process)_\w+|up)(.*?\})", expression):
        assert rest == '{instance=~"$instance"}', title
        grows = (
            name != "up" and EXPORTED[name].type in ("counter", "histogram") and name != "process_start_time_seconds"
        )
        rate = f"rate({name}{rest}[$__rate_interval])" in expression
        assert rate == grows, title


def test_labels_are_those_of_the_metrics() -> None:
    labels = {"method", "code", "reason", "device", "le", "instance"}
    for title, expression in EXPRESSIONS:
        for group in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(group.split(", ")) <= labels, title


def test_panels_have_titles_and_units_and_do_not_overlap() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def mounted(service: str, path: str) -> Path:
    """Returns what lies at a path of a container."""
    for each in COMPOSE["services"][service]["volumes"]:
        source, place, *_ = each.split(":")
        if path == place or path.startswith(f"{place}/"):
            return ROOT / source / path[len(place) :].lstrip("/")
    raise AssertionError(f"nothing is mounted at {path}")


def test_the_dashboard_is_provisioned_with_its_source() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/convserve.yml").read_text())["providers"]
    folder = mounted("grafana", provider["options"]["path"])
    assert folder.resolve() == (GRAFANA / "dashboards").resolve()
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home).exists()
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    sources = [VARIABLE["datasource"], *(each["datasource"] for panel in PANELS for each in (panel, *panel["targets"]))]
    assert all(each == {"type": source["type"], "uid": source["uid"]} for each in sources)
    assert source["url"].removeprefix("http://").partition(":")[0] in COMPOSE["services"]


def test_prometheus_asks_the_servers_where_they_answer() -> None:
    (path,) = (word.partition("=")[2] for word in COMPOSE["services"]["prometheus"]["command"] if "config.file" in word)
    configuration = yaml.safe_load(mounted("prometheus", path).read_text())
    (job,) = configuration["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == {name for name in COMPOSE["services"] if name.startswith("server")}
    (metrics,) = re.findall(r"CONVSERVE_METRICS=\S+:(\d+)", (ROOT / "server/Dockerfile").read_text())
    assert found["port"] == int(metrics)
