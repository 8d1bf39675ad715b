"""Where the repository is, and what source it holds."""

from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def modules() -> dict[str, Path]:
    """Returns the hand-written modules by dotted name."""
    paths: dict[str, Path] = {}
    for parent, root in (("client", "convserve"), ("server", "convserve_server")):
        for path in (ROOT / parent / root).rglob("*.py"):
            if not {"v1", "v2"} & set(path.parts):
                parts = path.relative_to(ROOT / parent).with_suffix("").parts
                paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths
