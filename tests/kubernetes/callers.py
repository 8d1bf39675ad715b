"""Callers of a Service, until a file is there: without retries, with them, one that maps items, and one by name.

    python callers.py TARGET STOP_FILE [NAME]

The last one is there if a name is given, which it gives to a layer, and then looks up for each call.

It prints what came of it as JSON: of each caller how many answers it had, and the first errors and wrong answers. It
needs nothing but the client, and so runs in a pod of any image of ours.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from convserve import Client, Conv2D, ConvserveError, RetryRule

_KERNEL = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 4)).astype("f4")
_MIDDLE = _KERNEL.sum((0, 1, 2))  # of the output of an image of ones
_SHOWN = 10


class Caller:
    """What one of them had."""

    def __init__(self, stop: Path) -> None:
        self.answers, self.wrong, self._stop = 0, list[str](), stop

    def check(self, number: int, y: np.ndarray | ConvserveError) -> None:
        """Counts an answer, or keeps what is wrong with it."""
        if isinstance(y, ConvserveError):
            self.wrong.append(f"{number}: {type(y).__name__}: {y}")
        elif not (y[0, 3, 3] == (number % 97) * _MIDDLE).all():
            self.wrong.append(f"{number}: {y[0, 3, 3]}")
        else:
            self.answers += 1

    def inputs(self) -> Iterator[np.ndarray]:
        """Yields constant images, whose outputs in the middle are the sum of the kernel, until the end."""
        for number in itertools.count():
            if self._stop.exists() or len(self.wrong) >= _SHOWN:
                return
            yield np.full((1, 24, 24, 3), number % 97, "f4")


def calls(client: Client, caller: Caller, name: str = "") -> None:
    """Makes one call after the other, each of the layer that the name leads to then if there is one."""
    layer = client.put(Conv2D(4, 3, use_bias=False), kernel=_KERNEL, name=name or None)
    for number, x in enumerate(caller.inputs()):
        try:
            y = (client.layer(name) if name else layer)(x)
        except ConvserveError as error:
            caller.check(number, error)
        else:
            caller.check(number, y)


def mapped(client: Client, caller: Caller) -> None:
    """Maps items."""
    layer = client.put(Conv2D(4, 3, use_bias=False), kernel=_KERNEL)
    for number, y in enumerate(client.map(layer, caller.inputs(), errors="return", max_bytes=2**20)):
        caller.check(number, y)


def main(target: str, stop: Path, name: str = "") -> int:
    """Calls until the file is there; returns the exit status."""
    kinds: dict[str, tuple[Callable[[Client, Caller], None], RetryRule]] = {
        "without retries": (calls, RetryRule(attempts=1)),
        "with retries": (calls, RetryRule()),
        "mapped items": (mapped, RetryRule()),
    }
    if name:
        kinds["by name"] = partial(calls, name=name), RetryRule()
    found = {name: Caller(stop) for name in kinds}

    def run(name: str) -> None:
        work, retry = kinds[name]
        try:
            with Client(target, timeout=30, retry=retry) as client:
                work(client, found[name])
        except ConvserveError as error:
            found[name].wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(name,)) for name in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = {name: {"answers": each.answers, "wrong": each.wrong[:_SHOWN]} for name, each in found.items()}
    print(json.dumps(shown), flush=True)
    return 1 if any(each.wrong or not each.answers for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
