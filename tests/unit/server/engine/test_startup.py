"""TensorFlow as the server starts it: it computes rightly whatever the CPU, unless the caller wants it otherwise."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

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


@pytest.mark.parametrize("chosen", [None, "1"], ids=["the server's choice", "the caller's"])
def test_kernels_of_onednn_are_off_unless_asked_for(chosen):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if chosen:
        environment["TF_ENABLE_ONEDNN_OPTS"] = chosen
    command = [sys.executable, "-c", textwrap.dedent(_ROW)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    setting, off_by = ended.stdout.split()
    assert setting == (chosen or "0")
    if not chosen:  # with them this layer's answer is wrong by 0.1 and more, where the CPU has what they need
        assert float(off_by) < 10 * np.finfo("f4").eps
