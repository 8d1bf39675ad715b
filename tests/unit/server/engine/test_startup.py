"""What TensorFlow is told before it starts: of oneDNN's kernels nothing, unless they would end the process or err."""

import os
import sys
from types import SimpleNamespace

import pytest

from convserve_server.engine import startup

KERNELS, NEWEST = "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA"
SHARES = "TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD"


@pytest.mark.parametrize(
    ("given", "limited", "flags", "expected"),
    [
        ({}, False, "avx2 avx512_vnni", {}),
        ({}, True, "avx2", {KERNELS: "0"}),
        ({KERNELS: "1"}, True, "avx2", {KERNELS: "1"}),
        ({}, False, "avx2 amx_tile", {NEWEST: "AVX512_CORE_FP16"}),
        ({KERNELS: "0", NEWEST: "ALL"}, False, "avx2 amx_tile", {KERNELS: "0", NEWEST: "ALL"}),
        ({SHARES: "0"}, False, "avx2", {}),
    ],
    ids=[
        "TensorFlow's choice",
        "under ulimit",
        "the user's choice under ulimit",
        "AMX",
        "the user's choice with AMX",
        "the user's threads",
    ],
)
def test_onednn_is_left_to_tensorflow_and_the_user(monkeypatch, tmp_path, given, limited, flags, expected):
    found = []
    engine = SimpleNamespace(TensorFlowEngine=lambda *_, **__: found.append(os.environ))
    monkeypatch.setitem(sys.modules, "convserve_server.engine.tensorflow_engine", engine)
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(startup, "is_limited", lambda: limited)
    monkeypatch.setattr(startup, "_PROCESSORS", tmp_path / "cpuinfo")
    startup._PROCESSORS.write_text(f"flags\t: {flags} fma\n")
    startup.load_engine("cpu", tf32=False, verbose=True)
    assert {name: value for name, value in found[0].items() if name in (KERNELS, NEWEST)} == expected
    assert found[0][SHARES] == given.get(SHARES, "1")
