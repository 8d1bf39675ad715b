"""Makes the blocking client's modules of the asyncio client's. A test proves them current.

What differs in more than its `await` stands in `_async/io.py`, `_sync/io.py` and the two `map.py`, by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "convserve"
MODULES = ("client", "connection", "convolutions", "layer_calls", "replicas", "stored_layer", "transfer")
HEAD = "# Generated from convserve/_async/{}.py by client/unasync.py (make sync): change that one.\n"

WORDS = {
    r"async (def|with|for) ": r"\1 ",
    r"await ": "",
    r"__a(enter|exit)__": r"__\1__",
    r"_async\b": "_sync",
    r"Async(Client|StoredLayer)": r"\1",
    r"asyncio client": "blocking client",
    r"AsyncGenerator\[(.+), None\]": r"Generator[\1, None, None]",
    r" \| AsyncIterable\[Any\]": "",
    r"AsyncGenerator, AsyncIterable": "Generator",
    r"Awaitable\[T\]": "T",
    r"Awaitable, ": "",
}
"""Regular expressions of what stands for what; each occurs, so that none is left over from what was once there."""

PHRASES = {
    "Several event loops may use it one after the other, but no fork of the process while it is connected.": (
        "Threads may share it, and a process may use it that was forked after it was made."
    ),
    "in a task of their own": "in the caller's own thread",
    "Close the generator (`contextlib.aclosing`) to end it": "Close the generator to end it",
    "        Raises:\n            InvalidRequestError: In another event loop than the one that uses it now.\n": "",
}
"""What documentation says of one client alone; likewise."""


def blocking(module: str) -> str:
    """Returns the blocking client's module of this name."""
    source = (PACKAGE / "_async" / f"{module}.py").read_text()
    for text, by in PHRASES.items():
        source = source.replace(text, by)
    for word, by in WORDS.items():
        source = re.sub(word, by, source)
    path = str(PACKAGE / "_sync" / f"{module}.py")
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"]
        source = subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return HEAD.format(module) + source


if __name__ == "__main__":
    for name in MODULES:
        (PACKAGE / "_sync" / f"{name}.py").write_text(blocking(name))
