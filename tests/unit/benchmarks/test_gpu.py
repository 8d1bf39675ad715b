"""What the benchmark of GPUs is made of: the other processes, and what it says is missing or wrong."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import gpu, record
from tests.bench.gpu_course import right
from tests.bench.gpu_workers import Worker, WorkerError, environment_for_torch
from tests.support import gpu_available

HEAD = {
    "time": "2026-01-02T03:04:05+00:00", "machine": "a machine", "convserve": "1.2.3", "python": "3.12",
    "commit": "abc", "command": "python -m tests.bench.gpu", "quick": False, "device": "gpu:0 NVIDIA H200",
    "gpu": "NVIDIA H200, 143771 MiB, 580.1", "versions": {"tensorflow": {"tensorflow": "2.21.0", "cudnn": "9"}},
    "absent": {"torch": "No module named 'torch'"}, "shared_memory": True,
}  # fmt: skip


def row(layer: str = "W1", **changes: Any) -> dict[str, Any]:
    return {
        "layer": layer, "mode": "float32", "count": 1, "input_shape": [1, 32, 32, 3], "limit": 1e-4,
        "subjects": {
            "tensorflow": {"whole_ms": 2.0, "device_ms": 0.5}, "shared memory": {"whole_ms": 3.0, "compute_ms": 1.0},
            "gRPC": {"whole_ms": 8.0, "compute_ms": 1.5},
        },
        "over": {"shared memory compute_ms": 0.5, "shared memory whole_ms": 1.5, "gRPC whole_ms": 4.0},
        "checks": {name: {"difference": 2e-6, "ok": True} for name in ("tensorflow", "shared memory", "gRPC")},
        "failures": {},
    } | changes  # fmt: skip


PASSED = {"command": "pytest", "status": 0, "tests": 5, "failures": 0, "errors": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"rows": [row()]}, True),
        ({"rows": [row()], "tests": PASSED}, True),
        ({"rows": [row()], "tests": PASSED | {"status": 1, "failures": 1}}, False),
        ({"rows": [row()], "tests": PASSED | {"skipped": 5}}, False),
        ({"rows": [row()], "tests": {"command": "pytest", "status": 4}}, False),
        ({"rows": [row(), row(checks={})]}, False),
        ({"rows": [row(checks={"gRPC": {"difference": 1, "ok": True}})]}, False),
        ({"rows": [row(checks=row()["checks"] | {"torch": {"difference": 1, "ok": False}})]}, False),
    ],
)
def test_all_is_right_if_every_answer_of_the_server_is_there_and_right(result: Any, expected: bool) -> None:
    assert right(result) is expected


MARKED = """
import pytest

def test_here():
    pass

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2, 3])
def test_there(number):
    if number == 3:
        pytest.skip("no")
    assert number == 1
"""


def test_the_tests_of_a_device_are_run_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    monkeypatch.setattr(gpu, "_DEVICE_TESTS", str(tmp_path / "test_marked.py"))
    found = [gpu._tests(device) for device in ("cpu", "gpu:0")]
    assert found[0]["command"] == f"pytest -q {tmp_path}/test_marked.py -m 'not gpu'"
    counted = [[each[name] for name in ("status", "tests", "failures", "errors", "skipped")] for each in found]
    assert counted == [[0, 1, 0, 0, 0], [1, 3, 1, 0, 1]]


ANSWERING = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    print(json.dumps({"failure": "no"} if job["do"] == "fail" else job), flush=True)
"""


def test_a_worker_answers_and_its_failures_have_words() -> None:
    with Worker([sys.executable, "-c", ANSWERING], os.environ) as worker:
        assert worker.about == {"do": "about"}
        assert worker.ask("measure", seconds=1) == {"do": "measure", "seconds": 1}
        with pytest.raises(WorkerError, match=r"^no$"):
            worker.ask("fail")
    with pytest.raises(WorkerError, match="ModuleNotFoundError: No module named 'torsh'"):
        Worker([sys.executable, "-c", "import torsh"], os.environ)


