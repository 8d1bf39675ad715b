"""`convserve bench` against a real server: what it says, that it notices wrong answers, and that it cleans up."""

import dataclasses
import json

import numpy as np
import pytest

import convserve
from convserve import cli
from convserve.bench import correctness, in_process
from convserve.bench.loops import Subject
from convserve.bench.measurement import Load, Measurement, is_right
from convserve.bench.workloads import Workload, with_weights
from tests.support.servers.server_process import numpy_server

LAYER = ("--filters", "4", "--kernel-size", "3", "--activation", "relu", "--padding", "same")
SHORT = ("--seconds", "0.2", "--input-shape", "1,8,8,3", *LAYER)


@pytest.fixture
def run(server, runs):
    return runs(server.target, "bench")


def test_a_table_for_people(run):
    status, out, err = run(*SHORT)
    assert (status, err) == (0, "")
    assert "layer: (1, 8, 8, 3) float32 to (1, 8, 8, 4) float32, 768 bytes there and 1.024 kB back" in out
    assert "answers right: as the same layer in process" in out
    for word in ("1 caller", "8 callers", "p50", "p99", "calls/s", "in process", "convserve", "raw echo", "computing"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 120


def test_json_for_programs(run, tmp_path):
    status, out, _ = run(*SHORT, "--concurrency", "2", "--rate", "100", "--json", tmp_path / "b.json")
    assert status == 0
    assert "2 callers" in out
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["convserve"] == convserve.__version__
    assert found["server"]["devices"]
    assert found["shared_memory"] is False  # which this server does not share
    assert found["command"].split()[0] == "convserve"
    (workload,) = found["workloads"]
    assert workload["input"] == {"shape": [1, 8, 8, 3], "dtype": "float32", "bytes": 768}
    assert workload["check"]["ok"] is True
    assert [(load["callers"], load["rate"]) for load in workload["loads"]] == [(2, None), (None, 100.0)]
    for load in workload["loads"]:
        assert set(load["subjects"]) == {"convserve", "in process", "raw echo"}
        for figures in load["subjects"].values():
            assert figures["calls"] >= figures["rounds"] >= 1
            assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]
            assert figures["received_mb_per_s"] == pytest.approx(figures["calls_per_s"] * 1024 / 1e6)
        assert load["subjects"]["convserve"]["compute_ms"] > 0
        assert load["subjects"]["convserve"]["mean_batch_size"] >= 1
        assert all(ratios["latency"] > 0 and ratios["rate"] > 0 for ratios in load["over"].values())


def test_json_on_stdout_comes_alone(run):
    status, out, _ = run(*SHORT, "--concurrency", "1", "--json", "-", "--no-in-process")
    assert status == 0
    (workload,) = json.loads(out)["workloads"]
    assert workload["absent"] == {"in process": "not asked for"}
    assert workload["check"]["against"].startswith("the definition of convolution")
    assert workload["check"]["ok"] is True


def test_it_says_how_tensors_travel(capsys):
    large = ("--input-shape", "1,200,200,3", "--filters", "4", "--kernel-size", "3", "--seconds", "0.2")
    with numpy_server("--shared-memory") as sharing:
        command = ["bench", *large, "--target", sharing.target, "--concurrency", "1"]
        assert cli.main(command) == 0
        assert "tensors  in shared memory" in capsys.readouterr().out
        assert cli.main([*command, "--no-shared-memory"]) == 0
        assert "tensors  over the connection" in capsys.readouterr().out


def test_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    status, _, err = run(*SHORT, "--plot", tmp_path / "b.png")
    assert status == 0
    assert "b.png" in err
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_the_standard_workloads(run):
    status, out, _ = run("--seconds", "0.1", "--concurrency", "1")
    assert status == 0
    for name in ("small image", "feature map", "photo", "batch"):
        assert f"\n{name}: " in out
    assert out.count("answers right") == 4


def test_without_tensorflow_it_is_said(run, monkeypatch):
    monkeypatch.setattr(in_process, "is_possible", lambda: False)
    status, out, _ = run(*SHORT, "--concurrency", "1")
    assert status == 0
    assert "not measured, in process: TensorFlow and Keras are not installed here" in out
    assert "answers right: as the definition of convolution, at some places" in out
    status, out, _ = run(*SHORT[:-4], "--activation", "gelu", "--padding", "same", "--concurrency", "1")
    assert status == 0
    assert "answers not checked" in out


@pytest.mark.parametrize(
    ("right_calls", "words"),
    [(0, ("--concurrency", "1")), (0, ("--concurrency", "1", "--no-in-process")), (8, ())],
    ids=["at once", "by the definition", "under load"],
)
def test_a_fast_wrong_answer_fails(run, monkeypatch, right_calls, words):
    right, calls = convserve.Client.convolve, []

    def wrong(self, *arguments, **options):
        calls.append(1)
        result = right(self, *arguments, **options)
        return dataclasses.replace(result, output=result.output + np.float32(len(calls) > right_calls))

    monkeypatch.setattr(convserve.Client, "convolve", wrong)
    status, out, _ = run(*SHORT, *words)
    assert status == 1
    assert "WRONG ANSWERS" in out


