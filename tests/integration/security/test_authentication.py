"""Tokens at a real server: each permission against each RPC, both clients, the command line, what is not shown."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

import convserve
from convserve import Client, Conv2D, PermissionDeniedError, RetryRule, UnauthenticatedError
from convserve.v1 import convolution_service_pb2, layer_service_pb2
from convserve.v1.layer_service_pb2 import FindMissingLayersRequest
from tests.support.either_client import EITHER_CLIENT
from tests.support.raw.calls import RPCS as CONTRACT
from tests.support.raw.calls import checked, convolve_request, layer, plan_request, weights
from tests.support.raw.inference import INFERENCE_RPCS
from tests.support.servers.counting_proxy import counting_proxy
from tests.support.servers.server_process import numpy_server

READ, COMPUTE, CHANGE, BOTH, ADMIN = (f"s3cret-{name}-0123456789" for name in ("read", "comp", "chng", "both", "admin"))
RPCS = [*CONTRACT, *INFERENCE_RPCS]
TOKENS = f"""
reader {READ} read
computer {COMPUTE} compute
changer {CHANGE} change
both {BOTH} read,compute
"""
ALLOWED = {
    READ: {"GetServerInfo", "Plan", "GetLayer", "ListLayers", "FindMissingLayers", "ReadWeights",
           "ListNameVersions", "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata",
           "ModelConfig", "ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus"},
    COMPUTE: {"Convolve", "ConvolveStream", "Echo", "ModelInfer", "ModelStreamInfer", "SystemSharedMemoryRegister",
              "SystemSharedMemoryUnregister", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"},
    CHANGE: {"PutLayer", "UpdateWeights", "DeleteLayer", "MoveName", "RepositoryModelLoad", "RepositoryModelUnload"},
    ADMIN: {rpc.name for rpc in RPCS},
}  # fmt: skip
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"
DENIED = grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"
CLIENTS = pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
X = np.ones((1, 4, 4, 1), "f4")
LARGE = np.ones((1, 1100, 1100, 1), "f4")  # above 4 MiB, so it goes in pieces or through shared memory
CONV2D = Conv2D(1, 1, use_bias=False, data_format="channels_last")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for tokens, shares memory, and logs all it can."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens.txt").write_text(TOKENS)
    arguments = (
        "--tokens-file", f"{folder}/tokens.txt", "--shared-memory", "--log-level", "debug",
        "--listen", "127.0.0.1:0", "--listen", f"unix://{folder}/s",
    )  # fmt: skip
    with numpy_server(*arguments, environment={"CONVSERVE_TOKEN": ADMIN}) as running:
        yield running
        assert running.stop() == 0
        log = running.log.read_text()
        assert "PERMISSION_DENIED" in log
        assert "s3cret" not in log


@pytest.fixture
def channel(guarded):
    with grpc.insecure_channel(guarded.target) as opened:
        yield opened


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def path(rpc):
    return f"/{rpc.containing_service.full_name}/{rpc.name}"


def call(channel, rpc, metadata=(), *messages):
    """Calls an RPC with raw messages; returns what it failed with, or None."""
    try:
        list(channel.stream_stream(path(rpc))(iter(messages or (b"",)), metadata=metadata, timeout=60))
    except grpc.RpcError as failure:
        return failure
    return None


# Each permission against each RPC


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
@pytest.mark.parametrize("token", ALLOWED, ids=["read", "compute", "change", "all"])
def test_a_token_allows_what_its_permissions_say_and_nothing_else(channel, rpc, token):
    failure = call(channel, rpc, bearer(token))
    if rpc.name in ALLOWED[token]:  # a message of nothing may be refused for what it lacks
        assert failure is None or failure.code() in {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
            *([grpc.StatusCode.UNIMPLEMENTED] if rpc.name == "CudaSharedMemoryRegister" else []),
        }
    else:
        text, _ = checked(failure, *DENIED)
        assert path(rpc) in text
        assert token not in text


WRONG = {
    "none": (),
    "unknown": bearer("s3cret-of-nobody-0123456789"),
    "empty": bearer(""),
    "another scheme": (("authorization", f"Basic {ADMIN}"),),
    "no scheme": (("authorization", ADMIN),),
    "two": bearer(ADMIN) + bearer(ADMIN),
    "another header": (("x-authorization", f"Bearer {ADMIN}"),),
}


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
@pytest.mark.parametrize("metadata", WRONG.values(), ids=WRONG)
def test_without_a_token_that_is_known_nothing_is_allowed(channel, rpc, metadata):
    text, _ = checked(call(channel, rpc, metadata), *UNAUTHENTICATED)
    assert "s3cret" not in text


def test_the_scheme_may_be_written_in_any_case(channel):
    rpc = next(each for each in RPCS if each.name == "GetServerInfo")
    assert call(channel, rpc, (("authorization", f"bearer {READ}"),)) is None


def test_a_method_that_there_is_not_is_closed_too(channel):
    unknown = channel.unary_unary("/convserve.v1.ConvolutionService/Nothing")
    codes = {(): "UNAUTHENTICATED", bearer(READ): "PERMISSION_DENIED", bearer(ADMIN): "UNIMPLEMENTED"}
    for metadata, code in codes.items():
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", metadata=metadata, timeout=60)
        assert caught.value.code().name == code


def test_a_methods_name_makes_no_line_of_the_log(channel, guarded):
    with pytest.raises(grpc.RpcError):
        channel.unary_unary("/a\nforged")(b"", metadata=bearer(READ), timeout=60)
    assert "forged' answered PERMISSION_DENIED" in guarded.log.read_text()
    assert "\nforged" not in guarded.log.read_text()


# Services of gRPC's own


def test_health_is_open(channel, guarded):
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == 1
    watch.cancel()
    done = command("health", "--target", guarded.target)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")


def reflected(channel, metadata, version="v1alpha"):
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    method = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    return list(method(iter([request]), metadata=metadata, timeout=60))


def newer_reflected(channel, metadata):
    return reflected(channel, metadata, "v1")


def servers(channel, metadata):
    request = channelz_pb2.GetServersRequest()
    return channelz_pb2_grpc.ChannelzStub(channel).GetServers(request, metadata=metadata, timeout=60).server


@pytest.mark.parametrize("ask", [reflected, newer_reflected, servers])
def test_reflection_and_channelz_need_reading(channel, ask):
    assert ask(channel, bearer(READ))
    for metadata, refusal in (((), UNAUTHENTICATED), (bearer(COMPUTE), DENIED), (bearer(CHANGE), DENIED)):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, metadata)
        checked(caught.value, *refusal)


# Nothing of a refused request is received


@pytest.mark.parametrize("token", ["", READ], ids=["no token", "not allowed"])
def test_a_large_message_is_refused_before_it_is_received(guarded, token):
    with counting_proxy(guarded.target) as proxy:
        unlimited = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(proxy.target, options=unlimited) as channel:
            rpc = next(each for each in RPCS if each.name == "Convolve")
            failure = call(channel, rpc, bearer(token) if token else (), bytes(2**28))
        checked(failure, *(DENIED if token else UNAUTHENTICATED))
        assert proxy.sent_bytes < 2**26  # no more than what is on its way before anything is read


@pytest.mark.parametrize("name", ["PutLayer", "UpdateWeights", "ConvolveStream"])
def test_a_stream_without_end_is_refused(channel, name):
    rpc = next(each for each in RPCS if each.name == name)
    piece = layer_service_pb2.PutLayerRequest(piece=bytes(2**16)).SerializeToString()
    answers = channel.stream_stream(path(rpc))(itertools.repeat(piece), metadata=bearer(READ), timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    checked(caught.value, *DENIED)


# Both clients


@CLIENTS
@pytest.mark.parametrize("shared_memory", [True, False])
def test_every_call_of_a_client_shows_its_token(guarded, make_client, shared_memory):
    name = f"all/{make_client.__name__}/{shared_memory}"
    kernel = np.full((1, 1, 1, 1), 2, "f4")
    with make_client(guarded.target, token=ADMIN, shared_memory=shared_memory) as client:
        assert client.info().devices
        assert client.plan(CONV2D, X.shape).admitted
        for x in (X, LARGE):
            assert (client.conv2d(x, kernel=kernel, data_format="channels_last") == 2).all()
        assert client.empty((1, 2, 2, 1)).shape == (1, 2, 2, 1)
        stored = client.put(CONV2D, kernel=kernel, name=name)
        assert (stored(X) == 2).all()
        updated, _ = stored.update_weights(kernel * 2)
        assert (client.layer(name).weights()[0] == 4).all()
        assert [each.name for each in client.layers(name)] == [name]
        assert not client.missing([convserve.Layer(CONV2D, kernel)])
        client.delete(updated)
        client.delete(stored)


@CLIENTS
def test_several_servers_are_all_shown_it(guarded, make_client):
    """A layer's service is asked at each address over a channel of its own."""
    host, _, port = guarded.target.rpartition(":")
    with make_client([guarded.target, f"127.0.0.2:{port}"], token=ADMIN) as client:
        stored = client.put(CONV2D, kernel=X[:, :1, :1], name="several")
        assert {each.name for each in client.layers("several")} == {"several"}
        client.delete("several")
        assert (stored(X) == 1).all()
    assert host == "127.0.0.1"


