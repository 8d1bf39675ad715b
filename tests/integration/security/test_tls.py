"""TLS and mutual TLS: right and wrong certificates, new ones without a restart, and whose certificate a call has."""

import datetime
import logging
import os
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from convserve import TLS, Client, InvalidRequestError, RetryRule, UnauthenticatedError, UnavailableError
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1.server_info_pb2 import ServerInfo
from convserve_server.auth.authenticator import Authenticator
from convserve_server.auth.certificates import Certificate
from convserve_server.auth.tokens import Tokens
from convserve_server.observability.call_record import CallRecorder, current_identity
from convserve_server.settings import SettingsError
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.connections import Connections
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.certificates import Authority
from tests.support.servers.server_process import numpy_server

ONCE = RetryRule(attempts=1)
TOKEN = "s3cret-0123456789"  # noqa: S105
CLIENTS = pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
NOT_TRUSTED = "Expected a TLS connection"


@pytest.fixture(autouse=True)
def no_cas_of_the_environment(monkeypatch):
    """What this machine's own variables trust is another matter."""
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path):
    """A CA that the other side does not trust."""
    return Authority(tmp_path, "stranger")


@contextmanager
def serving(certificate=None, tokens=None):
    """Serves GetServerInfo, whose version is the caller's name; gives the port."""

    def info(request, context):
        return messages.GetServerInfoResponse(server_info=ServerInfo(version=current_identity().caller))

    handler = grpc.unary_unary_rpc_method_handler(
        info, messages.GetServerInfoRequest.FromString, messages.GetServerInfoResponse.SerializeToString
    )
    authenticator = Authenticator(tokens, by_certificate=bool(certificate and certificate.is_mutual))
    connections = Connections(8, 16)
    interceptor = CallInterceptor(
        CallRecorder(), authenticator, StreamSlots(2), ReceivingSlots(2), IdleTimeouts(60), {}, connections
    )
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[interceptor])
    handlers = {"GetServerInfo": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("convserve.v1.ConvolutionService", handlers),)
    )
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", certificate.credentials())
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def certificate(pair, client_ca=""):
    return Certificate(str(pair.certificate), str(pair.key), str(client_ca))


def caller(port, tls, make_client=Client, host="127.0.0.1", **options):
    """Returns the name by which a server knows a client that has just connected.

    By an address, for of a name that leads to several gRPC tells why the last one failed, whichever that is.
    """
    with make_client(f"{host}:{port}", tls=tls, retry=ONCE, **options) as client:
        return client.info(timeout=30).version


def failure(port, tls, **options):
    with pytest.raises(UnavailableError) as caught:
        caller(port, tls, **options)
    return str(caught.value)


# Who trusts whom


@CLIENTS
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_with_a_certificate_of_a_ca_that_is_trusted(authority, make_client, host):
    with serving(certificate(authority.issue("server"))) as port:
        assert caller(port, TLS(ca=authority.ca), make_client, host).startswith("ipv")
        assert caller(port, TLS(ca=authority.ca.read_bytes()), make_client, host)
        assert caller(port, TLS(ca=authority.ca), make_client, host, token=TOKEN)


@CLIENTS
def test_another_ca_is_told_to_be_the_matter(authority, stranger, make_client):
    with serving(certificate(authority.issue("server"))) as port:
        for tls in (TLS(ca=stranger.ca), True):
            text = failure(port, tls, make_client=make_client)
            assert text.startswith(NOT_TRUSTED)
            assert "CERTIFICATE_VERIFY_FAILED" in text
            assert "--tls-ca" in text


@CLIENTS
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_environment_names_the_cas_that_are_trusted(authority, tmp_path, make_client, monkeypatch, variable):
    folder = tmp_path / "cas"
    folder.mkdir()
    (folder / "ours.pem").write_bytes(authority.ca.read_bytes())
    (folder / "README").write_text("What is here are certificates.")
    monkeypatch.setenv(variable, str(authority.ca if variable == "SSL_CERT_FILE" else folder))
    with serving(certificate(authority.issue("server"))) as port:
        assert caller(port, True, make_client)
        assert caller(port, TLS(server_name="localhost"), make_client)


