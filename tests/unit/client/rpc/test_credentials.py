"""What a client's channels are made with: when a token is sent and when not, and that no secret comes out."""

import json
import pickle

import grpc
import numpy as np
import pytest

import convserve
from convserve import TLS, InvalidRequestError
from convserve._rpc.channel import channel_target
from convserve._rpc.credentials import Access, TokenChannel

TOKEN = "s3cret-of-alice-42"  # noqa: S105
PEM = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
CERTIFICATE = PEM.replace(b"PRIVATE KEY", b"CERTIFICATE")
HERE = [
    "localhost:1", "LocalHost:1", "127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "unix:///tmp/x.sock", "unix:x.sock",
    "unix-abstract:x", ["127.0.0.1:1", "127.0.0.1:2"], "dns:///localhost:1",
]  # fmt: skip
ELSEWHERE = [
    "gpu-host:1", "10.0.0.1:1", "[2001:db8::1]:1", "dns:///gpu-host:1", "dns://8.8.8.8/localhost.example.org:1",
    ["127.0.0.1:1", "10.0.0.1:1"], "127.0.0.1.example.org:1", "xds:///localhost:1", "vsock:1:1",
]  # fmt: skip


def access(target, token=None, tls=None):
    return Access(channel_target(target), token, tls)


def refusal(make, *arguments, **options):
    with pytest.raises(InvalidRequestError) as caught:
        make(*arguments, **options)
    (violation,) = caught.value.violations
    assert violation.description.startswith("Expected ")
    assert "Received " in violation.description
    assert TOKEN not in str(caught.value)
    return violation


def sends_token(made):
    channel = made.channel("localhost:1")
    try:
        return isinstance(channel, TokenChannel)
    finally:
        channel.close()


@pytest.mark.parametrize("target", HERE, ids=str)
def test_a_token_is_sent_on_this_machine_without_encryption(target):
    assert sends_token(access(target, TOKEN))


@pytest.mark.parametrize("target", ELSEWHERE, ids=str)
def test_to_another_machine_it_is_not(target, monkeypatch):
    violation = refusal(access, target, TOKEN)
    assert violation.field == "tls"
    assert "token=" in violation.description
    for way in ("tls=True", "tls=False", "token=''"):
        assert way in violation.description
    assert sends_token(access(target, TOKEN, tls=True))
    assert sends_token(access(target, TOKEN, tls=TLS(server_name="x")))
    assert sends_token(access(target, TOKEN, tls=False))
    assert not sends_token(access(target))
    monkeypatch.setenv("CONVSERVE_TOKEN", TOKEN)
    assert "CONVSERVE_TOKEN" in refusal(access, target).description
    assert not sends_token(access(target, ""))


def test_the_environments_token_is_used_where_none_is_given(monkeypatch):
    assert not sends_token(access("localhost:1"))
    monkeypatch.setenv("CONVSERVE_TOKEN", TOKEN)
    assert sends_token(access("localhost:1"))
    assert not sends_token(access("localhost:1", ""))
    monkeypatch.setenv("CONVSERVE_TOKEN", "")
    assert not sends_token(access("localhost:1"))


@pytest.mark.parametrize("make", [convserve.Client, convserve.AsyncClient])
def test_both_clients_refuse_it(make):
    assert refusal(make, "gpu-host:1", token=TOKEN).field == "tls"


@pytest.mark.parametrize("token", ["two words", "line\n", "é", b"bytes", 7, ["a"], np.arange(2)], ids=str)
def test_what_is_no_token_is_refused_without_being_shown(token):
    violation = refusal(access, "localhost:1", token)
    assert violation.field == "token"
    assert str(token) not in violation.description


@pytest.mark.parametrize("tls", ["ca.pem", b"", 1, {"ca": "x"}])
def test_what_is_no_tls_is_refused(tls):
    assert refusal(access, "localhost:1", None, tls).field == "tls"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"ca": 1}, "tls.ca"),
        ({"certificate": "a"}, "tls.key"),
        ({"key": b"a"}, "tls.certificate"),
        ({"server_name": ""}, "tls.server_name"),
        ({"server_name": b"x"}, "tls.server_name"),
    ],
)
def test_parts_of_tls_that_make_no_sense_are_refused(parts, field):
    assert refusal(TLS, **parts).field == field


