"""Runs of a batch with a stand-in for the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convserve import Conv2D, Layer
from convserve.batch.inputs import find_inputs
from convserve.batch.job import Job
from convserve.batch.journal import NAME, Identity, Journal
from convserve.batch.outputs import OutputFolder
from convserve.batch.runner import Batch, is_done
from convserve.batch.sources import Reading
from convserve.errors import ConvserveError
from convserve.tensors.codec import Array

KERNEL = np.float32([[[[2]]]])
CONFIG = Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")
DOUBLED = Layer(CONFIG, KERNEL)  # of inputs with one channel: each value twice


class StandIn:
    """Answers as `Client.map` does, with each input doubled, or what `answer` returns.

    Attributes:
        seen: The inputs' sums, in the order in which they came.
    """

    def __init__(self, answer: Callable[[Array], Any] = lambda x: x * np.float32(2)) -> None:
        self.answer = answer
        self.seen: list[float] = []

    def map(self, layers: list[Layer], inputs: Iterable[Array], **options: Any) -> Iterator[Any]:
        assert layers == [DOUBLED]
        assert options == {"as_completed": True, "errors": "return", "output_dtype": None}
        for number, x in enumerate(inputs):
            self.seen.append(float(x.sum()))
            yield number, self.answer(np.array(x))


class Run:
    """A folder of inputs and one for outputs, in which runs follow each other.

    So many inputs are there at first: 0.npy, 1.npy and so on, whose values are their numbers.
    """

    def __init__(self, folder: Path, inputs: int = 0) -> None:
        self.inputs, self.output = folder / "in", folder / "out"
        self.inputs.mkdir()
        for number in range(inputs):
            self.save(f"{number}.npy", number)
        self.batch: Batch | None = None

    def save(self, name: str, value: float, shape: tuple[int, ...] = (3, 4, 1)) -> None:
        (self.inputs / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(self.inputs / name, np.full(shape, value, np.float32))

    def job(self, *, retry_failed: bool = False, format_name: str = "npy") -> Job:
        """Returns what a run that goes on is given; its journal is to be closed."""
        found = find_inputs([str(self.inputs)], self.output)
        outputs = OutputFolder(self.output, format_name)
        identity = Identity(str(found.folder), [DOUBLED.digest.hex()], {"format": format_name})
        journal = Journal(self.output, identity, partial(is_done, found, outputs), resume=True)
        return Job([DOUBLED], found, outputs, journal, Reading("channels_last"), retry_failed=retry_failed)

    def __call__(self, client: StandIn, **options: Any) -> Batch:
        job = self.job(**options)
        self.batch = Batch(job)
        with closing(job.journal):
            self.batch.run(client)  # type: ignore[arg-type]
        return self.batch

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Items done, skipped, failed and left of the latest run."""
        assert self.batch is not None
        found = self.batch.tally.counts
        return found.done, found.skipped, found.failed, found.left

    @property
    def noted(self) -> list[str]:
        """The inputs of which the journal says that they are done, each as often as it does."""
        lines = map(json.loads, (self.output / NAME).read_text().splitlines())
        return sorted(line["done"] for line in lines if "done" in line)


def failing(number: int, error: ConvserveError) -> Callable[[Array], Any]:
    """Returns answers of which those to an input of this value are an error."""
    return lambda x: error if x.flat[0] == number else x * np.float32(2)
