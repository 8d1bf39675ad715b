"""The result of `gpu` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.tables import Result, provenance, short, table

_WAYS = {
    "TensorFlow here": ("tensorflow", "whole_ms", ""),
    "server computes": ("shared memory", "compute_ms", "shared memory compute_ms"),
    "call, shared memory": ("shared memory", "whole_ms", "shared memory whole_ms"),
    "call, gRPC": ("gRPC", "whole_ms", "gRPC whole_ms"),
    "PyTorch here": ("torch", "whole_ms", "torch whole_ms"),
    "TensorFlow, on the device": ("tensorflow", "device_ms", ""),
    "PyTorch, on the device": ("torch", "device_ms", ""),
}
"""By its heading: whose figure, which, and under what name its ratio to TensorFlow here stands."""


def tables(result: Result) -> str:
    """Returns the tables of `gpu`: one for each numeric mode, in milliseconds and multiples of TensorFlow here."""
    found = []
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["mode"] == mode]
        lines = [_line(row) for row in rows]
        model = [row for row in rows if row["layer"].startswith("ResNet-50")]
        if sum(row["count"] for row in model) == 53:
            lines.append(_sum(model))
        head = [
            f"{mode}, p50 in ms (multiple of TensorFlow here)",
            *_WAYS,
            f"differs by (at most {rows[0]['limit']:g})",
        ]
        found.append(table(head, lines))
    versions = "; ".join(
        ", ".join(f"{name} {version}" for name, version in about.items()) for about in result["versions"].values()
    )
    absent = [f"* {name}: not measured: {why}" for name, why in result["absent"].items()]
    if not result["shared_memory"]:
        absent.append("* shared memory: not to be had here; those calls went over gRPC")
    failures = [
        f"* {row['layer']}, {row['mode']}, {name}: {why}"
        for row in result["rows"]
        for name, why in row["failures"].items()
    ]
    driver = f" ({result['gpu']})" if result["gpu"] else ""
    about = f"Computed on {result['device']}{driver}; {versions}."
    return "\n\n".join([*found, tests(result), about, provenance(result), "\n".join(absent + failures)]).strip()


def tests(result: Result) -> str:
    """Returns in a sentence what became of the tests of a device."""
    tests = result.get("tests")
    if tests is None:
        return "The tests of devices were left out."
    if "tests" not in tests:
        return f"The tests of devices did not run: `{tests['command']}` ended with status {tests['status']}."
    bad = tests["failures"] + tests["errors"]
    passed = tests["tests"] - bad - tests["skipped"]
    return f"Tests of the device: {passed} passed, {bad} failed, {tests['skipped']} skipped (`{tests['command']}`)."


def _line(row: Result) -> list[str]:
    times = f" x{row['count']}" if row["count"] > 1 else ""
    cells = [f"{row['layer']}{times}: {'x'.join(map(str, row['input_shape']))}"]
    for subject, key, ratio in _WAYS.values():
        figure = row["subjects"].get(subject, {}).get(key)
        over = f" (**{short(row['over'][ratio])}**)" if ratio in row["over"] else ""
        cells.append("-" if figure is None else f"{figure:.3g}{over}")
    wrong = [name for name, check in row["checks"].items() if not check["ok"]]
    most = max((check["difference"] for check in row["checks"].values()), default=None)
    cells.append(f"WRONG: {', '.join(wrong)}" if wrong else "not checked" if most is None else f"{most:.1g}")
    return cells


def _sum(rows: Sequence[Result]) -> list[str]:
    """Returns the line of a whole model: every layer as often as it has it."""
    sums: dict[tuple[str, str], float | None] = {}
    for subject, key, _ in _WAYS.values():
        figures = [row["subjects"].get(subject, {}).get(key) for row in rows]
        known = [figure * row["count"] for figure, row in zip(figures, rows, strict=True) if figure is not None]
        sums[subject, key] = sum(known) if len(known) == len(rows) else None
    here = sums["tensorflow", "whole_ms"]
    cells = ["**ResNet-50, all 53 layers**"]
    for subject, key, ratio in _WAYS.values():
        total = sums[subject, key]
        over = f" (**{short(total / here)}**)" if ratio and total is not None and here else ""
        cells.append("-" if total is None else f"{total:.3g}{over}")
    return [*cells, ""]
