"""What a Markdown page has: blocks of code, headings, links."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.repository import ROOT

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(path: str) -> str:
    """Returns a page by its path from the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Returns the blocks of a language, in their order."""
    return [code for named, code in _BLOCK.findall(page) if named == language]


def languages(page: str) -> set[str]:
    """Returns the languages of all blocks."""
    return {named for named, _ in _BLOCK.findall(page)}


def section(page: str, heading: str) -> str:
    """Returns what stands under a heading of the second level."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def printed(program: str) -> list[str]:
    """Returns what a program's comments say that it prints."""
    return [line.removesuffix(" ...") for line in re.findall(r"print\(.*\)  # (.*)", program)]


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", _BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def links(page: str) -> list[tuple[str, str]]:
    """Returns the links and pictures of a page within the repository: path and anchor, each possibly empty."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page))
    inner = (each.partition("#") for each in targets if not re.match(r"https?:|mailto:", each))
    return [(path, anchor) for path, _, anchor in inner]


def pages() -> list[Path]:
    """Returns all Markdown pages: those at the root, in docs/, and beside the code."""
    parts = ("docs", "client", "server", "proto", "tests", "examples")
    found = [*ROOT.glob("*.md"), *(path for part in parts for path in (ROOT / part).rglob("*.md"))]
    return sorted(path for path in found if "node_modules" not in path.parts)