def test_calls_that_fail_fail_it(run, monkeypatch):
    right, calls = convserve.Client.convolve, []

    def sometimes(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 10:
            raise convserve.OverloadedError("Expected fewer.")
        return right(self, *arguments, **options)

    monkeypatch.setattr(convserve.Client, "convolve", sometimes)
    status, out, _ = run(*SHORT)
    assert status == 1
    assert "convserve: failed calls: 1 OverloadedError: Expected fewer." in out


def test_ctrl_c_prints_what_there_is(run, monkeypatch):
    put_on, taken = Load.put_on, []

    def interrupted(self, subject: Subject, seconds):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return put_on(self, subject, seconds)

    monkeypatch.setattr(Load, "put_on", interrupted)
    status, out, _ = run(*SHORT, "--json", "-")
    assert status == 130
    found = json.loads(out)
    assert found["interrupted"] is True
    first, second = found["workloads"][0]["loads"]
    assert first["over"]["in process"]["latency"] > 0
    assert second["subjects"]["convserve"]["calls"] == 0
    taken.clear()
    status, out, _ = run(*SHORT)
    assert status == 130
    assert "until it was interrupted" in out
    assert "not measured yet" in out


def test_ctrl_c_while_it_prepares(run, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "add", interrupted)
    status, out, err = run(*SHORT, "--plot", tmp_path / "b.png")
    assert (status, err) == (130, "")
    assert "until it was interrupted" in out
    assert not (tmp_path / "b.png").exists()


def test_layers_are_left_as_they_were(run, client):
    def stored():
        return {each.digest for each in client.layers()}

    before = stored()
    run(*SHORT, "--concurrency", "1")
    assert stored() == before
    layer = client.put(convserve.Conv2D(4, 3, activation="relu"), name="bench/mine", input_channels=3, seed=1)
    status, out, _ = run("--seconds", "0.1", "--input-shape", "2,9,8,3", "--layer", "bench/mine")
    assert status == 0
    assert "bench/mine: (2, 9, 8, 3) float32 to (2, 7, 6, 4) float32" in out
    assert "answers right" in out
    assert client.layer("bench/mine").digest == layer.digest


def test_a_call_that_is_refused_ends_it(run):
    status, out, err = run("--input-shape", "1,4,4,3", "--filters", "4", "--kernel-size", "9")
    assert (status, out) == (2, "")
    assert err.startswith("error: --input-shape: Expected a height of at least 9")


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    "changes",
    [
        {"strides": (2, 3), "padding": "same"},
        {"dilation_rate": (2, 1), "activation": "relu"},
        {"dilation_rate": 3, "padding": "same", "use_bias": False},
        {"groups": 2, "strides": 2},
        {"padding": ((2, 0), (1, 3)), "strides": (3, 1)},
        {"kernel_size": (2, 5), "padding": "same", "strides": (1, 2), "dtype": "mixed_float16"},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_definition_and_the_layer_in_process_agree_with_the_server(client, changes, data_format, dtype):
    config = convserve.Conv2D(6, **({"kernel_size": 3, "data_format": data_format} | changes))
    shape = (2, 13, 11, 4) if data_format == "channels_last" else (2, 4, 13, 11)
    workload = Workload("w", with_weights(config, shape), shape, dtype)
    limit = correctness.limit(config, tf32=False)
    x = workload.inputs()[1]
    output = client.convolve(workload.layer, x).output
    assert correctness.by_definition(workload.layer, x, workload.plan()).difference(output) <= limit
    if data_format == "channels_last":  # of which TensorFlow has kernels for CPUs
        expected = in_process.function(workload)(x)
        assert correctness.Expectation(output.shape, output.dtype.name, expected).difference(output) <= limit


def test_a_layer_that_cannot_be_computed_in_process_is_measured_all_the_same(server, client, monkeypatch):
    def fails(_):
        raise ValueError("no kernel for this\nand more")

    monkeypatch.setattr(in_process, "function", fails)
    config = convserve.Conv2D(6, 3, data_format="channels_first")
    with Measurement(client, server.target, [Load(callers=2)], timeout=60.0) as measurement:
        measurement.add(Workload("w", with_weights(config, (2, 4, 13, 11)), (2, 4, 13, 11)))
        measurement.run(0.0)
        found = measurement.document()
    assert is_right(found)
    (workload,) = found["workloads"]
    assert workload["absent"] == {"in process": "no kernel for this"}
    assert workload["check"]["ok"] is True
    assert workload["loads"][0]["subjects"]["convserve"]["calls"] >= 2
