"""What a server is told on its command line: addresses, devices, and what it tells operators."""

import itertools
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from convserve import Client
from convserve_server.settings import Settings
from tests.support.processes import ended_afterwards
from tests.support.repository import ROOT
from tests.support.servers.server_process import ended

OURS = {"convserve.v1.ConvolutionService", "convserve.v1.LayerService"}


def reflect(channel, version="v1alpha", **request):
    """Returns a server's answer to a request of reflection."""
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = method(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=60)
    return answer


def reflected(channel, version="v1alpha"):
    """Returns the names of the services that a server lists."""
    services = reflect(channel, version, list_services="").list_services_response.service
    return {service.name for service in services}


def channelz_servers(channel):
    request = channelz_pb2.GetServersRequest()
    return channelz_pb2_grpc.ChannelzStub(channel).GetServers(request, timeout=60).server


# Refusals to start

IN_USE = "Address already in use"


def not_usable(address, why):
    """Returns the error of an address that cannot be listened on."""
    return f"error: --listen: Expected an address that is free and may be used. Received {address}: {why}.\n"


def test_another_servers_port_ends_it_with_one_line(server):
    assert ended("--listen", "127.0.0.1:0", "--listen", server.target) == (2, "", not_usable(server.target, IN_USE))


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_name_of_which_one_address_is_taken_is_not_listened_on_by_halves(taken):
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.socket(family) as other:
        try:
            other.bind((taken, 0))
        except OSError as error:
            pytest.skip(f"no {taken} here: {error}")
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        assert ended("--listen", address) == (2, "", not_usable(f"{address} ({taken})", IN_USE))


def test_a_unix_socket_in_use_ends_it_and_is_left_to_its_owner(tmp_path):
    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as taken, socket.socket(socket.AF_UNIX) as caller:
        taken.bind(str(path))
        taken.listen()
        assert ended("--listen", f"unix://{path}") == (2, "", not_usable(f"unix://{path}", IN_USE))
        caller.connect(str(path))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nobody.invalid:0", "(Name or service not known|Temporary failure in name resolution|No address .*)"),
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("unix:///nowhere/at/all.sock", "No such file or directory"),
        (f"unix:///{'a' * 200}", "AF_UNIX path too long"),
        ("unix:///etc/passwd", "there is a file that is no socket"),
    ],
)
def test_an_address_that_is_none_of_ours_ends_it_with_the_systems_reason(address, why):
    status, out, error = ended("--listen", address)
    assert (status, out) == (2, "")
    assert re.fullmatch(not_usable(re.escape(address), why), error), error


def test_a_gpu_that_is_not_there_ends_it_with_one_line():
    status, out, error = ended("--listen", "127.0.0.1:0", "--device", "gpu:99")
    assert (status, out) == (2, "")
    pattern = r"error: --device: Expected a GPU that TensorFlow sees; it sees \d+\. Received gpu:99\.\n"
    assert re.fullmatch(pattern, error), error


def test_a_wrong_setting_ends_it_with_one_line():
    expected = "Expected a time such as 30s, 5m, 250ms or 1.5. Received 'soon'."
    error = f"error: --drain-s (CONVSERVE_DRAIN_S): {expected}\n"
    assert ended("--drain-s", "soon") == (2, "", error)


# What operators see


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_and_describes_the_services(server, version):
    with grpc.insecure_channel(server.target) as channel:
        listed = reflected(channel, version)
        assert listed >= OURS | {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz"}
        assert {f"grpc.reflection.{each}.ServerReflection" for each in ("v1", "v1alpha")} <= listed
        for name in listed:
            files = reflect(channel, version, file_containing_symbol=name).file_descriptor_response
            services = {
                f"{file.package}.{service.name}"
                for file in map(FileDescriptorProto.FromString, files.file_descriptor_proto)
                for service in file.service
            }
            assert name in services


def test_channelz_shows_connections(server, client):
    client.info()
    with grpc.insecure_channel(server.target) as channel:
        (shown,) = channelz_servers(channel)
    assert shown.data.calls_succeeded >= 1
    assert len(shown.listen_socket) == 1


def test_channelz_says_what_it_does_not_know(server):
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as failure:
        channelz_pb2_grpc.ChannelzStub(channel).GetServer(channelz_pb2.GetServerRequest(server_id=10**9), timeout=60)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert "server_id==1000000000" in failure.value.details()


def test_those_who_watch_the_health_keep_nobody_from_calling(server, client):
    with grpc.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = [watch(health_pb2.HealthCheckRequest()) for _ in range(2 * Settings().handler_threads)]
        assert {next(each).status for each in watches} == {health_pb2.HealthCheckResponse.SERVING}
        assert client.info(timeout=30).devices


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A server with three listeners, one of them open to the network, and without reflection and channelz."""
    folder = tmp_path_factory.mktemp("listen")
    listen = [f"--listen={each}" for each in (f"unix://{folder}/server.sock", "localhost:0", "0.0.0.0:0")]
    program = [sys.executable, "-m", "tests.support.engines.numpy_server"]
    command = [*program, "--device=cpu", "--no-reflection", "--no-channelz", *listen]
    with (
        (folder / "log").open("w") as log,
        ended_afterwards(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as process,
    ):
        lines = list(itertools.takewhile(lambda line: not line.startswith("ready"), process.stdout))
        yield SimpleNamespace(lines=lines, log=folder / "log", folder=folder)


def test_every_address_is_printed_and_served(other):
    targets = [line.removeprefix("listening on ").strip() for line in other.lines]
    assert targets[0] == f"unix://{other.folder}/server.sock"
    assert [target.rpartition(":")[0] for target in targets[1:]] == ["localhost", "0.0.0.0"]  # noqa: S104
    for target in targets:
        with Client(target.replace("0.0.0.0", "127.0.0.1")) as client:  # noqa: S104
            assert (client.conv2d(np.ones((1, 5, 5, 1), "f4"), 1, 3, kernel_initializer="ones") == 9).all()


def test_an_address_that_is_open_to_the_network_is_warned_of(other):
    _, line = other.log.read_text().splitlines()  # after the settings
    address = other.lines[2].removeprefix("listening on ").strip()
    warning = f" WARNING {address} is open to the network: calls to it are neither encrypted nor authenticated"
    assert line.endswith(f"{warning} (--tls-certificate, --tokens-file)")


def test_reflection_and_channelz_can_be_turned_off(other):
    with grpc.insecure_channel(f"unix://{other.folder}/server.sock") as channel:
        for ask in (reflected, channelz_servers):
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


QUOTA = """
from convserve_server import app, settings
from convserve_server.local import parts
parts.machine_processors, parts.os.cpu_count = (lambda: {processors}), (lambda: 8)
def load_engine(*_, intra_op_threads, inter_op_threads, **__):
    print(intra_op_threads, inter_op_threads, flush=True)
    app.os._exit(0)
app.run(settings.read({{"listen": "127.0.0.1:0", {given}}}), load_engine)
"""


@pytest.mark.parametrize(
    ("processors", "given", "threads"),
    [(3, "'intra_op_threads': '5'", "5 3"), (8, "", "0 0")],  # 0 is TensorFlow's own choice
)
def test_tensorflow_has_as_many_threads_as_a_quota_has_processors(processors, given, threads):
    program = QUOTA.format(processors=processors, given=given)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == threads
