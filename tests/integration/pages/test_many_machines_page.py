"""docs/many-machines.md in short: what needs no engine runs, and `make many-machines` knows the others' engines."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np

from convserve import Client
from tests.many_machines.programs import ENGINES, FIRST, OTHERS, PAGE, engine_of
from tests.support.pages import blocks, languages
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer


def test_the_first_program_makes_what_the_others_use(server: RunningServer, tmp_path: Path) -> None:
    program = FIRST.replace("localhost:50051", server.target)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    with Client(server.target) as client:
        assert client.layer("stem")(np.load(tmp_path / "images.npy")).shape == (64, 30, 30, 8)


def test_the_command_runs_every_program() -> None:
    assert languages(PAGE) == {"python", "sh"}
    assert {engine_of(program) for program in OTHERS} == set(ENGINES)
    for program in OTHERS:
        assigned = {node.id for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)}
        assert "features" in assigned, program  # which the command compares with Keras
        assert "localhost:50051" in program


def test_the_commands_that_the_page_names_are_there() -> None:
    commands = [line.partition("#")[0].split() for line in "".join(blocks(PAGE, "sh")).splitlines()]
    assert ["make", "many-machines"] in commands
    assert "\nmany-machines: " in (ROOT / "Makefile").read_text()
    for command in (words for words in commands if words[1:2] == ["-m"]):
        module = ROOT / command[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
