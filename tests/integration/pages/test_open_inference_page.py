"""What docs/open-inference.md says: its programs run, those of Triton's client in that client's environment."""

import re
import subprocess
import sys

import pytest

from convserve_server.open_inference.wire import SERVICE
from convserve_server.settings import Settings, flag
from tests.support.pages import blocks, printed, text
from tests.support.servers.server_process import numpy_server
from tests.support.tritonclient.process import PYTHON

PAGE = text("docs/open-inference.md")
PROGRAMS = blocks(PAGE, "python")
OURS = [each for each in PROGRAMS if "import convserve" in each]
TRITONS = [each for each in PROGRAMS if "import tritonclient" in each]
KSERVES = [each for each in PROGRAMS if "from kserve" in each]  # tests/kserve_client.py tries that client


def run(python, program, target):
    done = subprocess.run(
        [python, "-c", program.replace("localhost:50051", target)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for expected in printed(program):
        assert expected in done.stdout


@pytest.fixture(scope="module")
def target():
    """A server as the page wants one, with the layer that the page puts."""
    with numpy_server("--shared-memory") as server:
        (program,) = OURS
        run(sys.executable, program, server.target)
        yield server.target


def test_the_page_has_programs_of_each_client():
    assert (len(OURS), len(TRITONS), len(KSERVES)) == (1, 2, 1)
    assert len(PROGRAMS) == 4


@pytest.mark.parametrize("index", range(len(TRITONS)))
def test_a_program_of_tritons_client_runs(index, target):
    run(PYTHON, TRITONS[index], target)


def test_every_call_of_the_service_is_in_the_table():
    table = PAGE[PAGE.index("## Supported calls") :]
    for method in SERVICE.methods:
        assert re.search(rf"\b{method.name}\b", table), method.name


def test_options_of_the_server_exist():
    flags = set(map(flag, Settings.model_fields))
    ours = PAGE.partition("## perf_analyzer")[0]
    options = set(re.findall(r"`--(?:no-)?([\w-]+)`", ours))
    assert options == {"open-inference", "shared-memory", "compression"}
    assert {f"--{each}" for each in options} <= flags
