"""`make release-check`: builds what would be published, checks it, and tries it as somebody who installs it.

    python -m tests.release [--folder dist]

The wheel and the sdist are each installed into an environment of their own, with the server; a server is started there,
and the README's first call is made there. The folder then also has what the server's environment consists of: an SBOM,
and the licences.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.pages import blocks, links, printed, text
from tests.support.repository import ROOT

TOOLS = Path(sys.executable).parent
VERSION = re.findall(r'__version__ = "(.*)"', text("client/convserve/_version.py"))[0]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "CONVSERVE_"))}


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="where the wheel and the sdist are put")
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)

    say("building the wheel, and the sdist")
    run(TOOLS / "python", "-m", "build", "--quiet", "--outdir", folder, ROOT)
    wheel, sdist = folder / f"convserve-{VERSION}-py3-none-any.whl", folder / f"convserve-{VERSION}.tar.gz"
    assert sorted(folder.iterdir()) == [wheel, sdist]
    run(TOOLS / "twine", "check", "--strict", wheel, sdist)
    run(TOOLS / "check-wheel-contents", "--config", ROOT / "pyproject.toml", wheel)
    description = metadata(wheel)
    assert f"\nVersion: {VERSION}\n" in description
    assert links(description) == [], "links of the README that lead nowhere on PyPI"

    for distribution in (wheel, sdist):
        say(f"installing {distribution.name} with its server into an environment of its own")
        with tempfile.TemporaryDirectory(prefix="convserve-release-") as made:
            python = Path(made) / "environment" / "bin" / "python"
            run(sys.executable, "-m", "venv", "--without-pip", python.parents[1])
            pip = (TOOLS / "python", "-m", "pip", "--python", python, "--disable-pip-version-check")
            run(*pip, "install", "--quiet", "-c", ROOT / ".ci/constraints.txt", f"{distribution}[server]")
            with server(python, Path(made)) as target:
                call(python, Path(made), target)
            if distribution == wheel:
                take_stock(python, folder)
    say(f"{wheel.name} and {sdist.name} hold")
    return 0


def metadata(wheel: Path) -> str:
    """Returns a wheel's metadata, whose last part is the README."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"convserve-{VERSION}.dist-info/METADATA").decode()


@contextmanager
def server(python: Path, folder: Path) -> Iterator[str]:
    """Starts the installed server, and yields its address when it is ready; it has to end well."""
    command = [python.with_name("convserve"), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout)
            address = next(line for line in lines if line.startswith("listening on ")).split()[-1]
            assert f"convserve {VERSION}" in next(line for line in lines if line.startswith("ready"))
            yield address
        finally:
            process.terminate()
    assert process.returncode == 0


def call(python: Path, folder: Path, target: str) -> None:
    """Makes the README's first call."""
    (program,) = blocks(text("README.md"), "python")
    said = run(python, "-W", "error", "-c", program.replace("localhost:50051", target), cwd=folder)
    assert said.splitlines() == printed(program)
    assert run(python.with_name("convserve"), "--version", cwd=folder).strip().endswith(VERSION)


def take_stock(python: Path, folder: Path) -> None:
    """Writes what the server's environment consists of, as the images have it too."""
    sbom, licences = folder / "sbom.cdx.json", folder / "licences.md"
    run(TOOLS / "cyclonedx-py", "environment", "--output-reproducible", "--output-file", sbom, python)
    run(TOOLS / "pip-licenses", "--python", python, "--format", "markdown", "--with-urls", "--output-file", licences)
    assert '"tensorflow' in sbom.read_text()
    assert "| tensorflow" in licences.read_text()


def run(*command: object, cwd: Path = ROOT) -> str:
    """Runs a program to its end, and returns what it prints."""
    words = [str(each) for each in command]
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:200]}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def say(what: str) -> None:
    """Says what is done."""
    print(f"-- {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
