"""What a measurement was taken with, without which its figures say nothing."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from convserve._version import __version__


def described() -> dict[str, str | int]:
    """Returns the time, this machine and the versions."""
    # How many cores this process may use, where the system says so: Linux does.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {cores} cores, {platform.platform()}",
        "cores": cores,
        "convserve": __version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Returns the processor's name, and whether it has VNNI, where TensorFlow takes oneDNN's kernels by default."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    has_vnni = {"avx512_vnni", "avx_vnni"} & set(fields.get("flags", "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} with VNNI" if has_vnni else name