def test_folders_of_cas_may_be_several_and_hold_what_cannot_be_read(authority, tmp_path, monkeypatch):
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "absent"]
    for folder in folders[:2]:
        (folder / "folder").mkdir(parents=True)
        (folder / "0123abcd.0").symlink_to("nowhere")
    (folders[1] / "ours.pem").write_bytes(authority.ca.read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join(map(str, folders)))
    with serving(certificate(authority.issue("server"))) as port:
        assert caller(port, True)
    monkeypatch.setenv("SSL_CERT_DIR", str(folders[0]))
    with pytest.raises(InvalidRequestError, match=r"SSL_CERT_DIR: Expected a PEM file of a CA .*first', with none"):
        Client("127.0.0.1:1", tls=True)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_ca_that_the_environment_names_is_one(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path / "no.pem"))
    with pytest.raises(InvalidRequestError, match=f"{variable}: Expected a PEM file"):
        Client("127.0.0.1:1", tls=True)
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "/etc/ssl/cert.pem")  # gRPC's own is before these
    Client("127.0.0.1:1", tls=True).close()


def test_the_systems_cas_are_trusted(authority, monkeypatch, tmp_path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.ca.read_bytes())
    found = ssl.get_default_verify_paths()._replace(cafile=str(bundle))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)
    with serving(certificate(authority.issue("server"))) as port:
        assert caller(port, True)


def test_another_name_is_told_to_be_the_matter(authority):
    with serving(certificate(authority.issue("server", "gpu-host.example.org"))) as port:
        text = failure(port, TLS(ca=authority.ca))
        assert text.startswith(NOT_TRUSTED)
        assert "--tls-server-name" in text
        assert caller(port, TLS(ca=authority.ca, server_name="gpu-host.example.org"))


def test_an_expired_certificate_is_told_to_be_the_matter(authority):
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    pair = authority.issue("server", not_after=yesterday)
    with serving(certificate(pair)) as port:
        assert failure(port, TLS(ca=authority.ca)).startswith(NOT_TRUSTED)
        authority.issue("server")
        assert caller(port, TLS(ca=authority.ca))


def test_tls_to_a_server_without_and_none_to_one_with_it(authority):
    with serving() as port:
        assert failure(port, TLS(ca=authority.ca)).startswith(NOT_TRUSTED)
    with serving(certificate(authority.issue("server"))) as port:
        assert "tls=" in failure(port, None)


# Mutual TLS


@CLIENTS
def test_a_callers_certificate_names_it(authority, stranger, make_client):
    ca = authority.ca
    with serving(certificate(authority.issue("server"), ca)) as port:
        for name, identity, options, expected in (
            ("cn", "alice.example.org", {"common_name": "alice"}, "certificate:alice"),
            ("san", "bob.example.org", {}, "certificate:bob.example.org"),
            ("mail", "carol@example.org", {}, "certificate:carol@example.org"),
            ("odd", "x.example.org", {"common_name": "dan\nINFO"}, r"certificate:'dan\nINFO'"),
        ):
            pair = authority.issue(name, identity, **options)
            assert caller(port, TLS(ca, pair.certificate, pair.key), make_client) == expected
        for tls in (TLS(ca), TLS(ca, *vars(stranger.issue("false", "alice.example.org")).values())):
            text = failure(port, tls, make_client=make_client)
            assert "tls=" in text


