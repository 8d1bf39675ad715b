"""The program: help, usage, version, the server's commands, Ctrl-C and closed pipes."""

import inspect
import os
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import click
import pytest

import convserve
from convserve import cli
from tests.support.processes import ended_afterwards

COMMANDS = ("conv2d", "plan", "play", "batch", "layers", "bench", "health", "info", "top")


def test_help_lists_every_command_with_a_line(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in (*COMMANDS, "serve"):
        assert re.search(rf"^  {name}  +\w", out, re.MULTILINE)
    assert "examples:" in out


@pytest.mark.parametrize("words", [[], ["conv2d"], ["layers", "list"], ["serve"]])
def test_h_is_help_too(capsys, words):
    if words == ["serve"]:
        pytest.importorskip("pydantic_settings", reason="the server extra is not installed")
    assert cli.main([*words, "-h"]) == 0
    assert "usage:" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_teaches_by_example(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: convserve {name}" in out
    assert "examples:" in out
    assert f"  convserve {name}" in out
    assert max(map(len, out.splitlines())) <= 88
    if name not in ("layers", "top"):  # whose actions have their own, and which asks by HTTP
        assert "--target HOST:PORT" in out
        assert "--timeout SECONDS" in out


def test_a_usage_breaks_no_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(["layers", "put", "--help"])
    assert "--input-channels N [OPTIONS]\n" in capsys.readouterr().out.split("\n\n")[0] + "\n"


@pytest.mark.parametrize("name", ["conv2d", "plan", "bench"])
def test_every_parameter_of_keras_conv2d_is_a_flag(capsys, name):
    cli.main([name, "--help"])
    out = capsys.readouterr().out
    # trainable and input_shape say nothing that a command line needs; use_bias is --no-bias.
    for parameter in set(inspect.signature(convserve.Conv2D).parameters) - {"trainable", "input_shape", "use_bias"}:
        assert f"\n  --{parameter.replace('_', '-')} " in out
    assert "--no-bias" in out


def test_the_classic_kernels_are_listed_in_the_help(capsys):
    cli.main(["conv2d", "--help"])
    out = capsys.readouterr().out
    assert "sobel-x    vertical edges" in out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"convserve {convserve.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        ([], "convserve"),
        (["nonsense"], "convserve"),
        (["plan", "--nonsense"], "convserve plan"),
        (["conv2d"], "convserve conv2d"),
        (["layers", "put", "--nonsense"], "convserve layers put"),
    ],
)
def test_wrong_usage_ends_with_2(capsys, argv, usage):
    assert cli.main(argv) == 2
    assert f"usage: {usage} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["plan", "--kernel_size", "3"], "--kernel-size"),
        (["plan", "--kernel_size=3"], "--kernel-size"),
        (["conv2d", "x.npy", "--kernal-size", "3"], "--kernel-size"),
        (["plan", "--input-sha", "1"], "--input-shape"),
        (["info", "--no_tls"], "--no-tls"),
        (["pln"], "plan"),
        (["layer", "list"], "layers"),
        (["layers", "lst"], "list"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_was_meant(capsys, argv, meant):
    assert cli.main(argv) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


def test_help_loads_neither_a_command_nor_an_optional_package():
    program = (
        "import sys\nfrom convserve.cli import main\nmain(['--help'])\n"
        "found = {'convserve.cli.commands.conv2d', 'convserve_server', 'PIL', 'matplotlib', 'tensorflow', 'rich'}\n"
        "sys.exit(str(found & set(sys.modules)) if found & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "convserve", "--version"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.stdout.startswith("convserve ")


@pytest.fixture
def brought(monkeypatch):
    """Puts a command into the entry points of a package; it ends as it is told."""

    def put(name, outcome):
        @click.command(name)
        @click.option("--listen", help="where")
        def command(listen):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        entry_point = SimpleNamespace(load=lambda: command)
        monkeypatch.setattr(
            metadata,
            "entry_points",
            lambda *, group, name: [entry_point] if (group, name) == (cli.ENTRY_POINTS, put.name) else [],
        )
        put.name = name

    return put


@pytest.fixture
def server_module(monkeypatch):
    """Puts something in the place of the server's module."""
    return lambda module: monkeypatch.setitem(sys.modules, "convserve_server.command", module)


MISSING = "convserve serve needs the server extra: pip install 'convserve[server]' (options: docs/settings.md)\n"


def test_serve_is_the_servers_command(server_module, capsys):
    server_module(SimpleNamespace(command=click.Command("serve", callback=lambda: 3)))
    assert cli.main(["serve"]) == 3
    assert cli.main(["serve", "--help"]) == 0
    assert "convserve serve" in capsys.readouterr().out


def test_serve_without_the_servers_package_is_one_line(monkeypatch, capsys):
    for module in ("command", "settings"):
        monkeypatch.delitem(sys.modules, f"convserve_server.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    for words in (["serve"], ["serve", "--help"]):
        assert cli.main(words) == 1
        assert capsys.readouterr().err == MISSING


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import nosuchmodule", "No module named 'nosuchmodule'"), ("raise TypeError('protobuf')", "protobuf")],
)
def test_a_package_that_is_broken_is_named_and_not_the_extra(
    server_module, capsys, monkeypatch, tmp_path, code, reason
):
    (tmp_path / "broken_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    server_module(SimpleNamespace(command=click.Command("serve", callback=lambda: __import__("broken_package"))))
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == f"broken_package is installed and cannot be imported: {reason}\n"


def test_another_package_may_bring_a_command(brought):
    brought("profile", 3)
    assert cli.main(["profile", "--listen", "here"]) == 3
    assert cli.main(["profile", "--help"]) == 0


def test_ctrl_c_is_130(brought):
    brought("profile", KeyboardInterrupt())
    assert cli.main(["profile"]) == 130


def test_a_closed_pipe_is_141(brought):
    brought("profile", BrokenPipeError())
    assert cli.main(["profile"]) == 141


@pytest.mark.parametrize(
    ("streams", "status", "buffered"),
    [
        *((">&-", 0, True), ("<&- >&- 2>&-", 0, False), (">/dev/full", 1, True), (">/dev/full", 1, False)),
        *((">/dev/full 2>/dev/full", 1, True), (">/dev/full 2>&-", 1, True)),
    ],
)
def test_streams_that_are_closed_or_full_leave_no_traceback(streams, status, buffered):
    script = f'"$@" {streams}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "convserve", "--version"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == status
    told = "error: [Errno 28] No space left on device\n" if status and "2>" not in streams else ""
    assert (done.stdout, done.stderr) == ("", told)


def test_a_name_of_any_bytes_is_printed_in_any_encoding():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from convserve import cli; sys.argv[1:] = []; cli._open_standard_streams();"
            "print('\\udcff \\u65e5')",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout == "\\udcff \\u65e5\n"


def test_a_reader_that_went_away_leaves_no_traceback():
    plan = ["plan", "--local", "--input-shape", "1,4,4,3", "--filters", "1", "--kernel-size", "1"]
    command = [sys.executable, "-m", "convserve", *plan]
    with ended_afterwards(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error, status = process.stderr.read(), process.wait(timeout=60)
    assert (status, error) == (141, b"")


def test_what_is_wrong_is_told_in_lower_case_whoever_tells_it(capsys):
    for words in (["no-such"], ["conv2d", "--no-such"], ["plan", "--input-shape", "1,4,4,3"], ["layers", "get"]):
        assert cli.main(words) == 2
        usage, *_, error = capsys.readouterr().err.splitlines()
        assert (usage[:7], error[:7]) == ("usage: ", "error: ")


def test_every_command_of_a_group_has_a_whole_line_in_its_help(capsys):
    assert cli.main(["layers", "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("commands:")[2].partition("examples:")[0]
