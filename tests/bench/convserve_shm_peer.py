"""convserve with tensors in shared memory, as a peer of the kit."""

from pathlib import Path

from peerkit import home

_over_grpc = home.load_peer(Path(__file__).with_name("convserve_peer.py"))
VENV, CLIENT_VENV = _over_grpc.VENV, _over_grpc.CLIENT_VENV


def server(launch):
    """Returns the command line that serves on `launch.address`."""
    return [*_over_grpc.server(launch), "--shared-memory"]


def connect(address):
    """Returns call(layer, x)."""
    return _over_grpc.connect(address, shared_memory=True)
