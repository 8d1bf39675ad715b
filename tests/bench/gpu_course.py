"""One server on a device, the other frameworks beside it, and a layer's turn with all of them."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import convserve
from convserve.bench import correctness
from convserve.bench.loops import Subject, closed_loop
from convserve.bench.workloads import Workload
from convserve.tensors.codec import Array, numpy_dtype
from tests.bench.gpu_cases import MODES, Case
from tests.bench.gpu_workers import Worker, WorkerError, environment_for_torch
from tests.support.servers.server_process import running_server

SHARED, GRPC, TENSORFLOW, TORCH = "shared memory", "gRPC", "tensorflow", "torch"
Row = dict[str, Any]

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Pace:
    """How long is measured.

    Attributes:
        rounds: How often all take turns.
        seconds: How long a turn lasts.
    """

    rounds: int
    seconds: float


class Device:
    """A server and the other frameworks, all on one device, with or without TensorFloat-32."""

    def __init__(self, device: str, tf32: bool, torch_python: str) -> None:
        """Starts all of them.

        Args:
            device: "gpu:0" or "cpu".
            tf32: Whether float32 may be computed in TensorFloat-32.
            torch_python: The Python that may have PyTorch.

        Raises:
            WorkerError: If TensorFlow does not start. PyTorch may be missing.
        """
        self._tf32 = tf32
        self._absent: dict[str, str] = {}
        with ExitStack() as opened:
            flags = ["--device", device, "--shared-memory", "--tf32" if tf32 else "--no-tf32"]
            server = opened.enter_context(running_server(*flags))
            self._clients = {
                way: opened.enter_context(
                    convserve.Client(server.target, timeout=_TIMEOUT_S, shared_memory=way == SHARED)
                )
                for way in (SHARED, GRPC)
            }
            words = [device, "tf32" if tf32 else "exact"]
            beside = [sys.executable, "-m", "tests.bench.gpu_tensorflow", *words]
            self._workers = {TENSORFLOW: opened.enter_context(Worker(beside, os.environ))}
            try:
                alone = [torch_python, "-P", str(Path(__file__).with_name("gpu_torch.py")), *words]
                self._workers[TORCH] = opened.enter_context(Worker(alone, environment_for_torch()))
            except (WorkerError, OSError) as error:
                self._absent[TORCH] = str(error)
            self._folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self._opened = opened.pop_all()

    @property
    def about(self) -> dict[str, Any]:
        """What computes: the server's device and the frameworks' versions; and why one of them is absent."""
        (device,) = self._clients[GRPC].info().devices
        self._clients[SHARED].empty((1, 1, 1, 1))  # it connects
        return {
            "device": f"{device.name} {device.description}".strip(),
            "shared_memory": self._clients[SHARED]._tensors.sharing.memory() is not None,
            "versions": {name: worker.about for name, worker in self._workers.items()},
            "absent": dict(self._absent),
        }

    def rows(self, case: Case, pace: Pace) -> list[Row]:
        """Returns what came out for one layer, in each mode that this server computes in."""
        modes = ((name, dtype) for name, (dtype, tf32) in MODES.items() if tf32 == self._tf32)
        return [self._row(case, name, dtype, pace) for name, dtype in modes]

    def _row(self, case: Case, mode: str, dtype: str, pace: Pace) -> Row:
        workload = case.workload(dtype)
        plan, (x, *_) = workload.plan(), workload.inputs()
        row: Row = {
            "layer": case.name, "mode": mode, "count": case.count, "input_shape": list(case.input_shape),
            "output_shape": list(plan.output_shape), "flops": plan.flops,
            "limit": correctness.limit(workload.layer.config, self._tf32), "checks": {}, "failures": {},
        }  # fmt: skip
        job = self._job(workload, x)
        stored = {way: client.put(workload.layer) for way, client in self._clients.items()}
        try:
            ready = self._check(row, job, stored, x, workload)
            row |= self._measured(ready, stored, x, pace)
        finally:
            self._clients[GRPC].delete(stored[GRPC])
        return row

    def _job(self, workload: Workload, x: Array) -> dict[str, Any]:
        """Writes the arrays for the other processes; returns what they are told of the layer."""
        layer = workload.layer
        assert layer.kernel is not None
        assert layer.bias is not None
        for name, array in (("x", x), ("kernel", layer.kernel), ("bias", layer.bias)):
            # numpy's files cannot name bfloat16.
            np.save(self._folder / f"{name}.npy", array.view(np.int16) if array.dtype.name == "bfloat16" else array)
        config = layer.config
        return {
            "folder": str(self._folder), "dtype": workload.input_dtype, "strides": config.strides[0],
            "padding": config.padding, "activation": None if config.activation.keras_name == "linear" else "relu",
        }  # fmt: skip

    def _check(self, row: Row, job: dict[str, Any], stored: dict[str, Any], x: Array, workload: Workload) -> list[str]:
        """Has all of them compute the layer once, and compares their answers; returns those that can."""
        reference, plan = self._folder / "reference.npy", workload.plan()
        expected: correctness.Expectation | None = None
        ready = []
        for name in ("reference", *self._clients, *self._workers):
            try:
                if name == "reference":
                    self._workers[TENSORFLOW].ask("reference", **job, output=str(reference))
                    values = np.load(reference, mmap_mode="r")
                    expected = correctness.Expectation(plan.output_shape, plan.output_dtype, values)
                    continue
                output = self._answer(name, job, stored, x)
            except (convserve.ConvserveError, WorkerError) as error:
                row["failures"][name] = str(error)
                continue
            ready.append(name)
            if expected is not None:
                apart = expected.difference(output)
                # JSON has no infinity.
                row["checks"][name] = {"difference": min(apart, 1e9), "ok": apart <= row["limit"]}
        return ready

    def _answer(self, name: str, job: dict[str, Any], stored: dict[str, Any], x: Array) -> Array:
        if name in self._clients:
            return self._clients[name].convolve(stored[name], x).output
        written = self._folder / f"{name}.npy"
        self._workers[name].ask("prepare", **job, output=str(written))
        output: Array = np.load(written)
        return output.view(numpy_dtype(job["dtype"]))

    def _measured(self, ready: Sequence[str], stored: dict[str, Any], x: Array, pace: Pace) -> Row:
        """Returns each one's milliseconds, and how many times as long as TensorFlow here the others take."""
        blocks: dict[str, list[dict[str, float]]] = {name: [] for name in ready}
        for _ in range(pace.rounds):
            for name, found in blocks.items():
                if name in self._clients:
                    found.append(_called(self._clients[name], stored[name], x, pace.seconds))
                else:
                    found.append(self._workers[name].ask("measure", seconds=pace.seconds))
        over = {}
        here = [block["whole_ms"] for block in blocks.get(TENSORFLOW, ())]
        for name, key in ((SHARED, "compute_ms"), (SHARED, "whole_ms"), (GRPC, "whole_ms"), (TORCH, "whole_ms")):
            if here and name in blocks:
                # Quotients of neighbours, because the machine is not the same from round to round.
                quotients = (mine[key] / other for mine, other in zip(blocks[name], here, strict=True))
                over[f"{name} {key}"] = statistics.median(quotients)
        medians = {
            name: {key: statistics.median(block[key] for block in found) for key in found[0]}
            for name, found in blocks.items()
        }
        return {"subjects": medians, "over": over}

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the server and the other processes."""
        self._opened.close()


def right(result: dict[str, Any]) -> bool:
    """Returns whether the tests passed, some were not skipped, and every answer of the server was there and right."""
    tests = result.get("tests")
    if tests is not None and (tests["status"] or tests.get("tests", 0) <= tests.get("skipped", 0)):
        return False
    for row in result["rows"]:
        checked = (row["checks"].get(way, {}).get("ok", False) for way in (SHARED, GRPC))
        if not all(checked) or not all(check["ok"] for check in row["checks"].values()):
            return False
    return True


def _called(client: convserve.Client, layer: Any, x: Array, seconds: float) -> dict[str, float]:
    """Returns milliseconds of a call, and of it of what the server computed."""
    subject = Subject(lambda _: client.convolve(layer, x), lambda result: result.timing.compute_us)
    block = closed_loop(subject, 1, seconds)
    if not block.answers:
        raise RuntimeError(f"no call was answered: {block.failure}")
    return {"whole_ms": statistics.median(block.latencies) * 1e3, "compute_ms": statistics.median(block.notes) / 1e3}
