"""docs/tutorial.md: its blocks run in their order, print what they say, and its pictures show what they compute."""

from __future__ import annotations

import inspect
import re

import pytest
from docs import tutorial_pictures

from convserve import Conv2D
from tests.support.pages import blocks, languages, text
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer

PAGE = text("docs/tutorial.md")
HEADINGS = re.findall(r"^## (.*)", PAGE, re.MULTILINE)


def printed(block: str) -> list[str]:
    """Returns the lines that a block's comments say: behind a print, or below the prints of a loop."""
    lines: list[str] = []
    follows = False
    for line in block.splitlines():
        behind = re.search(r"print\(.*\)  # (.*)", line)
        if behind:
            lines.append(behind[1])
        elif follows and line.startswith("# "):
            lines.append(line[2:])
        follows = line.startswith("    print(") or (follows and line.startswith("# "))
    return lines


def test_the_blocks_print_what_they_say_and_the_pictures_are_current(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, str] = {}

    def draw(page: dict[str, object]) -> None:
        drawn.update({name: make(page) for name, make in tutorial_pictures.PICTURES.items()})

    tutorial_pictures.run_page(server.target, draw)
    code = blocks(PAGE, "python")
    said = [line for block in code for line in printed(block)]
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) > 50
    for name, picture in drawn.items():
        assert (ROOT / f"docs/tutorial/{name}.svg").read_text(encoding="utf-8") == picture, "run: make pictures"


def test_every_print_says_what_it_prints() -> None:
    assert languages(PAGE) == {"python"}
    for block in blocks(PAGE, "python"):
        plain = re.findall(r"^print\(.*", block, re.MULTILINE)
        assert [line for line in plain if "  # " not in line] == []
        assert bool(re.findall(r"^    print\(", block, re.MULTILINE)) <= bool(printed(block))


def test_there_is_a_section_for_each_parameter_in_keras_order() -> None:
    parameters = list(inspect.signature(Conv2D).parameters)
    sections = [heading.partition(",")[0] for heading in HEADINGS]
    told = [name for name in sections if name in parameters]
    assert told[:16] == parameters[:16]
    assert set(parameters) == set(told)
    assert "reuse" in HEADINGS[sections.index("name")]


def test_the_pictures_are_those_of_the_page_and_small() -> None:
    shown = re.findall(r"!\[([^]]+)\]\(tutorial/(\w+)\.svg\)", PAGE)
    assert [name for _, name in shown] == list(tutorial_pictures.PICTURES)
    files = list((ROOT / "docs/tutorial").iterdir())
    assert {path.name for path in files} == {f"{name}.svg" for name in tutorial_pictures.PICTURES}
    assert sum(path.stat().st_size for path in files) < 300_000
    assert all(len(described) > 20 for described, _ in shown)
