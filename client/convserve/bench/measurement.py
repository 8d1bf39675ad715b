"""Measures workloads in rounds: the layer in process, the server and the bare connection take turns of a second or so.

Neighbours share whatever else the machine does in those seconds, so their quotients hold on a noisy machine where the
figures themselves do not.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import Any

from convserve._sync.client import Client
from convserve.bench import machine, summary
from convserve.bench.cases import IN_PROCESS, SERVER, BenchmarkCase
from convserve.bench.echo import Echo
from convserve.bench.loops import Block, Subject, closed_loop, open_loop
from convserve.bench.workloads import Workload
from convserve.display.units import counted
from convserve.layers.on_cpu import onednn_computes

_MIN_ROUNDS = 3
_MAX_BLOCK_S = 2.0


@dataclass(frozen=True)
class Load:
    """How calls are made: by callers in a closed loop, else at a rate in an open one."""

    callers: int | None = None  # how many call again as soon as they are answered
    rate: float = 0.0  # calls per second, whether or not others are answered

    def put_on(self, subject: Subject, seconds: float) -> Block:
        """Makes calls for so long."""
        if self.callers is None:
            return open_loop(subject, self.rate, seconds)
        return closed_loop(subject, self.callers, seconds)

    def __str__(self) -> str:
        """Returns "8 callers" or "200 calls/s"."""
        if self.callers is None:
            return f"{self.rate:g} calls/s"
        return counted(self.callers, "caller")


class Measurement(AbstractContextManager["Measurement"]):
    """Measures workloads under loads. `run` may be interrupted; `document` says what there is so far."""

    def __init__(self, client: Client, target: str, loads: Sequence[Load], *, timeout: float) -> None:
        """Asks the server what it is; all callers share the client, and a raw echo may take `timeout` seconds."""
        self._client, self._target, self._loads = client, target, list(loads)
        self._info = client.info()
        self._cases: list[BenchmarkCase] = []
        self._blocks: defaultdict[tuple[BenchmarkCase, Load, str], list[Block]] = defaultdict(list)
        self._seconds = 0.0
        self._opened = ExitStack()
        # gRPC joins channels of one target and the same options, so the echo takes the client's own connection.
        channel = self._opened.enter_context(closing(client._access.channel(client._target)))
        self._echo = Echo(channel, timeout)

    def add(self, workload: Workload, *, with_layer_in_process: bool = True) -> None:
        """Prepares a workload: its layer is stored, the first calls are made and their answers checked."""
        case = BenchmarkCase(workload, self._client, self._echo, tf32=self._info.tf32, with_layer=with_layer_in_process)
        self._opened.enter_context(closing(case))
        self._cases.append(case)

    def run(self, seconds: float, progress: Callable[[str], None] = lambda _: None) -> None:
        """Measures for about so long over all workloads, each at least once; what there is at Ctrl-C is kept."""
        turns = [(case, load, name) for case in self._cases for load in self._loads for name in case.subjects]
        rounds = max(_MIN_ROUNDS, math.ceil(seconds / len(turns) / _MAX_BLOCK_S))
        begin = time.perf_counter()
        try:
            for number in range(rounds):
                for index, turn in enumerate(turns):
                    left = begin + seconds - time.perf_counter()
                    if left < 0 and number > 0:
                        return
                    case, load, name = turn
                    progress(f"{case.workload.name}, {load}: {name}")
                    turns_left = (rounds - number) * len(turns) - index
                    block = load.put_on(case.subjects[name], max(0.0, left) / turns_left)
                    if name == SERVER:
                        case.check(block.last)
                    block.last.clear()
                    self._blocks[turn].append(block)
        finally:
            self._seconds = time.perf_counter() - begin

    def document(self) -> dict[str, Any]:
        """Returns everything that was found, as values that JSON has."""
        return {
            **machine.described(),
            "target": self._target,
            "server": {
                "convserve": self._info.version,
                "tensorflow": self._info.tensorflow_version,
                "devices": [f"{device.name} {device.description}".strip() for device in self._info.devices],
                "tf32": self._info.tf32,
                "onednn": self._info.onednn,
            },
            "onednn": onednn_computes() if any(IN_PROCESS in case.subjects for case in self._cases) else None,
            "shared_memory": self._client._tensors.sharing.memory() is not None,
            "seconds": self._seconds,
            "workloads": [
                case.document() | {"loads": [self._of_load(case, load) for load in self._loads]} for case in self._cases
            ],
        }

    def _of_load(self, case: BenchmarkCase, load: Load) -> dict[str, Any]:
        plan = case.plan
        blocks = {name: self._blocks[case, load, name] for name in case.subjects}
        document: dict[str, Any] = {
            "load": str(load),
            "callers": load.callers,
            "rate": load.rate or None,
            "subjects": {
                name: summary.figures(listed, plan.input_bytes, plan.output_bytes) for name, listed in blocks.items()
            },
            "over": {name: summary.ratios(blocks[SERVER], listed) for name, listed in blocks.items() if name != SERVER},
        }
        document["subjects"][SERVER] |= summary.server_side(blocks[SERVER])
        return document

    def __exit__(self, *_: object) -> None:
        """Deletes the layers that were not stored before, and closes the echo's connection."""
        self._opened.close()


def is_right(document: dict[str, Any]) -> bool:
    """Returns whether no answer was wrong and no call failed."""
    workloads = document["workloads"]
    subjects = (load["subjects"] for workload in workloads for load in workload["loads"])
    failed = any(figures["failures"] for named in subjects for figures in named.values())
    return not failed and all(workload["check"]["ok"] is not False for workload in workloads)
