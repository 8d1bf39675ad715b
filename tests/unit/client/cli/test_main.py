"""The program: help, usage, version, the server's commands, Ctrl-C and closed pipes."""

import inspect
import subprocess
import sys
from importlib import metadata

import pytest

import convserve
from convserve import cli
from tests.support.processes import ended_afterwards


def ended(argv):
    """Returns the status with which argparse ended the program."""
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    return caught.value.code


def test_help_lists_every_command_with_a_line(capsys):
    assert ended(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("conv2d", "plan", "bench", "health", "info", "top", "serve"):
        assert f"\n    {name} " in out
    assert "examples:" in out


@pytest.mark.parametrize("name", ["conv2d", "plan", "bench", "health", "info"])
def test_each_command_teaches_by_example(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert ended([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"  convserve {name}" in out
    assert "--target HOST:PORT" in out
    assert "--timeout SECONDS" in out
    assert max(map(len, out.splitlines())) <= 88


@pytest.mark.parametrize("name", ["conv2d", "plan", "bench"])
def test_every_parameter_of_keras_conv2d_is_a_flag(capsys, name):
    ended([name, "--help"])
    out = capsys.readouterr().out
    # trainable and input_shape say nothing that a command line needs; use_bias is --no-bias.
    for parameter in set(inspect.signature(convserve.Conv2D).parameters) - {"trainable", "input_shape", "use_bias"}:
        assert f"\n  --{parameter.replace('_', '-')} " in out
    assert "--no-bias" in out


def test_the_classic_kernels_are_listed_in_the_help(capsys):
    ended(["conv2d", "--help"])
    out = capsys.readouterr().out
    assert "sobel-x    vertical edges" in out


def test_version(capsys):
    assert ended(["--version"]) == 0
    assert capsys.readouterr().out == f"convserve {convserve.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["plan", "--nonsense"], ["conv2d"], ["plan", "--input-sha", "1"]])
def test_wrong_usage_ends_with_2(capsys, argv):
    assert ended(argv) == 2
    assert "usage: convserve" in capsys.readouterr().err


def test_help_loads_neither_a_command_nor_an_optional_package():
    program = (
        "import sys\nfrom convserve.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "found = {'convserve.cli.commands.conv2d', 'convserve_server', 'PIL', 'matplotlib', 'tensorflow', 'keras'}\n"
        "sys.exit(str(found & set(sys.modules)) if found & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_package_runs_as_a_module():
    for module in ("convserve", "convserve.cli"):
        result = subprocess.run(
            [sys.executable, "-m", module, "--version"], check=False, capture_output=True, text=True
        )
        assert result.stdout.startswith("convserve ")


class Command:
    """A command of the server that does as it is told."""

    HELP = "start a server"

    def __init__(self, outcome):
        self.outcome = outcome

    def add_arguments(self, parser):
        parser.add_argument("--listen")

    def run(self, _):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def entry_point(monkeypatch):
    """Puts commands in the place of those that the installed packages have."""

    def put(name, load):
        found = type("EntryPoint", (), {"name": name, "load": staticmethod(load)})
        monkeypatch.setattr(
            metadata,
            "entry_points",
            lambda *, group, name: [found] if (group, name) == (cli.ENTRY_POINTS, found.name) else [],
        )

    return put


def raising(error):
    def load():
        raise error

    return load


MISSING = "convserve serve needs the server extra: pip install 'convserve[server]'\n"


def test_serve_is_found_by_its_entry_point(entry_point, capsys):
    entry_point("serve", lambda: Command(0))
    assert cli.main(["serve", "--listen", "127.0.0.1:0"]) == 0
    assert ended(["serve", "--help"]) == 0
    assert "--listen" in capsys.readouterr().out


@pytest.mark.parametrize(
    "load",
    [
        raising(ModuleNotFoundError("no", name="tensorflow")),
        raising(ModuleNotFoundError("no", name="convserve_server")),
        lambda: Command(ModuleNotFoundError("no", name="grpc_health")),
    ],
)
def test_serve_without_its_packages_is_one_line(entry_point, capsys, load):
    entry_point("serve", load)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == MISSING


def test_serve_without_an_entry_point_is_the_same_line(entry_point, capsys):
    entry_point("other", lambda: Command(0))
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == MISSING


def test_a_module_of_our_own_that_is_missing_is_a_defect(entry_point):
    entry_point("serve", lambda: Command(ModuleNotFoundError("no", name="convserve_server.lost")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["serve"])


def test_another_package_may_bring_a_command(entry_point, capsys):
    entry_point("profile", lambda: Command(3))
    assert cli.main(["profile"]) == 3
    entry_point("profile", lambda: Command(0))
    assert ended(["profile", "--help"]) == 0


def test_ctrl_c_is_130(entry_point):
    entry_point("serve", lambda: Command(KeyboardInterrupt()))
    assert cli.main(["serve"]) == 130


def test_a_closed_pipe_is_141(entry_point):
    entry_point("serve", lambda: Command(BrokenPipeError()))
    assert cli.main(["serve"]) == 141


def test_a_reader_that_went_away_leaves_no_traceback():
    plan = ["plan", "--local", "--input-shape", "1,4,4,3", "--filters", "1", "--kernel-size", "1"]
    command = [sys.executable, "-m", "convserve", *plan]
    with ended_afterwards(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error, status = process.stderr.read(), process.wait(timeout=60)
    assert (status, error) == (141, b"")
