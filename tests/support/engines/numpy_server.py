"""`convserve serve` that computes with numpy, and so starts within a second."""

from __future__ import annotations

import sys
from functools import partial

from convserve import cli
from convserve_server import app
from tests.support.engines.numpy_engine import NumpyEngine

if __name__ == "__main__":
    app.run = partial(app.run, load_engine=lambda *_, **__: NumpyEngine())
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
