"""The page about other languages: its blocks are parts of the programs, which run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import examples
from tests.support.pages import blocks, languages, text
from tests.support.servers.server_process import numpy_server

PAGE = text("docs/other-languages.md")
PROGRAMS = {"js": "examples/node/convolve.mjs", "go": "examples/go/main.go"}


@pytest.fixture(scope="module")
def target():
    with numpy_server() as server:
        yield server.target


@pytest.mark.parametrize("language", PROGRAMS)
def test_blocks_are_parts_of_the_programs(language):
    program = text(PROGRAMS[language])
    for block in blocks(PAGE, language):
        assert block.strip() in program


def test_there_are_no_blocks_that_nobody_runs():
    assert languages(PAGE) == {*PROGRAMS, "sh"}
    assert len(blocks(PAGE, "sh")) == 2  # that of the shell below, and Node's, which the program's test runs
    assert "node examples/node/convolve.mjs" in blocks(PAGE, "sh")[1]


def test_the_shells_block_answers(target):
    command = blocks(PAGE, "sh")[0].replace("localhost:50051", target)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", command], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["plan"]["outputShape"] == ["1", "30", "30", "8"]


@pytest.mark.parametrize("name", ["curl", "node"])  # Go's takes half a minute to build: python -m tests.examples
def test_a_program_does_what_it_says(name, target):
    try:
        examples.check(name, target, 8)
    except examples.MissingToolError as missing:
        pytest.skip(str(missing))


def test_names_in_other_languages_are_the_contracts():
    options = text("proto/convserve/v1/tensor.proto")
    for row in PAGE.partition("## Names in other languages")[2].splitlines():
        if row.startswith("| ") and "`" in row:
            named = row.split("`")[1].replace("\\", "\\\\")
            assert f'{named}"' in options
