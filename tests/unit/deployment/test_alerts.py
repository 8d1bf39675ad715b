"""The alerts and what scrapes for them: that Prometheus takes them, that they fire, and that a page says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import FOLDER, built, container_of, only
from tests.support.observability.exported import exported
from tests.support.pages import anchors, text
from tests.support.repository import ROOT

MONITORING = built(FOLDER / "monitoring")
SPEC = only(MONITORING, "PrometheusRule")["spec"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in SPEC["groups"] for rule in group["rules"]}
_PAGES = "https://github.com/convserve/convserve/blob/main/"
_OTHERS = {"kube_pod_container_resource_limits"}  # of kube-state-metrics
POD = 'namespace="n", pod="p"'
FIRING = {
    "ConvserveDown": [f'up{{job="convserve", {POD}}}', "0x30"],
    "ConvserveAbsent": ['up{job="another"}', "1x30"],
    "ConvserveRestarts": [f'process_start_time_seconds{{job="convserve", {POD}}}', "1 1 2 2 3 3x25"],
    "ConvserveDefects": [f'convserve_refused_total{{reason="INTERNAL", {POD}}}', "0 0 1x28"],
    "ConvserveOverloaded": [
        *(f'convserve_refused_total{{reason="OVERLOADED", {POD}}}', "0+6x30"),
        *(f'convserve_requests_total{{code="OK", {POD}}}', "0+60x30"),
    ],
    "ConvserveSlow": [
        *(f'convserve_queue_seconds_bucket{{le="1", {POD}}}', "0x30"),
        *(f'convserve_queue_seconds_bucket{{le="5", {POD}}}', "0+9x30"),
        *(f'convserve_queue_seconds_bucket{{le="+Inf", {POD}}}', "0+9x30"),
    ],
    "ConvserveOutOfMemory": [f'convserve_refused_total{{reason="OUT_OF_MEMORY", {POD}}}', "0 0 1x28"],
    "ConvserveMemoryNearLimit": [
        *(f'process_resident_memory_bytes{{job="convserve", {POD}}}', "96x30"),
        *(f'kube_pod_container_resource_limits{{resource="memory", container="convserve", {POD}}}', "100x30"),
        *(f'kube_pod_container_resource_limits{{resource="cpu", container="convserve", {POD}}}', "2x30"),
    ],
    "ConvserveFilesNearLimit": [
        *(f'process_open_fds{{job="convserve", {POD}}}', "95x30"),
        *(f'process_max_fds{{job="convserve", {POD}}}', "100x30"),
    ],
    "ConvserveStoreAway": [f"convserve_store_reachable{{{POD}}}", "0x30"],
    "ConvserveStoreDamaged": [f"convserve_store_damaged_objects_total{{{POD}}}", "0 0 1x28"],
}
"""For each alert, series that make it fire, a sample a minute."""


def test_the_series_are_of_every_alert() -> None:
    assert FIRING.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_an_alert_goes_by_what_is_exported(name: str) -> None:
    used = set(re.findall(r"\b(?:convserve|process|kube)_\w+", RULES[name]["expr"]))
    stored = set(re.findall(r"`(convserve_store_\w+)`", text("docs/object-storage.md")))
    assert used <= exported().keys() | _OTHERS | stored


@pytest.mark.parametrize("name", RULES)
def test_an_alert_leads_to_its_paragraph(name: str) -> None:
    path, _, anchor = RULES[name]["annotations"]["runbook_url"].removeprefix(_PAGES).partition("#")
    assert anchor == name.lower()
    assert anchor in anchors((ROOT / path).read_text(encoding="utf-8"))
    assert RULES[name]["labels"]["severity"] in ("warning", "critical")


def test_the_page_has_no_other_alerts() -> None:
    assert set(re.findall(r"^## (\w+)$", text("docs/alerts.md"), re.MULTILINE)) == RULES.keys()


def test_the_service_monitor_selects_the_service_and_its_port() -> None:
    base = built(FOLDER / "base")
    service, monitor = only(base, "Service"), only(MONITORING, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert ports[endpoint["port"]] in [port["name"] for port in container_of(only(base, "Deployment"))["ports"]]
    assert 'job="convserve"' in RULES["ConvserveDown"]["expr"]
    assert service["metadata"]["name"] == "convserve", "which is the job of what is scraped"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool, which Debian's prometheus has")
def test_each_alert_fires_when_it_is_to_and_not_else(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(SPEC))
    tests: list[dict[str, Any]] = []
    for name, series in FIRING.items():
        given = [{"series": each, "values": values} for each, values in zip(series[::2], series[1::2], strict=True)]
        tests.append(_test(given, f'count(ALERTS{{alertname="{name}", alertstate="firing"}})', 1))
    healthy = [
        *(f'up{{job="convserve", {POD}}}', "1x30", f'process_start_time_seconds{{job="convserve", {POD}}}', "1x30"),
        *(f'convserve_refused_total{{reason="INTERNAL", {POD}}}', "3x30"),
        *(f'convserve_refused_total{{reason="OVERLOADED", {POD}}}', "0+1x30"),
        *(f'convserve_requests_total{{code="OK", {POD}}}', "0+60x30"),
        *(f'convserve_queue_seconds_bucket{{le="0.1", {POD}}}', "0+9x30"),
        *(f'convserve_queue_seconds_bucket{{le="+Inf", {POD}}}', "0+9x30"),
        *(f'process_resident_memory_bytes{{job="convserve", {POD}}}', "60x30"),
        *(f'kube_pod_container_resource_limits{{resource="memory", container="convserve", {POD}}}', "100x30"),
        *(
            f'process_open_fds{{job="convserve", {POD}}}',
            "5x30",
            f'process_max_fds{{job="convserve", {POD}}}',
            "100x30",
        ),
        *(f"convserve_store_reachable{{{POD}}}", "1x30", f"convserve_store_damaged_objects_total{{{POD}}}", "2x30"),
    ]
    given = [{"series": each, "values": values} for each, values in zip(healthy[::2], healthy[1::2], strict=True)]
    tests.append(_test(given, "count(ALERTS) or vector(0)", 0))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def _test(series: list[dict[str, str]], expression: str, value: int) -> dict[str, Any]:
    """Returns a test of promtool: what an expression is in some minute until the series end."""
    samples = [{"labels": "{}", "value": value}]
    query = {"expr": f"max_over_time(({expression})[29m:1m])", "eval_time": "30m", "exp_samples": samples}
    return {"interval": "1m", "input_series": series, "promql_expr_test": [query]}
