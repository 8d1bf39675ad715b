"""Writes the benchmarks' results into docs/performance.md and the README, so that figures and text cannot drift.

The results lie in docs/performance/, under the names that `make bench` and the page's own commands give them; those of
GPUs lie where `make gpu` puts them, and the newest is shown. A part whose result is not there says so.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tests.bench import gpu_tables, tables
from tests.bench.record import DATA, GPU_RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
PAGES = (PAGE, ROOT / "README.md")
_PART = re.compile(r"(<!-- (\w+): written by python -m tests.bench.report -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, dict[str, Any]]


def results() -> Results:
    """Returns the results that there are, by their file's name."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob("*.json"))}
    on_gpus = [json.loads(path.read_text(encoding="utf-8")) for path in GPU_RESULTS.glob("gpu-*.json")]
    newest = max(on_gpus, key=lambda result: str(result["time"]), default=None)
    return found if newest is None else found | {"gpu": newest}


def filled(page: str, found: Results) -> str:
    """Returns the page with its parts written anew."""
    return _PART.sub(lambda match: f"{match[1]}\n{_part(match[2], found)}\n\n{match[3]}", page)


def _part(name: str, found: Results) -> str:
    renderer, source = {
        "cost": (tables.cost, "peers"),
        "headline": (tables.headline, "peers"),
        "open_inference": (tables.open_inference, "open_inference"),
        "perf_analyzer": (tables.perf_analyzer, "perf_analyzer"),
        "peers": (tables.peers, "peers"),
        "memory": (tables.memory, "memory"),
        "memory_shared": (tables.memory, "memory_shared"),
        "pipeline": (tables.pipeline, "pipeline"),
        "gpu": (gpu_tables.tables, "gpu"),
    }[name]
    return renderer(found[source]) if source in found else f"Not measured yet ({name})."


def main() -> int:
    """Writes the pages; returns the exit status."""
    found = results()
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), found), encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)} from {', '.join(found) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