@CLIENTS
def test_refusals_are_exceptions_of_their_own_and_are_not_retried(guarded, make_client):
    def refusals():
        found = re.findall(r"(\S+) answered (UNAUTHENTICATED|PERMISSION_DENIED)", guarded.log.read_text())
        return [(method.rpartition("/")[2], code) for method, code in found]

    keen = RetryRule(attempts=5, initial_s=0.001)
    before = len(refusals())
    with (
        make_client(guarded.target, retry=keen) as nobody,
        make_client(guarded.target, token=READ, retry=keen) as reader,
    ):
        with pytest.raises(UnauthenticatedError, match="set CONVSERVE_TOKEN"):
            nobody.info()
        for x in (X, LARGE):
            with pytest.raises(PermissionDeniedError, match="permission compute"):
                reader.conv2d(x, 1, 1)
        with pytest.raises(PermissionDeniedError, match="permission change") as caught:
            reader.put(CONV2D, input_channels=1)
    assert READ not in str(caught.value)
    assert refusals()[before:] == [
        ("GetServerInfo", "UNAUTHENTICATED"),
        *[("Convolve", "PERMISSION_DENIED")] * 2,
        ("PutLayer", "PERMISSION_DENIED"),
    ]


@CLIENTS
def test_the_environments_token_is_shown(guarded, make_client, monkeypatch):
    monkeypatch.setenv("CONVSERVE_TOKEN", READ)
    with make_client(guarded.target) as client:
        assert client.info().devices


