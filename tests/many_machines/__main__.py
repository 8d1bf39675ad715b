"""Runs the programs of docs/many-machines.md, each engine's in an environment of its own, and compares with Keras.

    python -m tests.many_machines [ENGINE ...]

The first run of an engine installs it into .venv-ENGINE. The exit status is 1 if a program failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import convserve
from tests.many_machines.programs import ENGINES, FIRST, OTHERS, engine_of
from tests.support.pages import printed
from tests.support.repository import ROOT
from tests.support.servers.server_process import running_server

_PYTHON = os.environ.get("PYTHON", sys.executable)
_SAVE = '\nif "features" in globals():\n    np.save("features.npy", features)\n'
_MOST_S = 600


def python_of(engine: str) -> Path:
    """Returns the Python of an engine's environment, which is made if it is not there."""
    if not ENGINES[engine]:
        return Path(sys.executable)
    folder = ROOT / f".venv-{engine}"
    installed, python = folder / "installed", folder / "bin/python"
    if not installed.exists():
        print(f"== setting up {folder.name} (once; some minutes) ==", flush=True)
        subprocess.run([_PYTHON, "-m", "venv", folder], check=True)
        ours, *packages = ENGINES[engine]
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "-e", ours, *packages], check=True, cwd=ROOT)
        installed.touch()
    return python


def run(python: Path | str, program: str, target: str, folder: Path) -> None:
    """Runs a program of the page in a folder; shows what it said, and raises, if it fails or prints something else."""
    file = folder / "program.py"
    file.write_text(program.replace("localhost:50051", target))
    paths = os.pathsep.join(str(ROOT / each) for each in ("client", "server"))
    # As in an environment that is activated: Spark's workers are the first python3 of the path.
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": paths}
    done = subprocess.run(
        [python, file], cwd=folder, timeout=_MOST_S, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    done.check_returncode()
    for line in printed(program):
        if line not in done.stdout:
            raise AssertionError(f"the page says that it prints {line!r}, which it did not")


def main() -> int:
    """Runs them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.many_machines", description=__doc__.split("\n", 1)[0])
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"out of {', '.join(ENGINES)}; all without")
    wanted = parser.parse_args().engines or list(ENGINES)
    if unknown := set(wanted) - set(ENGINES):
        parser.error(f"Expected engines out of {', '.join(ENGINES)}. Received {', '.join(unknown)}.")
    lines, failed = [], 0
    with running_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, FIRST, server.target, folder)
        images = np.load(folder / "images.npy").astype("f4")
        with convserve.Client(server.target) as client:
            layer = client.layer("stem").to_keras()
        expected = keras.ops.convert_to_numpy(layer(images))
        for program in (each for each in OTHERS if engine_of(each) in wanted):
            engine = engine_of(program)
            python, saved = python_of(engine), folder / "features.npy"
            saved.unlink(missing_ok=True)
            began = time.monotonic()
            try:
                run(python, program + _SAVE, server.target, folder)
                features = np.load(saved)
                is_right = features.shape == expected.shape and np.allclose(features, expected, rtol=1e-5, atol=1e-3)
                said = "equal to Keras" if is_right else "WRONG"
            except (subprocess.SubprocessError, OSError, AssertionError) as error:
                is_right, said = False, f"FAILED: {error}"
            failed += not is_right
            lines.append(
                f"{engine:18}{len(features) if is_right else 0:4} images  {time.monotonic() - began:5.1f} s  {said}"
            )
            print(lines[-1], flush=True)
    print(f"\n{failed} of {len(lines)} failed" if failed else f"\nall {len(lines)} programs hold")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
