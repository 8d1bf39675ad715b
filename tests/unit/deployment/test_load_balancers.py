"""The load balancers' configurations: that they fit each other, the page, and the trial that changes them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from grpc_health.v1 import health_pb2

from tests.load_balancers.balancers import BALANCERS, FILES, Balancer, NotTriedError, placed
from tests.load_balancers.servers import Place
from tests.support.repository import ROOT

PAGE = (ROOT / "docs/load-balancers.md").read_text()
EVERY = pytest.mark.parametrize("balancer", BALANCERS, ids=lambda each: each.name)
ADDRESSES = [f"10.0.0.1{number}" for number in (1, 2, 3)]
PLACES = [Place(41070 + number, 42070 + number) for number in range(4)]


def test_every_file_is_tried_and_described() -> None:
    files = {each.name for each in FILES.iterdir()}
    assert {each.file for each in BALANCERS} == files
    assert set(re.findall(r"\]\(\.\./server/load_balancers/([\w.-]+)\)", PAGE)) == files


def test_the_pages_settings_are_in_the_files() -> None:
    texts = "".join(each.text() for each in BALANCERS)
    advice = PAGE[PAGE.index("All of them need") : PAGE.index("Start the servers")]
    named = [each for each in re.findall(r"`([^`]+)`", advice) if not each.startswith(("--", "/healthz"))]
    assert len(named) > 12
    assert [each for each in named if each not in texts] == []


@EVERY
@pytest.mark.parametrize("healthz", [False, True])
def test_a_trial_changes_addresses_and_ports_and_nothing_else(balancer: Balancer, healthz: bool) -> None:
    text = placed(balancer.text(), PLACES, 43070, 44070, Path("/folder"), healthz=healthz, tls=True)
    used = "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("#"))
    assert not re.search(r"10\.0\.0\.|0\.0\.0\.0|50051|50443|9464|/etc/|/var/|/run/", used)
    asked = 1 if healthz and "#healthz#" in balancer.text() else 0
    for place in PLACES:
        assert (used.count(str(place.port)), used.count(str(place.metrics_port))) == (1, asked)
    kept = set(balancer.text().replace("#tls# ", "").splitlines()) & set(text.splitlines())
    assert len(kept) > 0.7 * len(text.splitlines())


@EVERY
def test_each_file_names_the_three_servers_alike(balancer: Balancer) -> None:
    lines = balancer.text().splitlines()
    for kind in ("#healthz#", ""):
        forms = [
            [line.replace(address, "") for line in lines if address in line and ("#healthz#" in line) is bool(kind)]
            for address in ADDRESSES
        ]
        forms = [[re.sub(r"server [abc] ", "server ", line) for line in form] for form in forms]
        assert forms[0] == forms[1] == forms[2]
        assert len(forms[0]) == (1 if not kind or kind in balancer.text() else 0)


@pytest.mark.parametrize("healthz", [False, True])
def test_envoys_files_are_yaml_whose_routes_lead_to_their_cluster(healthz: bool) -> None:
    for each in (each for each in BALANCERS if each.file.endswith(".yaml")):
        text = placed(each.text(), PLACES, 43070, 44070, Path("/folder"), healthz=healthz, tls=True)
        resources = yaml.safe_load(text)["static_resources"]
        (cluster,) = resources["clusters"]
        routes = re.findall(r"cluster: (\w+)", text.split("static_resources")[1])
        assert set(routes) == {cluster["name"]} == {cluster["load_assignment"]["cluster_name"]}
        assert len(cluster["health_checks"]) == 1
        assert len(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]) == len(PLACES)


@pytest.mark.parametrize(
    ("said", "found"),
    [("HAProxy version 3.2.26-1 2026/10/14", "3.2.26"), ("HAProxy version 3.1.0", "3.1.0"),
     ("HAProxy version 2.6.12-1+deb12u4", None), ("HAProxy version 3.0.11", None), ("what", None)],
)  # fmt: skip
def test_a_balancer_that_is_too_old_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, found: str | None
) -> None:
    haproxy = next(each for each in BALANCERS if each.name == "haproxy")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotTriedError, match="there is no haproxy"):
        haproxy.found()
    (tmp_path / "haproxy").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "haproxy").chmod(0o755)
    with nullcontext() if found else pytest.raises(NotTriedError, match=r"older than 3\.1|does not say"):
        assert haproxy.found() == found


def test_haproxys_check_is_the_call_of_the_health_service() -> None:
    sent = bytes.fromhex(
        "".join(re.findall(r"^ *tcp-check send-binary (\w+)", FILES.joinpath("haproxy.cfg").read_text(), re.MULTILINE))
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert sent.startswith(preface)
    settings, headers, data = _frames(sent[len(preface) :])
    assert settings == (4, 0, b"")
    assert headers[:2] == (1, 4)  # END_HEADERS
    assert dict(_literals(headers[2])) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "convserve",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    request = health_pb2.HealthCheckRequest().SerializeToString()
    assert data == (0, 1, b"\0" + len(request).to_bytes(4, "big") + request)  # END_STREAM
    answer = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()
    (expected,) = re.findall(r"expect binary (\w+)", FILES.joinpath("haproxy.cfg").read_text())
    assert bytes.fromhex(expected) == b"\0" + len(answer).to_bytes(4, "big") + answer


def _frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Returns HTTP/2's frames: type, flags and payload."""
    frames = []
    while data:
        length = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[4], data[9 : 9 + length]))
        data = data[9 + length :]
    return frames


def _literals(block: bytes) -> list[tuple[str, str]]:
    """Returns the fields of a header block that has nothing but literals without Huffman coding."""
    fields = []
    while block:
        assert block[0] == 0
        name, block = block[2 : 2 + block[1]], block[2 + block[1] :]
        value, block = block[1 : 1 + block[0]], block[1 + block[0] :]
        fields.append((name.decode(), value.decode()))
    return fields
