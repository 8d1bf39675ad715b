"""What the commands print, and how failures are told, as far as no server is needed."""

import json

import click
import numpy as np
import pytest

import convserve
from convserve import cli
from convserve.cli.command import format_error
from convserve.cli.output import report
from convserve.display import units

NOBODY = "127.0.0.1:1"  # a port where nothing listens
PLAN = ["plan", "--local", "--input-shape", "4,600,600,3"]


def test_a_local_plan_in_words(capsys):
    assert cli.main([*PLAN, "--filters", "64", "--kernel-size", "3"]) == 0
    out = capsys.readouterr().out
    assert "(4, 598, 598, 64) float32, 366.2 MB" in out
    assert "1,792, 7.168 kB" in out
    assert "5.035 GFLOP" in out
    assert "not asked (--local)" in out


def test_a_local_plan_as_json(capsys):
    argv = "--filters 64 --kernel-size 3 --padding 1,1,1,1 --input-dtype uint8 --output-dtype float16 --json"
    assert cli.main([*PLAN, *argv.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = convserve.Conv2D(64, 3, padding=((1, 1), (1, 1))).plan(
        (4, 600, 600, 3), input_dtype="uint8", output_dtype="float16"
    )
    assert found == {
        "output_shape": [4, 600, 600, 64],
        "output_dtype": "float16",
        "kernel_shape": [3, 3, 3, 64],
        "parameters": 1792,
        "flops": expected.flops,
        "input_bytes": 4 * 600 * 600 * 3,
        "weight_bytes": 1792 * 4,
        "output_bytes": 4 * 600 * 600 * 64 * 2,
        "memory_bytes": expected.memory_bytes,
        "admitted": None,
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--filters 0 --kernel-size 3", "error: --filters: Expected"),
        ("--filters 3 --kernel-size 0", "error: --kernel-size: Expected"),
        ("--filters 3 --kernel-size 3 --groups 2", "error: --filters: Expected"),
        ("--filters 4 --kernel-size 3 --groups 2", "error: --groups: Expected"),
        ("--filters 3 --kernel-size 601", "error: --input-shape: Expected"),
        ("--filters 3 --kernel-size 3 --activation rleu", "Did you mean 'relu'?"),
        ("--filters 3 --kernel-size 3 --dtype int8", "error: --dtype: Expected"),
        ("--filters 3 --kernel-size 3 --name a/b", "error: --name: Expected"),
    ],
)
def test_wrong_parameters_are_told_under_the_name_of_their_flag(capsys, argv, message):
    assert cli.main([*PLAN, *argv.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_everything_that_is_wrong_is_told_at_once(capsys):
    assert cli.main([*PLAN, "--filters", "0", "--kernel-size", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: --filters: ")
    assert lines[1].startswith("       --kernel-size: ")


def test_a_parameter_of_a_named_object_is_told_with_its_flag(capsys):
    wrong = '{"class_name": "HeNormal", "config": {"seed": "x"}}'
    assert cli.main([*PLAN, "--filters", "1", "--kernel-size", "1", "--kernel-initializer", wrong]) == 2
    assert "error: --kernel-initializer (seed): Expected" in capsys.readouterr().err


def test_a_plan_needs_filters_and_a_kernel_size(capsys):
    assert cli.main(PLAN) == 2
    assert "required: --filters, --kernel-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--filters 4", "give --input-shape"),
        ("--layer mine", "give --input-shape"),
        ("--layer mine --input-shape 1,4,4,3 --filters 4", "--layer: the stored layer has parameters"),
        ("--concurrency 0", "expected numbers from 1 to 1000"),
        ("--concurrency 1;8", "expected numbers from 1 to 1000"),
        ("--rate 0", "expected calls per second, above 0"),
        ("--rate nan", "expected calls per second, above 0"),
        ("--seconds inf", "expected a number of seconds above 0"),
        ("--seconds 1,2", "expected a number of seconds above 0"),
    ],
)
def test_what_a_bench_cannot_be_is_wrong_usage(capsys, argv, message):
    assert cli.main(["bench", *argv.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_bench_checks_its_files_before_it_asks_a_server(capsys, tmp_path):
    base = ["bench", "--target", NOBODY]
    for argv, message in (
        (["--json", f"{tmp_path}/b.txt"], "error: --json: Expected a file name that ends in .json"),
        (["--json", f"{tmp_path}/no/b.json"], "error: --json: Expected a file in a folder that exists"),
        (["--plot", f"{tmp_path}/b.gif"], "error: --plot: Expected a file name that ends in .png"),
    ):
        assert cli.main([*base, *argv]) == 2
        assert message in capsys.readouterr().err


def test_files_are_checked_before_any_server_is_asked(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4, 3), np.float32))
    base = ["conv2d", f"{tmp_path}/x.npy", "--kernel", "box", "--target", NOBODY]
    for argv, message in (
        (["conv2d", f"{tmp_path}/no.npy", "--kernel", "box"], "error: INPUT: Expected a file that can be read"),
        (["conv2d", f"{tmp_path}/x.txt", "--kernel", "box"], "error: INPUT: Expected a file that ends in .npy"),
        ([*base, "-o", f"{tmp_path}/y.png"], "error: --output: Expected a file name that ends in .npy"),
        ([*base, "-o", f"{tmp_path}/no/y.npy"], "error: --output: Expected a file in a folder that exists"),
        ([*base, "--picture", f"{tmp_path}/y.gif"], "error: --picture: Expected a file name"),
        ([*base, "--picture", f"{tmp_path}/y.png", "--sample", "1"], "error: --sample: Expected"),
        ([*base[:2], "--kernel", "bax"], "error: --kernel: Expected one of sobel-x"),
        ([*base[:2], "--kernel", "nowhere/k.npy"], "error: --kernel: Expected a file that can be read"),
    ):
        is_of_a_file = "INPUT" in message or "can be read" in message
        assert cli.main(argv) == (1 if is_of_a_file else 2)
        assert message in capsys.readouterr().err


def test_an_input_without_samples_is_told_as_the_inputs(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((0, 4, 4, 3), np.float32))
    assert cli.main(["conv2d", f"{tmp_path}/x.npy", "--kernel", "box", "--target", NOBODY]) == 1
    assert capsys.readouterr().err.startswith("error: INPUT: Expected")


def test_how_to_draw_needs_a_picture(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4, 3), np.float32))
    for words in (["--picture-range", "0,1"], ["--picture-scale", "2"], ["--no-picture-input"]):
        assert cli.main(["conv2d", f"{tmp_path}/x.npy", "--kernel", "box", "--target", NOBODY, *words]) == 2
        assert "not allowed without --picture" in capsys.readouterr().err


