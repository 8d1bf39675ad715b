"""Runs the tests of devices on an NVIDIA GPU, and measures the service there: W1 to W5 and ResNet-50's layers.

Each layer is measured in float32 without and with TensorFloat-32, in float16 and in bfloat16: what the server says that
it computed for, whole calls through shared memory and over gRPC, the same call made by TensorFlow in a process of its
own on that GPU, and by PyTorch, whose convolutions are cuDNN's, where it is installed. All take turns. Every answer is
compared with TensorFlow's in float64 on the CPU; allowed is, as a share of the greatest value, what `bench.correctness`
of the client allows for rounding.

Nothing is downloaded. TensorFlow and PyTorch may each need libraries of their own: start this in the environment that
TensorFlow needs; for PyTorch, what belongs to TensorFlow is taken out of LD_LIBRARY_PATH and PYTHONPATH again.

The exit status is 0 if all is right, 1 if a test failed or an answer was wrong, 3 if the machine lacks something, which
is then said. Without --json a full run writes its result under tests/bench/results/, with its table beside it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.bench import gpu_tables, record
from tests.bench.gpu_cases import cases
from tests.bench.gpu_course import Device, Pace, right
from tests.support import gpu_available

LACKING = 3
"""The exit status where there is no GPU, or something else is missing."""
_DEVICE_TESTS = "tests/integration/engine/test_devices.py"


def main() -> int:
    """Runs the tests and the benchmark; returns the exit status."""
    arguments = _arguments()
    lacks = _lacks(arguments.device)
    if lacks is not None:
        print(
            f"Expected a machine with an NVIDIA GPU on which a server can compute. This one lacks {lacks}. "
            "To see that the command works without one: --device cpu --quick.",
            file=sys.stderr,
        )
        return LACKING
    chosen = cases(arguments.quick, tiny=arguments.quick and arguments.device == "cpu")
    if arguments.layers:
        chosen = [each for each in chosen if re.search(arguments.layers, each.name)]
    pace = Pace(1, 0.05) if arguments.quick else Pace(3, 0.1)
    result = record.begun("gpu", arguments, rounds=pace.rounds, seconds_a_block=pace.seconds, gpu=_gpu(), rows=[])
    if arguments.tests:
        result["tests"] = _tests(arguments.device)
        print(gpu_tables.tests(result), flush=True)
    for tf32 in (False, True):
        with Device(arguments.device, tf32, arguments.torch_python) as device:
            result |= device.about
            if arguments.json is None and not arguments.quick and arguments.device != "cpu":
                arguments.json = _place(result)
            for case in chosen:
                print(f"{case.name}{', TF32' if tf32 else ''}", file=sys.stderr, flush=True)
                result["rows"] += device.rows(case, pace)
                _write(arguments, result)
    print(gpu_tables.tables(result))
    return 0 if right(result) else 1


def _arguments() -> argparse.Namespace:
    parser = record.parser("gpu", __doc__)
    parser.add_argument("--device", choices=("gpu:0", "cpu"), default="gpu:0", help="default: %(default)s")
    parser.add_argument(
        "--layers", metavar="REGEX", help="only those whose names match, such as 'W|conv1' (default: all)"
    )
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="leave the tests out")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="FILE", help="the Python that has PyTorch (default: this one)"
    )
    return parser.parse_args()


def _lacks(device: str) -> str | None:
    """Returns what this machine lacks, or None."""
    if device != "cpu":
        return gpu_available.lacking()
    packages = gpu_available.missing_packages()
    return f"Python packages ({', '.join(packages)})" if packages else None


def _gpu() -> str:
    """Returns what the driver says of the GPUs: names, memory, its own version; nothing without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace("\n", "; ")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _tests(device: str) -> dict[str, Any]:
    """Runs the tests of one device; returns how many there were and what became of them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        chosen = "not gpu" if device == "cpu" else "gpu"
        command = ["pytest", "-q", _DEVICE_TESTS, "-m", chosen, f"--junitxml={report}", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, "-m", *command], cwd=record.ROOT, check=False, stdout=sys.stderr)
        found: dict[str, Any] = {"command": shlex.join(command[:-3]), "status": done.returncode}
        if report.exists():
            (suite,) = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314 (pytest wrote it)
            found |= {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        return found


def _place(result: dict[str, Any]) -> Path:
    """Returns where a result lies that is worth keeping, by its device and date; makes the folder."""
    record.GPU_RESULTS.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", (result["gpu"].partition(",")[0] or "gpu").lower()).strip("-")
    return record.GPU_RESULTS / f"gpu-{device}-{result['time'][:10]}.json"


def _write(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes a result, as it grows, with its table beside it."""
    record.write(arguments, result)
    if arguments.json is not None:
        arguments.json.with_suffix(".md").write_text(f"# On a GPU\n\n{gpu_tables.tables(result)}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