def test_a_token_names_the_caller_before_its_certificate_does(authority, tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text(f"dora {TOKEN} read\n")
    pair = authority.issue("client", "alice.example.org")
    tls = TLS(authority.ca, pair.certificate, pair.key)
    with serving(certificate(authority.issue("server"), authority.ca), Tokens(str(file))) as port:
        assert caller(port, tls, token=TOKEN) == "token:dora"
        with pytest.raises(UnauthenticatedError):
            caller(port, tls)
    with serving(tokens=Tokens(str(file))) as port:
        assert caller(port, None, token=TOKEN) == "token:dora"


def test_without_either_a_caller_is_where_it_is():
    with serving() as port:
        assert caller(port, None).startswith("ipv")


# New certificates


def test_a_new_certificate_is_used_without_a_restart(authority, stranger, tmp_path, caplog):
    pair = authority.issue("server")
    with (
        caplog.at_level(logging.INFO, "convserve"),
        serving(certificate(pair)) as port,
        Client(f"localhost:{port}", tls=TLS(ca=authority.ca), retry=ONCE) as before,
    ):
        before.info()
        assert stranger.issue("server") == pair
        assert caller(port, TLS(ca=stranger.ca))
        assert failure(port, TLS(ca=authority.ca)).startswith(NOT_TRUSTED)
        before.info()  # its connection stays
    assert f"--tls-certificate: read {pair.certificate} again" in caplog.text


def test_new_files_that_are_wrong_leave_the_certificate_of_before(authority, caplog):
    pair = authority.issue("server")
    others = authority.issue("other")
    with serving(certificate(pair)) as port:
        key = pair.key.read_bytes()
        for wrong in (others.key.read_bytes(), key[:100], b"", None):
            pair.key.unlink()
            if wrong is not None:
                pair.key.write_bytes(wrong)
            for _ in range(2):
                assert caller(port, TLS(ca=authority.ca))
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert record.getMessage().startswith("--tls-certificate, --tls-key: Expected PEM files")
            assert record.getMessage().endswith("What it held before stays in use.")
            assert "BEGIN" not in caplog.text
            caplog.clear()
        authority.issue("server")
        assert caller(port, TLS(ca=authority.ca))
        assert not [each for each in caplog.records if each.levelno > logging.INFO]


def test_each_listener_learns_of_a_new_certificate(authority, stranger):
    shared = certificate(authority.issue("server"))
    with serving(shared) as one, serving(shared) as other:
        stranger.issue("server")
        for port in (one, other, one):
            assert caller(port, TLS(ca=stranger.ca))


# Files that a server does not start with


@pytest.mark.parametrize("wrong", ["certificate", "key", "client_ca", "pair"])
@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_wrong_files_are_refused(authority, tmp_path, wrong, content):
    pair = authority.issue("server")
    files = {"certificate": str(pair.certificate), "key": str(pair.key), "client_ca": str(authority.ca)}
    if wrong == "pair":
        files["key"] = str(authority.issue("other").key)
    else:
        files[wrong] = f"{tmp_path}/wrong.pem"
        if content is not None:
            (tmp_path / "wrong.pem").write_text(content)
    with pytest.raises(SettingsError, match=r"^--tls-.*: Expected .*PEM file.* Received .*/.*: .+\.$") as caught:
        Certificate(**files)
    assert "AAAA" not in str(caught.value)


def test_a_key_with_a_password_is_refused_without_asking_for_one(authority):
    from cryptography.hazmat.primitives import serialization

    pair = authority.issue("server")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    pair.key.write_bytes(locked)
    with pytest.raises(SettingsError, match="not encrypted"):
        certificate(pair)


# A whole server


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """A server with mutual TLS and a token, on the network too, and a Unix socket."""
    folder = tmp_path_factory.mktemp("encrypted")
    authority = Authority(folder)
    pair, client = authority.issue("server"), authority.issue("client", "alice.example.org")
    arguments = (
        "--listen", "0.0.0.0:0", "--listen", f"unix://{folder}/s", "--shared-memory", "--tls-certificate",
        str(pair.certificate), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.ca),
    )  # fmt: skip
    with numpy_server(*arguments, environment={"CONVSERVE_TOKEN": TOKEN}) as running:
        port = running.target.rpartition(":")[2]
        yield f"127.0.0.1:{port}", f"unix://{folder}/s", TLS(authority.ca, client.certificate, client.key)
        assert running.stop() == 0
        assert running.log_lines == []  # no warning: what is open to the network is encrypted and asks who calls


@CLIENTS
@pytest.mark.parametrize("shared_memory", [True, False])
def test_all_ways_of_tensors_are_encrypted(encrypted, make_client, shared_memory):
    target, _, tls = encrypted
    with make_client(target, tls=tls, token=TOKEN, shared_memory=shared_memory) as client:
        for size in (4, 600):
            x = np.ones((1, size, size, 1), "f4")
            assert (client.conv2d(x, 1, 1, kernel_initializer="ones", data_format="channels_last") == 1).all()
        assert (client._tensors.sharing.memory() is not None) == shared_memory
        assert client.layers() == []


@CLIENTS
def test_several_addresses_are_each_connected_to_with_tls(encrypted, make_client):
    target, _, tls = encrypted
    port = target.rpartition(":")[2]
    with make_client([target, f"localhost:{port}"], tls=tls, token=TOKEN) as client:
        assert client.layers() == []


@CLIENTS
def test_a_unix_socket_needs_no_certificate(encrypted, make_client):
    _, target, _ = encrypted
    with make_client(target, token=TOKEN) as client:
        assert client.info().devices
    with make_client(target) as nobody, pytest.raises(UnauthenticatedError):
        nobody.info()