def test_how_to_get_a_server_is_said_where_there_is_none_alone(capsys, monkeypatch):
    argv = "plan --input-shape 1,4,4,3 --filters 1 --kernel-size 3 --target"
    assert cli.main([*argv.split(), NOBODY]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {NOBODY}: Expected a server that answers. Received none: is `convserve serve` run")
    assert err.endswith("\n       --target or CONVSERVE_TARGET names another server\n")

    def plan(*_, **__):
        raise convserve.UnavailableError("Expected a TLS connection.")

    monkeypatch.setattr(convserve.Client, "plan", plan)
    assert cli.main([*argv.split(), NOBODY]) == 1
    assert capsys.readouterr().err == f"error: {NOBODY}: Expected a TLS connection.\n"


def test_what_was_done_before_a_failure_is_told_on_lines_of_its_own(capsys, monkeypatch):
    def plan(*_, **__):
        report.show_progress("7/9 layers")
        error = convserve.OverloadedError("busy")
        error.add_note("stored 6 of 9 layers")
        raise error

    monkeypatch.setattr(convserve.Client, "plan", plan)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cli.main(["plan", "--input-shape", "1,4,4,3", "--filters", "1", "--kernel-size", "3"]) == 1
    cleared = "\r\033[K"
    assert capsys.readouterr().err == f"{cleared}7/9 layers{cleared}stored 6 of 9 layers\nerror: busy\n"


def test_health_without_a_server_says_why_in_one_line(capsys):
    assert cli.main(["health", "--timeout", "2", "--target", NOBODY]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"not serving: {NOBODY}: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "-inf", "soon"])
def test_a_timeout_is_a_number_of_seconds(capsys, seconds):
    assert cli.main(["health", f"--timeout={seconds}"]) == 2
    assert "expected a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["inf", "INF", "1e12", "9" * 400])
def test_a_timeout_may_be_as_long_as_it_takes(capsys, seconds):
    assert cli.main(["health", f"--timeout={seconds}", "--target", NOBODY]) == 1
    assert "expected" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CONVSERVE_TARGT", "CONVSERV_TARGET", "convserve_target", "CONVSERVE_TOKENS"])
def test_a_mistyped_variable_is_warned_of(capsys, monkeypatch, name):
    for known in ("CONVSERVE_TARGET", "CONVSERVE_TOKEN", "CONVSERVE_TOKENS_FILE", "CONVSERVE_LISTEN"):
        monkeypatch.setenv(known, NOBODY)
    assert cli.main(["info", "--timeout", "2"]) == 1
    assert "warning:" not in capsys.readouterr().err
    monkeypatch.setenv(name, NOBODY)
    assert cli.main(["info", "--timeout", "2"]) == 1
    assert f"warning: {name} is not heeded. Did you mean CONVSERVE_T" in capsys.readouterr().err


def test_the_environment_names_the_server(capsys, monkeypatch):
    monkeypatch.setenv("CONVSERVE_TARGET", NOBODY)
    assert cli.main(["health", "--timeout", "2"]) == 1
    assert NOBODY in capsys.readouterr().err


def test_a_wrong_target_of_the_environment_matters_where_a_server_is_asked(capsys, monkeypatch):
    monkeypatch.setenv("CONVSERVE_TARGET", "garbage")
    words = ["--input-shape", "1,4,4,3", "--filters", "1", "--kernel-size", "1"]
    assert cli.main(["plan", *words, "--local"]) == 0
    assert cli.main(["plan", *words]) == 1
    assert "error: CONVSERVE_TARGET: Expected 'host:port'" in capsys.readouterr().err


def test_health_takes_no_token(capsys):
    assert cli.main(["health", "--token-file", "alice.token"]) == 2
    assert "No such option '--token-file'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (["conv2d", "x.npy", "--kernel", "FILE.npy"], "a file that can be read"),
        (["conv2d", "x.npy", "--kernel", "box", "--bias", "FILE.npy"], "a file that can be read"),
        (["info", "--token-file", "FILE"], "a token and nothing else"),
        (["info", "--tls-ca", "FILE"], "a PEM file"),
        (["play", "--page", "FILE"], "a file with a page"),
        (["layers", "import", "x.npy", "--config", "FILE"], "a file that can be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_no_wrong_usage(capsys, monkeypatch, tmp_path, words, lacking):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((1, 4, 4, 1), "f4"))
    assert cli.main([*words, "--target", NOBODY]) == 1
    error = capsys.readouterr().err
    assert lacking in error
    assert "FILE" in error
    assert "No such file or directory" in error


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (["conv2d", "x.npy", "--kernel", "two.npz"], "an archive of one array"),
        (["conv2d", "x.npy", "--kernel", "two.npz:none"], "one of the arrays"),
        (["conv2d", "x.npy", "--kernel", "words.npy"], "an array"),
        (["conv2d", "x.npy", "--kernel", "x.npy:no.npz"], "a file that can be read"),
        (["info", "--token-file", "x.npy"], "a token and nothing else"),
        (["info", "--tls-ca", "x.npy"], "a PEM file with a certificate"),
    ],
)
def test_a_file_with_something_else_in_it_is_no_wrong_usage(capsys, monkeypatch, tmp_path, words, lacking):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((1, 4, 4, 1), "f4"))
    np.save("words.npy", np.full((1, 1, 1, 1), "word"))
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(1))
    assert cli.main([*words, "--target", NOBODY]) == 1
    assert lacking in capsys.readouterr().err


def test_a_failure_that_nobody_expected_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(convserve.Conv2D, "plan", {}.__getitem__)
    with pytest.raises(TypeError):
        cli.main([*PLAN, "--filters", "1", "--kernel-size", "1"])


def test_fields_that_no_flag_gives_keep_their_name():
    error = convserve.InvalidRequestError(convserve.FieldViolation("layers", "Expected one."))
    context = click.Context(click.Command("command"))
    assert format_error(error, context) == "error: layers: Expected one."


def test_amounts_are_readable():
    assert units.bytes_text(999) == "999 bytes"
    assert units.bytes_text(368_640_000) == "368.6 MB"
    assert units.flops_text(5_035_000_000) == "5.035 GFLOP"
    assert [units.duration_text(each) for each in (7, 12_345, 2_310_000)] == ["7 us", "12.3 ms", "2.31 s"]


def test_json_has_no_nan(capsys):
    report.print_json({"a": [float("nan"), (1.5, float("inf"))]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [1.5, None]]}


def test_rows_without_a_text_are_left_out(capsys):
    report.print_rows([("a", "1\n2"), ("b", ""), ("long", "3")])
    assert capsys.readouterr().out == "a     1\n      2\nlong  3\n"
