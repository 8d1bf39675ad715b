"""One workload, ready to be measured: everything that can be called for it, and what the answers should be."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from convserve._sync.client import Client
from convserve.bench import correctness, in_process
from convserve.bench.echo import Echo
from convserve.bench.loops import Subject
from convserve.bench.workloads import Workload
from convserve.errors import ConvserveError
from convserve.protocol.results import Result

SERVER, IN_PROCESS, ECHO = "convserve", "in process", "raw echo"
_MAX_MESSAGE_BYTES = 2**31 - 2**16


class BenchmarkCase:
    """A workload, its layer stored on the server, its first calls made; `plan` is what a call comes to."""

    def __init__(self, workload: Workload, client: Client, echo: Echo, *, tf32: bool, with_layer: bool) -> None:
        """Stores the layer, makes the first call of everything, and checks the first answers.

        `tf32` says whether the server may use TensorFloat-32, `with_layer` whether to compute the layer here too.
        """
        self.workload, self.plan = workload, workload.plan()
        self.subjects: dict[str, Subject] = {}  # what can be called: the server, and the others where possible
        self.absent: dict[str, str] = {}  # why one of them is not there
        self._client = client
        self._inputs = workload.inputs()
        self._limit = correctness.limit(workload.layer.config, tf32)
        self._difference = 0.0
        self._expected: list[correctness.Expectation] = []
        self._against = ""
        self._was_there = not client.missing([workload.layer])
        self._stored = client.put(workload.layer)
        try:
            self._add_in_process(with_layer)
            self.subjects[SERVER] = Subject(
                self._call, lambda result: (result.timing.queue_us, result.timing.compute_us, result.batch_size)
            )
            self.check({caller: self._call(caller) for caller in range(len(self._inputs))})
            self._add_echo(echo)
        except BaseException:
            self.close()
            raise

    def _call(self, caller: int) -> Result:
        x = self._inputs[caller % len(self._inputs)]
        return self._client.convolve(self._stored, x, output_dtype=self.workload.output_dtype)

    def _add_in_process(self, wanted: bool) -> None:
        inputs = self._inputs
        if not wanted:
            self.absent[IN_PROCESS] = "not asked for"
        elif not in_process.is_possible():
            self.absent[IN_PROCESS] = "TensorFlow and Keras are not installed here"
        else:
            try:
                function = in_process.function(self.workload)
                shape, dtype = self.plan.output_shape, self.plan.output_dtype
                self._expected = [correctness.Expectation(shape, dtype, function(x)) for x in inputs]
            except Exception as error:  # whatever TensorFlow says, the server can be measured all the same
                self.absent[IN_PROCESS] = str(error).partition("\n")[0][:200]
            else:
                self._against = "the same layer in process"
                self.subjects[IN_PROCESS] = Subject(lambda caller: function(inputs[caller % len(inputs)]))
                return
        expectations = (correctness.by_definition(self.workload.layer, x, self.plan) for x in inputs)
        self._expected = [expectation for expectation in expectations if expectation is not None]
        self._against = "the definition of convolution, at some places" if self._expected else ""

    def _add_echo(self, echo: Echo) -> None:
        if max(self.plan.input_bytes, self.plan.output_bytes) > _MAX_MESSAGE_BYTES:
            self.absent[ECHO] = "no message can have as many bytes"
            return
        request = echo.request(self.plan.input_bytes, self.plan.output_bytes)
        try:
            echo(request)
        except ConvserveError as error:
            self.absent[ECHO] = str(error).partition("\n")[0]
        else:
            self.subjects[ECHO] = Subject(lambda _: echo(request))

    def check(self, answers: dict[int, Result]) -> None:
        """Compares the server's answers, by the number of the caller, with what they should be."""
        for caller, answer in answers.items() if self._expected else ():
            expected = self._expected[caller % len(self._expected)]
            self._difference = max(self._difference, expected.difference(answer.output))

    def document(self) -> dict[str, Any]:
        """Returns what the workload is, and whether its answers were right."""
        workload, plan = self.workload, self.plan
        return {
            "name": workload.name,
            "layer": repr(workload.layer.config),
            "input": {"shape": list(workload.input_shape), "dtype": workload.input_dtype, "bytes": plan.input_bytes},
            "output": {"shape": list(plan.output_shape), "dtype": plan.output_dtype, "bytes": plan.output_bytes},
            "flops": plan.flops,
            "check": {
                "against": self._against,
                "difference": self._difference if math.isfinite(self._difference) else None,
                "limit": self._limit,
                "ok": self._difference <= self._limit if self._expected else None,
            },
            "absent": self.absent,
        }

    def close(self) -> None:
        """Deletes the layer, unless it was stored before."""
        if not self._was_there:
            with suppress(ConvserveError):  # it went by itself, or the server did
                self._client.delete(self._stored)
