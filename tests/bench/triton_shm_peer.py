"""NVIDIA Triton through system shared memory, as a peer of the kit: that of the kit, the calls convserve's."""

from pathlib import Path

from peerkit import home

_triton = home.load_peer(home.peer_file("triton_backend"))
VENV, CLIENT_VENV = _triton.VENV, _triton.CLIENT_VENV
READY_SECONDS = 300  # five processes load TensorFlow at once
server = _triton.server
connect = home.load_peer(Path(__file__).with_name("open_inference_shm_peer.py")).connect
