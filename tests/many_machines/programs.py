"""What docs/many-machines.md shows: the program that makes what all others use, and those by their engines."""

from __future__ import annotations

import re

from tests.support.pages import blocks, text

PAGE = text("docs/many-machines.md")
FIRST, *OTHERS = blocks(PAGE, "python")

# What each engine's environment gets beside the client, and what of ours.
ENGINES: dict[str, tuple[str, ...]] = {
    "ray": (".[ray,server]",),
    "convserve_server": (),  # which is here
    "pyspark": (".", "pyspark[sql]>=4"),  # and Java 17
    "dask": (".", "dask[array,distributed]"),
    "datasets": (".", "datasets"),
    "daft": (".", "daft"),
    "apache_beam": (".", "apache-beam", "protobuf<7"),
}


def engine_of(program: str) -> str:
    """Returns the engine that a program imports."""
    imported = re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)
    return next(name for name in imported if name in ENGINES)
