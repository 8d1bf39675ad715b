"""Runs the unit tests under each Python that pyproject.toml names and this machine has: `make matrix`.

    python -m tests.matrix [--all] [VERSION ...]

It looks for python3.N on the PATH and among pyenv's versions, makes an environment for each (.venv-matrix/3.N; some
minutes and gigabytes once) and says at the end what ran where. With --all it runs all tests, ten minutes for each
version. Where TensorFlow cannot be had for a version, the client's unit tests run without it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-matrix"
CLIENT, SERVER = "plot,import,top,tracing,zarr,dev", "server,object-storage"


def versions() -> list[str]:
    """Returns the Pythons of the classifiers, such as "3.12"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each) for each in project["classifiers"])
    return [match[1] for match in found if match]


def interpreter(version: str) -> str | None:
    """Returns the program of a Python version that works, or None."""
    pyenv = Path.home() / ".pyenv" / "versions"
    kept = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].rpartition(".")[2]))
    for program in (*map(str, reversed(kept)), shutil.which(f"python{version}")):
        # pyenv has a python3.N for every N, which fails where that version is not chosen.
        code = "import sys; sys.exit(sys.argv[1] != '%d.%d' % sys.version_info[:2])"
        if program and subprocess.run([program, "-c", code, version], capture_output=True, check=False).returncode == 0:
            return program
    return None


def environment(version: str, program: str) -> tuple[Path, bool]:
    """Returns the Python of an environment with this source tree, and whether it has TensorFlow."""
    python = ENVIRONMENTS / version / "bin" / "python"
    if not python.exists():
        subprocess.run([program, "-m", "venv", ENVIRONMENTS / version], check=True)
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-c", ".ci/constraints.txt", "-e"]
    has_server = subprocess.run([*install, f".[{SERVER},{CLIENT}]"], cwd=ROOT, check=False).returncode == 0
    if not has_server:
        subprocess.run([*install, f".[{CLIENT}]"], cwd=ROOT, check=True)
    return python, has_server


def main() -> int:
    """Returns 0 if what ran passed and something ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"by default {', '.join(versions())}")
    parser.add_argument("--all", action="store_true", help="all tests, where TensorFlow can be had")
    arguments = parser.parse_args()
    lines, failed, ran = [], False, False
    for version in arguments.versions or versions():
        program = interpreter(version)
        if program is None:
            lines.append(f"{version}: not on this machine")
            continue
        python, has_server = environment(version, program)
        tests = ("tests" if arguments.all else "tests/unit") if has_server else "tests/unit/client"
        pytest = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", tests]
        passed = subprocess.run(pytest, cwd=ROOT, check=False).returncode == 0
        failed, ran = failed or not passed, True
        missing = "" if has_server else " (no TensorFlow for it here)"
        exact = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
        lines.append(f"{exact}: {tests} {'passed' if passed else 'FAILED'}{missing}")
    print("\n".join(["", *lines]))
    return int(failed or not ran)


if __name__ == "__main__":
    sys.exit(main())