def folder(path: Path, *names: str) -> str:
    """Makes a folder with files, and with folders for names without a dot."""
    path.mkdir()
    for name in names:
        if "." in name:
            (path / name).touch()
        else:
            (path / name).mkdir()
    return str(path)


def test_pytorch_gets_nothing_that_is_tensorflows(tmp_path: Path) -> None:
    cudnn = folder(tmp_path / "cudnn", "libcudnn.so.9", "libcublas.so.12")
    runtime = folder(tmp_path / "runtime", "libcudart.so.12")
    driver = folder(tmp_path / "driver", "libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1")
    other = folder(tmp_path / "other", "libjpeg.so.8", "libcurl.so.4")
    site, mine = folder(tmp_path / "site", "tensorflow"), folder(tmp_path / "mine", "package")
    given = {
        "LD_LIBRARY_PATH": ":".join((cudnn, runtime, driver, other, str(tmp_path / "absent"))),
        "PYTHONPATH": f"{site}:{mine}", "HOME": "/root",
    }  # fmt: skip
    kept = environment_for_torch(given)
    assert kept == {
        "LD_LIBRARY_PATH": ":".join((driver, other, str(tmp_path / "absent"))), "PYTHONPATH": mine, "HOME": "/root",
    }  # fmt: skip
    assert "PYTHONPATH" not in environment_for_torch({"PYTHONPATH": site})


class Answer:
    """What a process answered that was asked about TensorFlow."""

    def __init__(self, stdout: str, returncode: int = 0, stderr: str = "") -> None:
        self.stdout, self.returncode, self.stderr = stdout, returncode, stderr


@pytest.mark.parametrize(
    ("driver", "answer", "expected"),
    [
        (True, Answer("2.21.0 True 1"), None),
        (True, Answer("2.21.0 True 0"), "a GPU that TensorFlow 2.21.0 sees"),
        (True, Answer("2.21.0 False 0"), "CPU build"),
        (True, Answer("", 1, "noise\nImportError: libx"), r"imported \(ImportError: libx\)"),
        (False, Answer("2.21.0 True 0"), r"^an NVIDIA driver \(libcuda.so.1 cannot be loaded\)$"),
        (False, Answer("2.21.0 False 0"), "driver .*, and a TensorFlow for CUDA"),
    ],
)
def test_what_is_lacking_is_named(
    monkeypatch: pytest.MonkeyPatch, driver: bool, answer: Answer, expected: str | None
) -> None:
    def load(name: str) -> None:
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(gpu_available, "missing_packages", list)
    gpu_available.lacking.cache_clear()
    try:
        found = gpu_available.lacking()
    finally:
        gpu_available.lacking.cache_clear()
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(expected, found)


def test_packages_are_named_as_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_available, "_SERVER_NEEDS", {"no_such_module": "no-such-package", "json": "json"})
    assert gpu_available.missing_packages() == ["no-such-package"]


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_a_machine_that_lacks_something_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", device])
    monkeypatch.setattr(gpu_available, "lacking", lambda: "an NVIDIA driver")
    monkeypatch.setattr(gpu_available, "missing_packages", lambda: ["grpcio-status"])
    assert gpu.main() == gpu.LACKING == 3
    captured = capsys.readouterr()
    lacks = "Python packages (grpcio-status)" if device == "cpu" else "an NVIDIA driver"
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"This one lacks {lacks}." in captured.err


def test_a_result_lies_under_its_device_and_date_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "GPU_RESULTS", tmp_path / "results")
    result = HEAD | {"rows": [row()]}
    arguments = argparse.Namespace(json=gpu._place(result))
    gpu._write(arguments, result)
    assert sorted(each.name for each in (tmp_path / "results").iterdir()) == [
        "gpu-nvidia-h200-2026-01-02.json", "gpu-nvidia-h200-2026-01-02.md",
    ]  # fmt: skip
    assert json.loads(arguments.json.read_text()) == result
