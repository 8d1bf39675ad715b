"""Where remote starts to pay: a model of two lines, its constants from measurements, and its picture as SVG.

A call computes F GFLOP and moves B MB. Here it takes F / here seconds; elsewhere B * (1 / link + cost) + F / there,
where `cost` is what the service's both ends need for a byte, measured over loopback. So elsewhere is quicker from

    F / B  =  (1 / link + cost) / (1 / here - 1 / there)   GFLOP per MB

on. What a call costs however small it is (about a millisecond) is left out: it matters below some 100 KB.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convserve import Conv2D
from tests.bench import tables

Result = dict[str, Any]

THERE_GFLOPS = 20_000.0
"""A data centre's GPU in float32, an assumption: a third of what the data sheets of an H100 and H200 say."""
_MORE_CORES = 8
_LINKS = (0.1, 1.0, 10.0, 25.0, 100.0)  # Gbit/s


@dataclass(frozen=True)
class Constants:
    """What the model needs.

    Attributes:
        cores: Of the caller's own machine.
        here_gflops: Its GFLOP/s.
        ns_per_byte: Nanoseconds a byte over a connection, both ends, without the link.
        ns_per_byte_shared: The same through shared memory.
        there_gflops: GFLOP/s of the remote device.
    """

    cores: int
    here_gflops: float
    ns_per_byte: float
    ns_per_byte_shared: float
    there_gflops: float = THERE_GFLOPS

    def threshold(self, here_gflops: float, ns_per_byte: float, link_gbits: float = math.inf) -> float:
        """Returns the GFLOP per MB from which on remote is quicker."""
        seconds_per_mb = 8e-3 / link_gbits + ns_per_byte * 1e-3
        return seconds_per_mb / (1 / here_gflops - 1 / self.there_gflops)


def constants(peers: Result, connection: Result, shared: Result) -> Constants:
    """Returns the model's constants out of the results of `peers` and of `memory` by both ways."""
    batch = _layer(64, 3, padding="same").plan((32, 56, 56, 64))
    took_ms = tables.median_of(peers["results"], "w4c1", "ref_p50_ms")
    assert took_ms is not None
    return Constants(peers["cores"], batch.flops / 1e6 / took_ms, _large(connection), _large(shared))


def layers() -> list[tuple[str, float]]:
    """Returns layers with their GFLOP per MB moved, both ways together, weights not: they are stored."""
    cases = {
        "W1": (_layer(16, 3, padding="same"), (1, 32, 32, 3), "float32", None),
        "W2 and W4: 3x3, 64 to 64": (_layer(64, 3, padding="same"), (32, 56, 56, 64), "float32", None),
        "W3: 7x7/2, 3 to 64": (_layer(64, 7, strides=2, padding="same"), (1, 224, 224, 3), "float32", None),
        "W3, 8 bits there, float16 back": (
            _layer(64, 7, strides=2, padding="same"), (1, 224, 224, 3), "uint8", "float16",
        ),
        "W5: 1x1, 3 to 64": (_layer(64, 1), (4, 600, 600, 3), "float32", None),
        "3x3, 512 to 512": (_layer(512, 3, padding="same"), (32, 14, 14, 512), "float32", None),
    }  # fmt: skip
    found = []
    for name, (layer, shape, dtype, back) in cases.items():
        plan = layer.plan(shape, input_dtype=dtype, output_dtype=back)
        found.append((name, plan.flops / 1e9 / ((plan.input_bytes + plan.output_bytes) / 1e6)))
    found.append(("W2, four in one call", 4 * dict(found)["W2 and W4: 3x3, 64 to 64"]))
    return sorted(found, key=lambda case: case[1])


def table(found: Constants) -> str:
    """Returns the thresholds as Markdown."""
    heres = _heres(found)
    rows = [
        [name, *(f"{found.threshold(gflops, cost, link):.3f}" for _, gflops in heres)]
        for name, cost, link in [
            ("the same machine, shared memory", found.ns_per_byte_shared, math.inf),
            *((f"{link:g} Gbit/s", found.ns_per_byte, link) for link in reversed(_LINKS)),
        ]
    ]
    return tables.table(["from so many GFLOP per MB on", *(f"instead of {name}" for name, _ in heres)], rows)


def stated(found: Constants) -> str:
    """Returns the constants in words."""
    times, tflops = _MORE_CORES, found.there_gflops / 1e3
    return (
        f"Constants: the {found.cores} cores that were measured compute {found.here_gflops:.0f} GFLOP/s (W4 in "
        f"process), and {times} times as many are taken to be {times} times as fast. A byte costs "
        f"{found.ns_per_byte:.2f} ns over a connection and {found.ns_per_byte_shared:.2f} ns through shared memory, "
        f"for both ends together on those cores (calls of 10 MB and more). The GPU is taken to compute {tflops:g} "
        "TFLOP/s, a third of what data sheets of data centres' GPUs say for float32; half or twice that moves the "
        "lines by a few percent."
    )


