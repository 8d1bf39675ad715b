"""The base install, from a wheel in an environment of its own: no TensorFlow, and still the model, plans and help."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with convserve's base dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip(python, "install", "--quiet", "--no-compile", str(ROOT), "-c", str(ROOT / ".ci/constraints.txt"))
    return python


def pip(python: Path, *arguments: str) -> str:
    """Has this environment's pip do something in that one, which so needs none; returns what it prints."""
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


MISSING = "convserve serve needs the server extra: pip install 'convserve[server]' (options: docs/settings.md)\n"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=False)


def test_only_the_promised_packages_are_installed(python: Path) -> None:
    listed = pip(python, "list", "--format=freeze").lower()
    assert {line.split("==")[0] for line in listed.split()} - {"setuptools"} == {
        "click", "convserve", "googleapis-common-protos", "grpcio", "grpcio-status", "markdown-it-py", "mdurl", "numpy",
        "protobuf", "pygments", "rich", "typing_extensions",
    }  # fmt: skip


def test_imports_and_plans_without_tensorflow(python: Path) -> None:
    code = (
        "import sys, convserve\n"
        "print(convserve.Conv2D(64, 3, strides=2, padding='same').plan((4, 600, 600, 3)).output_shape)\n"
        "print([name for name in ('tensorflow', 'keras', 'ml_dtypes', 'matplotlib') if name in sys.modules])\n"
    )
    answer = run(python, "-c", code)
    assert answer.stdout.splitlines() == ["(4, 300, 300, 64)", "[]"], answer.stderr


def test_bfloat16_names_the_extra(python: Path) -> None:
    code = (
        "import numpy as np, convserve\n"
        "try: convserve.Layer(convserve.Conv2D(1, 1, use_bias=False, dtype='bfloat16'), np.ones((1, 1, 1, 1)))\n"
        "except convserve.MissingDependencyError as error: print(error)"
    )
    assert "pip install 'convserve[bfloat16]'" in run(python, "-c", code).stdout


def test_serve_says_in_one_line_what_is_missing(python: Path) -> None:
    for arguments in (["serve"], ["serve", "--help"]):
        answer = run(python, "-m", "convserve", *arguments)
        assert answer.returncode == 1
        assert answer.stderr == MISSING


def test_help_and_plan_work_without_extras(python: Path) -> None:
    assert "conv2d" in run(python, "-m", "convserve", "--help").stdout
    planned = run(python, "-m", "convserve", "plan", "--local", "--filters", "64", "--kernel-size", "3",
                  "--input-shape", "4,600,600,3")  # fmt: skip
    assert "598" in planned.stdout


def test_package_says_that_it_is_typed(python: Path) -> None:
    code = "import convserve, pathlib; print((pathlib.Path(convserve.__file__).parent / 'py.typed').exists())"
    assert run(python, "-c", code).stdout.strip() == "True"