@pytest.mark.parametrize(
    ("given", "said"),
    [("nowhere.pem", "No such file"), ("a\0b", "null byte"), (b"text", "Received bytes: there is none")],
)
def test_a_file_that_is_no_pem_is_refused_when_the_client_is_made(given, said):
    violation = refusal(convserve.Client, tls=TLS(ca=given))
    assert violation.field == "tls.ca"
    assert "text" not in violation.description
    assert said in violation.description


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_a_pem_file_of_something_else_is_refused_when_the_client_is_made(tmp_path, name):
    path = tmp_path / "other.pem"
    parts = {"certificate": CERTIFICATE, "key": PEM, name: str(path)}
    for content in (CERTIFICATE, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") if name == "key" else (PEM, b"text"):
        path.write_bytes(content)
        violation = refusal(convserve.Client, "localhost:1", tls=TLS(**parts))
        assert violation.field == f"tls.{name}"
        assert violation.description.endswith("other.pem': there is none in it.")


def test_files_are_given_as_paths_or_as_their_content(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(CERTIFICATE)
    for given in (path, str(path), path.read_bytes()):
        access("gpu-host:1", TOKEN, TLS(ca=given))


def test_no_secret_is_shown():
    tls = TLS(ca="ca.pem", certificate=b"-----BEGIN CERTIFICATE-----", key=PEM, server_name="x")
    assert repr(tls) == "TLS(ca='ca.pem', certificate=..., key=..., server_name='x')"
    with convserve.Client(token=TOKEN) as client:
        shown = repr(client) + repr(client._access) + repr(client._connected()._channel)
    assert TOKEN not in shown
    assert tls == pickle.loads(pickle.dumps(tls))  # noqa: S301
    assert hash(tls) == hash(pickle.loads(pickle.dumps(tls)))  # noqa: S301


def test_a_key_that_is_no_pem_is_not_shown():
    violation = refusal(access, "localhost:1", None, TLS(certificate=PEM, key=TOKEN.encode()))
    assert violation.field == "tls.key"


# Which channels ask a proxy, and how they are spread


def options_of(monkeypatch, target, address=None):
    """Returns the options of the channel that a target's client makes to it, or to one of its addresses."""
    made = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda _, options: made.append(dict(options)))
    access(target).channel(address or channel_target(target))
    return made[0]


@pytest.mark.parametrize(
    ("target", "address", "no_proxy", "asks"),
    [
        ("gpu-host:1", None, "", True),  # gRPC looks into $no_proxy by itself
        ("10.0.0.1:1", None, "", True),
        ("localhost:1", None, "", False),
        ("unix:///a", None, "", False),
        ("10.0.0.1:1,10.0.0.2:1", None, "", False),
        ("10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1", "", False),
        ("[2001:db8::1]:1,[2001:db8::2]:1", None, "", False),
        ("a.test:1", "ipv4:10.0.0.1:1", "", True),
        ("a.test:1", "ipv4:10.0.0.1:1", "other.test, .test", False),
        ("a.test:1", "ipv4:10.0.0.1:1", "a.test", False),
        ("a.test:1", "ipv4:10.0.0.1:1", "est,b.a.test,", True),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "no_grpc_proxy"])
def test_what_needs_no_proxy_asks_none(monkeypatch, target, address, no_proxy, asks, variable):
    monkeypatch.setenv(variable, no_proxy)
    assert ("grpc.enable_http_proxy" not in options_of(monkeypatch, target, address)) is asks


@pytest.mark.parametrize(
    ("target", "policy"),
    [("LOCALHOST:1", "pick_first"), ("dns:///localhost:1", "pick_first"), ("localhost.test:1", "round_robin"),
     ("gpu-host:1", "round_robin"), ("127.0.0.1:1,localhost:2", "round_robin")],
)  # fmt: skip
def test_a_client_of_localhost_stays_with_the_server_that_it_found(monkeypatch, target, policy):
    assert policy in options_of(monkeypatch, target)["grpc.service_config"]


@pytest.mark.parametrize(
    ("target", "address", "watches"),
    [("10.0.0.1:1,10.0.0.2:1", None, True), ("[::1]:1,[::1]:2", None, True), ("10.0.0.1:1", None, False),
     ("10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1", False), ("a.test:1", None, False), ("unix:///a", None, False)],
)  # fmt: skip
def test_a_client_of_several_servers_watches_the_health_of_each(monkeypatch, target, address, watches):
    config = json.loads(options_of(monkeypatch, target, address)["grpc.service_config"])
    assert config.get("healthCheckConfig") == ({"serviceName": ""} if watches else None)
