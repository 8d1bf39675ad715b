"""Runs the programs of examples/ in other languages against a server: `python -m tests.examples [--install]`.

It says which could not run for want of their tools. With --install it fetches Node's packages first. Go needs Debian's
packages: docs/other-languages.md names them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.servers.server_process import running_server

EXAMPLES = ROOT / "examples"
GOPATH = Path("/usr/share/gocode")
BIN = Path(sys.executable).parent
REFUSAL = "filters: Expected a number divisible by groups=2. Received filters=5."


class MissingToolError(Exception):
    """What a program needs is not on this machine."""


def run(*command: str | Path, **environment: str) -> str:
    """Returns what a command prints; raises CalledProcessError if it fails."""
    variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    return subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, timeout=600, check=True).stdout


def need(*programs: str) -> None:
    """Raises MissingToolError unless all programs are there."""
    for program in programs:
        if not shutil.which(program, path=f"{BIN}:{os.environ['PATH']}"):
            raise MissingToolError(f"no {program}")


def node(target: str, megabytes: int) -> str:
    """Runs the program for Node."""
    need("node")
    if not (EXAMPLES / "node/node_modules/@grpc").exists():
        raise MissingToolError("no packages: npm install --prefix examples/node")
    return run("node", EXAMPLES / "node/convolve.mjs", target, str(megabytes))


def go(target: str, megabytes: int) -> str:
    """Builds and runs the program for Go, with Debian's packages and without modules."""
    need("go", "gofmt", "protoc-gen-go", "protoc-gen-go-grpc")
    if not (GOPATH / "src/google.golang.org/grpc").exists():
        raise MissingToolError(f"no google.golang.org/grpc in {GOPATH}")
    source = EXAMPLES / "go/main.go"
    assert run("gofmt", "-l", source) == ""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "src")
        into.mkdir()
        protos = sorted((ROOT / "proto/convserve/v1").glob("*.proto"))
        outputs = (f"--go_out={into}", f"--go-grpc_out={into}")
        run(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs, *protos)
        shutil.copytree(source.parent, into / "example")
        variables = {"GO111MODULE": "off", "GOPATH": f"{folder}:{GOPATH}", "GOFLAGS": ""}
        run("go", "vet", "example", **variables)
        run("go", "build", "-o", f"{folder}/program", "example", **variables)
        return run(f"{folder}/program", target, str(megabytes))


def curl(target: str, megabytes: int) -> str:
    """Runs the program for a shell."""
    need("buf", "sh", "base64")
    return run("sh", EXAMPLES / "curl/convolve.sh", target, str(round(megabytes * 1e6 / 786_432)))


PROGRAMS: dict[str, tuple[Callable[[str, int], str], tuple[str, ...]]] = {
    "node": (node, ("output 1x2x2x1 45 54 81 90", "error INVALID_ARGUMENT INVALID_CONFIGURATION", "all doubled")),
    "go": (go, ("output [1 2 2 1] [45 54 81 90]", "error InvalidArgument INVALID_CONFIGURATION", "all doubled")),
    "curl": (curl, ('"data": "AAAAQAAAgEA="', "INVALID_CONFIGURATION", "bytes of 2.0")),
}
LIMIT = {
    "node": "limit RESOURCE_EXHAUSTED\nwithout it 5760000 bytes",
    "go": "limit ResourceExhausted\nwithout it 5760000 bytes",
}


def check(name: str, target: str, megabytes: int) -> None:
    """Runs a program and raises AssertionError unless it prints what it is to print.

    Raises MissingToolError if it cannot run here.
    """
    program, words = PROGRAMS[name]
    printed = program(target, megabytes)
    for each in (*words, REFUSAL, LIMIT.get(name, "")):
        assert each in printed, f"{name}: {each!r} is not in\n{printed}"
    received = next(line for line in printed.splitlines() if line.startswith("received ") or "received " in line)
    count = int(received.partition("received ")[2].split()[0])
    assert abs(count - megabytes * 1e6) < 0.1 * megabytes * 1e6, received


def main() -> int:
    """Returns 0 if every program that could run did what it is to do, and one ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="fetch Node's packages first")
    if parser.parse_args().install:
        run("npm", "install", "--prefix", EXAMPLES / "node")
    ran = False
    with running_server() as server:
        for name in PROGRAMS:
            start = time.perf_counter()
            try:
                check(name, server.target, 100)
            except MissingToolError as missing:
                print(f"{name}: not run: {missing}")
                continue
            ran = True
            print(f"{name}: ran in {time.perf_counter() - start:.1f} s, 100 MB each way")
    return int(not ran)


if __name__ == "__main__":
    sys.exit(main())
