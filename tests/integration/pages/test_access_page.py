"""What docs/access.md says: its commands and its program run, and its options and permissions exist."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from convserve import cli
from convserve_server.auth.authenticator import permissions_for
from convserve_server.auth.tokens import parse
from tests.support.pages import blocks, printed, text
from tests.support.raw.inference import INFERENCE_RPCS
from tests.support.repository import ROOT
from tests.support.servers.server_process import numpy_server

PAGE = text("docs/access.md")
COMMANDS = "".join(blocks(PAGE, "sh")).splitlines()
(TOKENS,) = blocks(PAGE, "text")
(PROGRAM,) = blocks(PAGE, "python")
ALICE = re.search(r"alice +(\S+)", TOKENS)[1]


def run(folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, cwd=folder,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the page's commands make and use."""
    made = tmp_path_factory.mktemp("page")
    (made / "tokens.txt").write_text(TOKENS)
    (made / "alice.token").write_text(ALICE + "\n")
    (command,) = (each for each in COMMANDS if "trustme" in each)
    run(made, *shlex.split(command)[1:])
    return made


@pytest.fixture(scope="module")
def encrypted(folder):
    """The server that the page starts with TLS and tokens."""
    (command,) = (each for each in COMMANDS if "serve" in each and "--tls-key" in each and "--tokens-file" in each)
    words = shlex.split(command)[4:]
    with numpy_server(*(f"{folder}/{each}" if "." in each else each for each in words)) as running:
        yield running


def test_the_token_that_it_makes_is_one():
    (command,) = (each for each in COMMANDS if "secrets" in each)
    token = run(ROOT, *shlex.split(command)[1:]).strip()
    assert parse(f"alice {token} read")


def test_the_tokens_are_what_a_server_takes():
    assert [each.name for each in parse(TOKENS).values()] == ["alice", "deploy", "grafana"]
    with numpy_server(environment={"CONVSERVE_TOKEN": ALICE}) as running:
        command = next(each for each in COMMANDS if each.startswith("CONVSERVE_TOKEN="))
        assignment, *words = shlex.split(command)
        assert words == ["convserve", "info"]
        command, environment = ["-m", *words, "--target", running.target], dict([assignment.split("=")])
        assert run(ROOT, *command, **environment)


@pytest.mark.parametrize(
    "command",
    [
        each
        for each in COMMANDS
        if each.startswith("convserve ") and "--tls-ca client.pem" in each and "alice.pem" not in each
    ],
)
def test_a_command_runs(command, folder, encrypted):
    target = encrypted.target.replace("127.0.0.1", "localhost")
    assert run(folder, "-m", *shlex.split(command), "--target", target)


def test_the_program_runs(folder, encrypted):
    target = encrypted.target.replace("127.0.0.1", "localhost")
    out = run(folder, "-W", "error", "-c", PROGRAM.replace("localhost:50051", target))
    (expected,) = printed(PROGRAM)
    assert expected in out


def test_options_in_the_text_are_in_a_help(capsys):
    for name in ("serve", "info"):
        assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in re.findall(r"`(--[\w-]+)`", PAGE):
        assert option in shown


def test_the_table_of_permissions_is_the_servers():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?)(?:;.*)? \|$", PAGE, re.MULTILINE))
    assert set(rows) == {"read", "compute", "change"}
    for permission, methods in rows.items():
        for method in methods.split(", "):
            assert permissions_for(f"/convserve.v1.LayerService/{method}") == {permission}
    inference = dict(re.findall(r"^\| `(\w+)` \| .*; of Open Inference (.*) \|$", PAGE, re.MULTILINE))
    listed = {method: permission for permission, methods in inference.items() for method in methods.split(", ")}
    assert listed.keys() == {rpc.name for rpc in INFERENCE_RPCS}
    for method, permission in listed.items():
        assert permissions_for(f"/inference.GRPCInferenceService/{method}") == {permission}