@CLIENTS
def test_what_is_for_this_machine_goes_through_no_proxy(guarded, make_client, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with make_client(guarded.target, token=READ, retry=RetryRule(attempts=1)) as client:
        assert client.info().devices


@CLIENTS
def test_a_token_is_shown_over_a_unix_socket(guarded, make_client):
    tokens_file = next(each for each in guarded.process.args if each.endswith("tokens.txt"))
    target = f"unix://{Path(tokens_file).parent}/s"
    with make_client(target, token=ADMIN) as client, make_client(target) as nobody:
        assert (client.conv2d(LARGE, 1, 1, kernel_initializer="ones") == 1).all()
        with pytest.raises(UnauthenticatedError):
            nobody.info()


# Who may compute and not change


def test_a_layer_that_travels_is_stored_only_for_those_who_may_change(channel):
    carried = layer(weights=weights(np.full((1, 1, 1, 1), 17.0)))
    carried.inline.store = True
    digest = convserve.Layer.from_message(carried.inline).digest
    convolve = channel.unary_unary("/convserve.v1.ConvolutionService/Convolve")
    plan = channel.unary_unary("/convserve.v1.ConvolutionService/Plan")
    find = channel.unary_unary("/convserve.v1.LayerService/FindMissingLayers")

    def is_stored():
        request = FindMissingLayersRequest(digests=[digest]).SerializeToString()
        answer = find(request, metadata=bearer(READ), timeout=60)
        return not layer_service_pb2.FindMissingLayersResponse.FromString(answer).missing_digests

    request = convolve_request(carried)
    answer = convolve(request.SerializeToString(), metadata=bearer(COMPUTE), timeout=60)
    output = convolution_service_pb2.ConvolveResponse.FromString(answer).output
    assert (np.frombuffer(output.data, "<f4") == 17 * np.frombuffer(request.input.data, "<f4")).all()
    assert not is_stored()
    plan(plan_request(carried).SerializeToString(), metadata=bearer(READ), timeout=60)
    assert not is_stored()
    convolve(request.SerializeToString(), metadata=bearer(ADMIN), timeout=60)
    assert is_stored()


@CLIENTS
def test_a_stored_layer_goes_on_for_a_caller_who_may_not_store_it_again(guarded, make_client):
    kernel = np.full((1, 1, 1, 1), 23, "f4")
    with Client(guarded.target, token=ADMIN) as admin, make_client(guarded.target, token=BOTH) as client:
        name = f"goes-on/{make_client.__name__}"
        admin.put(CONV2D, kernel=kernel, name=name)
        found = client.layer(name)
        found.weights()
        admin.delete(name)
        assert (found(X) == 23).all()


@CLIENTS
def test_computing_alone_is_enough_to_compute_and_reading_shares_memory(guarded, make_client):
    for token, shares in ((COMPUTE, False), (BOTH, True)):
        with make_client(guarded.target, token=token) as client:
            assert (client.conv2d(LARGE, 1, 1, kernel_initializer="ones") == 1).all()
            assert client.empty((1, 2, 2, 1)).shape == (1, 2, 2, 1)
            assert (client._tensors.sharing.memory() is not None) == shares


# The command line


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "convserve", *arguments],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_line_shows_a_token_of_a_file_or_of_the_environment(guarded, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{READ}\n")
    asked = ("info", "--json", "--target", guarded.target)
    by_file, by_variable = command(*asked, "--token-file", str(file)), command(*asked, CONVSERVE_TOKEN=READ)
    assert (by_file.returncode, by_variable.returncode) == (0, 0), by_file.stderr + by_variable.stderr
    assert by_file.stdout
    assert "ticket" not in by_file.stdout


def test_what_is_refused_is_told_in_a_line(guarded, tmp_path):
    asked = ("info", "--target", guarded.target)
    done = command(*asked)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Expected the header 'authorization: Bearer TOKEN'.")
    assert "(--token-file)" in done.stderr
    for content, said in (
        (None, "No such file"),
        ("two words", "a token and nothing else"),
        ("", "a token and nothing"),
    ):
        file = tmp_path / "token"
        if content is not None:
            file.write_text(content)
        done = command(*asked, "--token-file", str(file))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: --token-file: Expected")
        assert said in done.stderr
    done = command("info", "--target", "gpu-host.invalid:1", CONVSERVE_TOKEN=READ)
    assert done.stderr.startswith("error: --tls: Expected an encrypted connection")
    assert "(--tls)" in done.stderr
    assert READ not in done.stderr


@pytest.mark.parametrize("name", ["serve", "info", "conv2d"])
def test_no_help_shows_a_token(name):
    done = command(name, "--help", CONVSERVE_TOKEN=ADMIN)
    assert done.returncode == 0
    assert "CONVSERVE_TOKEN" in done.stdout
    assert ADMIN not in done.stdout


# A start that is refused


@pytest.mark.parametrize(
    ("arguments", "token", "error"),
    [
        (("--tokens-file", "/nowhere"), "", "--tokens-file: Expected a file that can be read."),
        ((), "s3cret", "CONVSERVE_TOKEN: Expected at least 16 letters"),
        (("--tls-key", "/nowhere"), "", "--tls-certificate: Expected a file, for --tls-key is given."),
        (("--tls-client-ca", "/nowhere"), "", "--tls-certificate: Expected a file, for --tls-client-ca is given."),
    ],
)
def test_wrong_settings_end_the_server_with_one_line(arguments, token, error):
    done = command("serve", "--listen", "127.0.0.1:0", *arguments, **({"CONVSERVE_TOKEN": token} if token else {}))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {error}")
    assert "s3cret" not in done.stderr
