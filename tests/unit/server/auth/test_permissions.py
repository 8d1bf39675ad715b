"""Which method asks for which permission: all methods of all services, so that a new one is not forgotten."""

import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from convserve_server.auth.authenticator import permissions_for
from tests.support.raw.calls import RPCS
from tests.support.raw.inference import INFERENCE_RPCS

OPEN, READ, COMPUTE, CHANGE = set(), {"read"}, {"compute"}, {"change"}
OURS = {
    "GetServerInfo": READ,
    "Plan": READ,
    "Convolve": COMPUTE,
    "ConvolveStream": COMPUTE,
    "Echo": COMPUTE,
    "PutLayer": CHANGE,
    "GetLayer": READ,
    "ListLayers": READ,
    "FindMissingLayers": READ,
    "DeleteLayer": CHANGE,
    "UpdateWeights": CHANGE,
    "ReadWeights": READ,
    "ListNameVersions": READ,
    "MoveName": CHANGE,
}
OPEN_INFERENCE = {
    "ServerLive": READ,
    "ServerReady": READ,
    "ServerMetadata": READ,
    "ModelReady": READ,
    "ModelMetadata": READ,
    "ModelInfer": COMPUTE,
    "ModelStreamInfer": COMPUTE,
    "ModelConfig": READ,
    "ModelStatistics": READ,
    "RepositoryIndex": READ,
    "RepositoryModelLoad": CHANGE,
    "RepositoryModelUnload": CHANGE,
    "SystemSharedMemoryStatus": READ,
    "SystemSharedMemoryRegister": COMPUTE,
    "SystemSharedMemoryUnregister": COMPUTE,
    "CudaSharedMemoryStatus": READ,
    "CudaSharedMemoryRegister": COMPUTE,
    "CudaSharedMemoryUnregister": COMPUTE,
}


def paths(*files):
    """Returns the paths of all methods of files."""
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def test_the_table_has_every_method_of_the_contract_and_no_other():
    assert set(OURS) == {rpc.name for rpc in RPCS}
    assert len(OURS) == len(RPCS)
    assert set(OPEN_INFERENCE) == {rpc.name for rpc in INFERENCE_RPCS}


@pytest.mark.parametrize("rpc", [*RPCS, *INFERENCE_RPCS], ids=lambda rpc: rpc.name)
def test_every_method_asks_for_one_permission(rpc):
    needed = (OURS | OPEN_INFERENCE)[rpc.name]
    assert permissions_for(f"/{rpc.containing_service.full_name}/{rpc.name}") == needed


@pytest.mark.parametrize("path", paths(channelz_pb2, reflection_pb2))
def test_what_shows_the_server_to_operators_asks_for_reading(path):
    assert permissions_for(path) == READ


@pytest.mark.parametrize("path", paths(health_pb2))
def test_health_asks_for_nothing(path):
    assert permissions_for(path) == OPEN


@pytest.mark.parametrize(
    "path",
    ["", "/", "/convserve.v1.ConvolutionService/New", "/convserve.v2.ConvolutionService/Plan", "/x.Y/GetServerInfo",
     "/inference.GRPCInferenceService/TraceSetting", "/inference.GRPCInferenceService/Convolve",
     "/grpc.health.v1.Health2/Check", "//grpc.health.v1.Health/Check", "/grpc.health.v2.Health/Check"],
)  # fmt: skip
def test_what_is_not_in_the_table_asks_for_all(path):
    assert permissions_for(path) == {"read", "compute", "change"}
