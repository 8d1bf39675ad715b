"""docker-compose.yml: what must hold of every service, and what docker compose itself says of the file."""

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
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback(name: str) -> None:
    for each in config("--profile", "*")["services"][name].get("ports", []):
        assert each["host_ip"] == "127.0.0.1"


@pytest.mark.parametrize("name", SERVICES)
def test_who_needs_another_service_waits_until_it_is_healthy_or_has_ended_well(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        ends = SERVICES[needed].get("command", [""])[0] == "bench"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        # The servers' check is in their image.
        assert ends or needed in SERVERS or "healthcheck" in SERVICES[needed]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_a_folder_of_layers_of_its_own(name: str) -> None:
    folders = dict(each.split(":") for each in SERVICES[name]["volumes"])
    (layers,) = (volume for volume, place in folders.items() if place == "/var/lib/convserve")
    assert layers in COMPOSE["volumes"]
    others = [each for other in SERVICES if other != name for each in SERVICES[other].get("volumes", [])]
    assert not any(each.startswith(f"{layers}:") for each in others)


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


def test_the_gpu_server_reserves_a_device() -> None:
    (device,) = SERVICES["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert SERVICES["server-gpu"]["build"]["args"]["EXTRAS"] == "server-gpu"


def test_the_demo_shares_memory_by_the_servers_socket_and_nothing_else() -> None:
    shared, server = SERVICES["demo-shared-memory"], SERVICES["server"]
    assert shared["network_mode"] == "none"
    (volume,) = shared["volumes"]
    assert volume in server["volumes"]
    folder = volume.partition(":")[2]
    assert shared["command"][shared["command"].index("--target") + 1].startswith(f"unix://{folder}/")


def test_every_file_that_is_mounted_is_there() -> None:
    for name, service in SERVICES.items():
        for each in service.get("volumes", []):
            source = each.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), name
