"""KServe's own client, unmodified, calls a server: `make kserve`, or with the Python of its environment as argument.

It is half a gigabyte to install, so `make test` does without.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import convserve
from tests.support.repository import ROOT
from tests.support.servers.server_process import running_server


def main(python: str) -> int:
    """Stores a layer, has KServe's client call it, and returns that program's exit status."""
    x = np.random.default_rng(0).integers(0, 4, (2, 9, 9, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).integers(-2, 3, (3, 3, 3, 4)).astype(np.float32)
    with running_server() as server, tempfile.TemporaryDirectory() as folder:
        with convserve.Client(server.target) as client:
            config = convserve.Conv2D(4, 3, use_bias=False, data_format="channels_last")
            y = client.put(config, kernel=kernel, name="stem")(x)
        np.save(Path(folder) / "x.npy", x)
        np.save(Path(folder) / "y.npy", y)
        program = ROOT / "tests/support/kserve/caller.py"
        return subprocess.run([python, "-I", program, server.target, folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