def _heres(found: Constants) -> list[tuple[str, float]]:
    return [(f"{times * found.cores} cores", times * found.here_gflops) for times in (1, _MORE_CORES)]


def _layer(filters: int, size: int, strides: int = 1, padding: str = "valid") -> Conv2D:
    return Conv2D(filters, size, strides=strides, padding=padding, data_format="channels_last", dtype="float32")


def _large(memory: Result) -> float:
    return statistics.median(each["ns_per_byte_moved"] for each in memory["bytes"] if each["bytes_each_way"] >= 9e6)


# The picture

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 800, 470, 64, 46, 56
_LINKS_END, _END = 500, 590  # where the links' axis ends, and after it the column of the same machine
_X, _Y = (0.1, 100.0), (1e-3, 10.0)
_LABELLED = 2.0  # Gbit/s, where a curve has its label
_COLOURS = ("#2b7bba", "#d9822b")


def draw(found: Constants) -> str:
    """Returns the picture: thresholds over the link's speed, and where layers lie."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        "<title>Where remote starts to pay</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 24, "Above its line a remote GPU is quicker, below it the caller's own CPU", size=15),
        *_grid(),
        *_layer_lines(),
    ]
    for (name, gflops), colour in zip(_heres(found), _COLOURS, strict=True):
        parts.append(_curve(lambda link, gflops=gflops: found.threshold(gflops, found.ns_per_byte, link), colour))
        above = _at_y(found.threshold(gflops, found.ns_per_byte, _LABELLED)) - 8
        parts.append(_text(_at_x(_LABELLED), above, f"against {name}, {gflops:,.0f} GFLOP/s", colour=colour))
        shared = _at_y(found.threshold(gflops, found.ns_per_byte_shared))
        parts.append(_line(_LINKS_END + 12, shared, _END - 12, shared, colour, width=5))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _layer_lines() -> list[str]:
    parts, lowest_free = [], float(_HEIGHT)
    for name, intensity in layers():  # from below
        y = _at_y(intensity)
        parts.append(_line(_LEFT, y, _END, y, "#888888", dash="4 4"))
        lowest_free = min(y + 4, lowest_free)
        parts.append(_text(_END + 6, lowest_free, name, colour="#444444"))
        lowest_free -= 14  # so that layers which lie together stay legible
    return parts


def _grid() -> list[str]:
    parts = [_line(_END, _TOP, _END, _HEIGHT - _BOTTOM, "#dddddd")]
    for power in range(-1, 3):
        x = _at_x(10.0**power)
        parts.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM, "#dddddd"))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{10.0**power:g}", anchor="middle"))
    for power in range(-3, 2):
        y = _at_y(10.0**power)
        parts.append(_line(_LEFT, y, _END, y, "#dddddd"))
        parts.append(_text(_LEFT - 8, y + 4, f"{10.0**power:g}", anchor="end"))
    parts.append(_text((_LEFT + _LINKS_END) / 2, _HEIGHT - 14, "link, Gbit/s", anchor="middle"))
    for line, text in enumerate(("same machine,", "shared memory")):
        parts.append(_text((_LINKS_END + _END) / 2, _HEIGHT - 28 + 14 * line, text, anchor="middle", size=11))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    label = _text(0, 0, "GFLOP computed per MB moved", anchor="middle")
    parts.append(f'<g transform="translate(16 {middle:.1f}) rotate(-90)">{label}</g>')
    return parts


def _curve(threshold: Callable[[float], float], colour: str) -> str:
    steps = 60
    links = [_X[0] * (_X[1] / _X[0]) ** (step / steps) for step in range(steps + 1)]
    points = [(_at_x(link), _at_y(threshold(link))) for link in links]
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points if y >= _TOP)
    return f'<polyline points="{shown}" fill="none" stroke="{colour}" stroke-width="2.5"/>'


def _at_x(link: float) -> float:
    return _LEFT + (_LINKS_END - _LEFT) * math.log(link / _X[0]) / math.log(_X[1] / _X[0])


def _at_y(intensity: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * math.log(intensity / _Y[0]) / math.log(_Y[1] / _Y[0])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1.0, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{dashes}/>'


def _text(x: float, y: float, text: str, *, colour: str = "#222222", anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{colour}">{text}</text>'
