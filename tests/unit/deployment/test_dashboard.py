"""Grafana's dashboard shows all that the server exports and nothing else."""

from __future__ import annotations

import json
import re

from tests.support.observability.exported import exported
from tests.support.repository import ROOT

GRAFANA = ROOT / "server/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/convserve.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
EXPRESSIONS = {(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]}
(VARIABLE,) = DASHBOARD["templating"]["list"]


EXPORTED = exported()


def short_repr() -> set[str]:
    """Returns the names in the dashboard's queries."""
    return {name for _, expression in EXPRESSIONS for name in re.findall(r"\b(?:convserve|process)_\w+", expression)}


def test_every_name_on_the_dashboard_is_exported() -> None:
    assert short_repr() <= set(EXPORTED)
    assert set(re.findall(r"convserve_\w+", VARIABLE["definition"])) <= set(EXPORTED)


def test_everything_that_is_exported_is_on_the_dashboard() -> None:
    assert {EXPORTED[name].name for name in short_repr()} == {each.name for each in EXPORTED.values()}
