"""TensorFlow as the server starts it: it computes rightly whatever the CPU, unless the caller wants it otherwise."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np

from convserve_server.engine.startup import load_engine

_ROW = """
    import os, sys
    import numpy as np
    import convserve
    from convserve_server.engine.startup import load_engine

    engine = load_engine("cpu", tf32=False, verbose=False)
    x, kernel = (np.random.default_rng(seed).normal(size=size).astype("f4")
                 for seed, size in enumerate([(2, 2, 5, 1), (1, 5, 1, 1)]))
    config = convserve.Conv2D(1, (1, 5), strides=(1, 2), use_bias=False, data_format="channels_last", dtype="float32")
    found = engine.convolve([convserve.Layer(config, kernel)], [x], "float32", 0).output
    expected = np.einsum("nhwc,xwcf->nhxf", x.astype("f8"), kernel.astype("f8"))
    print(os.environ["TF_ENABLE_ONEDNN_OPTS"], abs(found - expected).max())
"""


def test_kernels_of_onednn_are_off():
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    command = [sys.executable, "-c", textwrap.dedent(_ROW)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    setting, off_by = ended.stdout.split()
    assert setting == "0"
    # With them this layer's answer is wrong by 0.1 and more, where the CPU has what they need.
    assert float(off_by) < 10 * np.finfo("f4").eps


def test_they_are_on_if_they_are_asked_for(monkeypatch):
    found = []
    engine = SimpleNamespace(TensorFlowEngine=lambda *_, **__: found.append(os.environ["TF_ENABLE_ONEDNN_OPTS"]))
    monkeypatch.setitem(sys.modules, "convserve_server.engine.tensorflow_engine", engine)
    monkeypatch.setattr(os, "environ", {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"})
    load_engine("cpu", tf32=False, verbose=True)
    assert found == ["1"]
