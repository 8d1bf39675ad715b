"""`convserve serve` that computes with numpy, and so starts within a second.

CONTAINER_BYTES in its environment is the memory of a container that it takes itself to be in.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from convserve import cli
from convserve_server import app
from convserve_server.local import parts
from convserve_server.memory import budget
from tests.support.engines.numpy_engine import NumpyEngine

if __name__ == "__main__":
    if given := os.environ.get("CONTAINER_BYTES"):
        budget.container_memory_bytes = lambda: int(given)
        budget.machine_memory_bytes = parts.machine_memory_bytes = lambda: int(given)  # type: ignore[attr-defined]
    app.run = partial(app.run, load_engine=lambda *_, **__: NumpyEngine())
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
