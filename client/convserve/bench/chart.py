"""A measurement as a picture: for each workload and load where the time goes, beside the layer in process and the echo.

Needs matplotlib, which `pip install 'convserve[plot]'` brings, and is imported only for a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.bench.cases import ECHO, IN_PROCESS, SERVER
from convserve.errors import needing
from convserve.files.writing import whole_file

with needing("A plot needs matplotlib: pip install 'convserve[plot]'."):
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = (
    ("queue_ms", "waiting", "#d9822b"),
    ("compute_ms", "computing", "#2b7bba"),
    ("way_ms", "on the way", "#a9c4d9"),
)
_MARKS = ((IN_PROCESS, "the layer in process", "#1a7f37", "D"), (ECHO, "raw echo of as many bytes", "#555555", "s"))


def write(document: dict[str, Any], path: str) -> None:
    """Draws a measurement's document into a file, whose suffix says the format.

    Latencies are means, since only means add up; a line leads from the median to the 99th percentile.
    """
    workloads = document["workloads"]
    rows = max(1, sum(len(workload["loads"]) for workload in workloads))
    figure = Figure(figsize=(9, 1.6 + 0.55 * rows + 0.35 * len(workloads)), dpi=150, layout="constrained")
    heights = [0.6 + len(workload["loads"]) for workload in workloads]
    panels = figure.subplots(len(workloads), 1, squeeze=False, height_ratios=heights)[:, 0]
    handles: dict[str, Any] = {}
    for axes, workload in zip(panels, workloads, strict=True):
        _draw(axes, workload)
        artists, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, artists, strict=True))
    panels[-1].set_xlabel("milliseconds a call")
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    server = document["server"]
    where = f"{', '.join(server['devices'])} at {document['target']}, called from {document['machine']}"
    figure.supxlabel(f"{where}; {document['time']}", fontsize=6, color="0.4")
    with whole_file(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:])


def _draw(axes: Axes, workload: dict[str, Any]) -> None:
    loads = workload["loads"]
    for row, load in enumerate(loads):
        subjects = load["subjects"]
        served = subjects[SERVER]
        left = 0.0
        for key, label, colour in _PARTS if "compute_ms" in served else ():
            axes.barh(row, served[key], left=left, height=0.55, color=colour, label=label)
            left += served[key]
        if "p50_ms" in served:
            ends, label = [served["p50_ms"], served["p99_ms"]], "median to 99th percentile"
            axes.plot(ends, [row, row], color="black", linewidth=1, marker="|", label=label)
        for name, label, colour, marker in _MARKS:
            if "mean_ms" in subjects.get(name, {}):
                look: dict[str, Any] = {"linestyle": "", "markersize": 6, "markeredgecolor": "white"}
                axes.plot(subjects[name]["mean_ms"], row, color=colour, marker=marker, label=label, **look)
    axes.set_yticks(range(len(loads)), [load["load"] for load in loads])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    shapes = " to ".join(str(tuple(workload[end]["shape"])) for end in ("input", "output"))
    axes.set_title(f"{workload['name']}: {shapes}", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
