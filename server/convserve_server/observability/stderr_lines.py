"""A program that makes a JSON object of each line of its input, and writes it to stderr.

A process of its own, so that the last words of one that is aborted arrive. It imports nothing of this package.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from contextlib import suppress

_GLOG = re.compile(r"([IWEF])[0-9]{4} ")  # what lines of gRPC and TensorFlow begin with
_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}


def as_object(line: str) -> str:
    """Returns the object; a line that is one already stays as it is."""
    if line.startswith("{"):
        with suppress(ValueError):
            return json.dumps(json.loads(line))
    glog = _GLOG.match(line)
    level = _LEVELS[glog[1]] if glog else "ERROR" if line.startswith("error: ") else "WARNING"
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return json.dumps({"level": level, "message": line, "time": now})


if __name__ == "__main__":
    for data in sys.stdin.buffer:
        if text := data.decode(errors="backslashreplace").strip("\r\n"):
            with suppress(OSError):  # nobody reads any more; whoever writes is not to notice
                os.write(2, f"{as_object(text)}\n".encode())
