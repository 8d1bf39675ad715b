"""What every benchmark's result carries: when, where, with what and by which command it was taken."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from convserve.bench import machine

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "performance"
"""Where the results lie that the page about performance shows."""
GPU_RESULTS = ROOT / "tests" / "bench" / "results"
"""Where those of GPUs lie, each with its table, under the device's name and the date."""


def parser(program: str, text: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        prog=f"python -m tests.bench.{program}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="a short pass, to see that it works")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return made


def begun(program: str, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Returns a result's head."""
    return {
        **machine.described(),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", f"tests.bench.{program}", *sys.argv[1:]]),
        "quick": arguments.quick,
        **more,
    }


def write(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes a result where `--json` says; it may be called again as it grows."""
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # a machine without git
            return ""

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no", "--", "client", "server") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
