"""docker-compose.yml: what docker compose says of the file, and that it fits the server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import convserve
from convserve_server import settings
from tests.support.repository import ROOT

FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = ("server", "server-gpu")
PROFILES = {
    "": {"server"},
    "gpu": {"server", "server-gpu"},
    "observe": {"server", "prometheus", "grafana"},
    "demo": {"server", "demo", "demo-shared-memory"},
}


def config(*options: str, **variables: str) -> dict[str, Any]:
    """Returns the file as docker compose understands it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVSERVE_")}
    command = [Path(sys.executable).with_name("docker-compose"), "--file", FILE, *options, "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment | variables)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_starts_its_services(profile: str) -> None:
    assert set(config("--profile", profile)["services"]) == PROFILES[profile]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_of_one_version(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if SERVICES[name]["image"].startswith("convserve/"):
        assert tag == convserve.__version__
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback(name: str) -> None:
    for each in config("--profile", "*")["services"][name].get("ports", []):
        assert each["host_ip"] == "127.0.0.1"


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_given_the_time_that_it_takes_to_stop(name: str) -> None:
    found = SERVICES[name]["environment"]
    drain = int(found.get("CONVSERVE_DRAIN_S", settings.default("drain_s")))
    pre_stop = int(found.get("CONVSERVE_PRE_STOP_S", settings.default("pre_stop_s")))
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= pre_stop + 3 + drain + 5


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_told_only_settings_and_no_secret(name: str) -> None:
    names = {settings.variable(each): each for each in settings.Settings.model_fields}
    assert not any(settings.is_secret(names[each]) for each in SERVICES[name]["environment"])


@pytest.mark.parametrize("name", SERVERS)
def test_access_is_off_until_it_is_set_and_comes_as_files(name: str, tmp_path: Path) -> None:
    variables = ("CONVSERVE_TOKENS_FILE", "CONVSERVE_TLS_CERTIFICATE", "CONVSERVE_TLS_KEY", "CONVSERVE_TLS_CLIENT_CA")
    plain = config("--profile", "gpu")["services"][name]["environment"]
    assert [plain[each] for each in variables] == ["", "", "", ""]
    given = {each: str(tmp_path / each.lower()) for each in variables}
    found = config("--profile", "gpu", **given)
    service = found["services"][name]
    sources = {each["target"]: found["secrets"][each["source"]]["file"] for each in service["secrets"]}
    assert {each: sources[service["environment"][each]] for each in variables} == given
