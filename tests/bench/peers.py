"""Measures the service beside other servers of the same five layers, W1 to W5, in one run.

The peers' kit, whose folder --kit or the variable CONVSERVE_PEERS names, starts each peer's server, checks its answers
and alternates its calls with the same layer called in process; its README says how peers are installed. Here the peers
take turns in rounds, so that what else the machine does touches all of them, and medians over the rounds are shown as
multiples of the layer in process. The exit status is 1 if a peer failed or answered something else.

Without names: convserve over gRPC and with shared memory, and those of Triton, a hand-written grpcio server and the
layer in process (a tf.function, and an eager Keras layer) that are installed. With --open-inference: convserve and
Triton's own server, both through Triton's client, over gRPC and through system shared memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.bench import record, tables


def _file(name: str) -> str:
    return str(Path(__file__).with_name(f"{name}.py"))


OURS = [_file("convserve_shm_peer"), _file("convserve_peer")]
OPEN_INFERENCE = [
    _file("open_inference_peer"),
    "triton_backend",
    _file("open_inference_shm_peer"),
    _file("triton_shm_peer"),
]
_BESIDE = ("triton_backend", "hand_raw", "inproc_keras", "inproc_tf")
_VARIABLE = "CONVSERVE_PEERS"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = record.parser("peers", __doc__)
    parser.add_argument("names", nargs="*", metavar="PEER", help="a peer's name in the kit, or the path of its file")
    parser.add_argument("--open-inference", action="store_true", help="the peers that Triton's client calls")
    parser.add_argument("--kit", default=os.environ.get(_VARIABLE), metavar="DIR", help=f"the kit [${_VARIABLE}]")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each peer is measured (default: 3; quick: 1)"
    )
    parser.add_argument("--layers", default="w1,w2,w3,w4,w5", help="only these, such as w1,w2")
    arguments = parser.parse_args()
    if not arguments.kit or not (Path(arguments.kit) / "peerkit").is_dir():
        parser.error(f"--kit or {_VARIABLE}: expected the folder of the peers' kit. Received {arguments.kit!r}.")
    sys.path.insert(0, str(Path(arguments.kit).resolve()))
    sys.dont_write_bytecode = True  # the kit may be read-only
    from peerkit import home, runner

    names = arguments.names or (OPEN_INFERENCE if arguments.open_inference else None)
    names = names or [*OURS, *(name for name in _BESIDE if _is_installed(home, name))]
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    result = record.begun("peers", arguments, rounds=rounds, results=[])
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {', '.join(Path(name).stem for name in names)}", flush=True)
        result["results"] += runner.measure(names, arguments.quick, arguments.layers.split(","))
        record.write(arguments, result)
    shown = tables.open_inference if arguments.open_inference else tables.peers
    print(f"\n{shown(result)}")
    return 0 if all(map(runner.is_right, result["results"])) else 1


def _is_installed(home: Any, name: str) -> bool:
    peer = home.load_peer(home.peer_file(name))
    return all(
        Path(home.python_of(environment)).exists() for environment in (peer.CLIENT_VENV, getattr(peer, "VENV", None))
    )


if __name__ == "__main__":
    sys.exit(main())
