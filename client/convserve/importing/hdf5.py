"""HDF5 files from strangers: groups, arrays and texts that are in the file itself, and nothing else.

Links, external storage, virtual arrays and filters lead to other files and plugins; each is refused before libhdf5
follows it. On damaged bytes libhdf5 loops or crashes now and then, so h5py runs in a process of its own,
`hdf5_program.py`, which is given the file's bytes, answers questions, and is ended when it has taken too long.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from convserve.errors import InvalidWeightsError, MissingDependencyError, short_repr
from convserve.importing.untrusted import Budget, refusal, start_program
from convserve.tensors.codec import Array, float32_of_bfloat16_bits

# Deflate, shuffle, Fletcher-32: those that are part of every libhdf5, so that no plugin is looked for.
_BUILT_IN_FILTERS = {1, 2, 3}
_PROGRAM = Path(__file__).with_name("hdf5_program.py")
# A sound file takes a hundredth of it.
_ALWAYS_SECONDS = 30.0
_BYTES_A_SECOND = 2**20


class Hdf5File:
    """A file that a process of its own has open; paths in it are absolute, without the "/" at the beginning.

    Every method raises InvalidRequestError for what is not in the file itself, and OSError if the process has ended.
    InvalidWeightsError is for an array that no layer can have, beside which others may be sound.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float, budget: Budget) -> None:
        self._process = process
        self._seconds = seconds
        self._ends = time.monotonic() + seconds
        self._budget = budget

    def has(self, path: str) -> bool:
        """Whether there is a group or an array under a path."""
        return bool(self._described(path)["kind"] != "nothing")

    def members(self, path: str) -> list[str]:
        """Returns the names in a group; none if there is no group."""
        listed: list[str] = self._ask("members", path)
        return listed

    def array(self, path: str) -> Array | None:
        """Returns an array of floating-point numbers, or None if there is nothing under this path.

        bfloat16, of which HDF5 knows only the bits, becomes float32, without loss.
        """
        described = self._described(path)
        if described["kind"] == "nothing":
            return None
        if described["kind"] == "array" and described["is_elsewhere"]:
            raise refusal("arrays that are in the file itself", f"{short_repr(path)}, which is in others")
        if described["kind"] != "array":
            raise InvalidWeightsError.for_field(path, "an array", "a group")
        if not set(described["filters"]) <= _BUILT_IN_FILTERS:
            expected = "an array that is stored as it is or deflated, without filters of others' making"
            raise InvalidWeightsError.for_field(path, expected, f"one with the filters {described['filters']}")
        shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
        if dtype.kind != "f" and not described["is_bfloat16"]:
            raise InvalidWeightsError.for_field(path, "floating-point numbers", f"dtype {dtype}")
        size = math.prod(shape) * dtype.itemsize
        self._budget.spend(size, f"the array {short_repr(path)}")
        self._ask("elements", path)
        data = bytearray(size)
        if cast(Any, self._process.stdout).readinto(data) < size:
            raise self._end()
        elements = np.ndarray(shape, dtype, data)
        return float32_of_bfloat16_bits(elements.view("<u2")) if dtype == np.dtype("V2") else elements

    def text(self, path: str, name: str) -> str | None:
        """Returns an attribute that is a text, or None; that of the file itself under the path ""."""
        texts = self._ask("texts", path, name)
        return None if texts is None else "".join(texts[:1])

    def texts(self, path: str, name: str) -> list[str]:
        """Returns an attribute that is a list of texts; Keras splits a long one into `name0`, `name1` and so on."""
        texts: list[str] | None = self._ask("texts", path, name)
        if texts is not None:
            return texts
        parts: list[list[str]] = []
        while (part := self._ask("texts", path, f"{name}{len(parts)}")) is not None:
            parts.append(part)
        return [text for part in parts for text in part]

    def _described(self, path: str) -> dict[str, Any]:
        described: dict[str, Any] = self._ask("describe", path)
        if described["kind"] == "link":
            raise refusal("an HDF5 file without links", f"{short_repr(path)}, which is one")
        return described

    def _ask(self, *question: str) -> Any:
        return self._exchange(json.dumps(question).encode(), b"\n")

    def _exchange(self, *parts: bytes) -> Any:
        """Returns the answer to a question, or to the file itself, which comes first."""
        stdin = cast(IO[bytes], self._process.stdin)
        try:
            for part in parts:
                stdin.write(part)
            stdin.flush()
        except BrokenPipeError as error:
            raise self._end() from error
        line = cast(IO[bytes], self._process.stdout).readline()
        if not line.endswith(b"\n"):
            raise self._end()
        message = json.loads(line)
        if "error" in message:
            raise ValueError(message["error"])
        return message["answer"]

    def _end(self) -> OSError:
        status = self._process.wait()
        if time.monotonic() >= self._ends:
            return OSError(f"libhdf5 did not come to an end within {self._seconds:.0f} seconds, so it may be damaged")
        return OSError(f"libhdf5 crashed over it (exit status {status}), so it may be damaged")


@contextmanager
def opened(data: bytes, budget: Budget) -> Iterator[Hdf5File]:
    """Opens the file of these bytes, of whose arrays as much may be read as the budget allows.

    Raises ValueError or OSError if it is no HDF5 file, or MissingDependencyError without h5py.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingDependencyError("Reading .keras and .h5 files needs h5py: pip install 'convserve[import]'.")
    seconds = _ALWAYS_SECONDS + len(data) / _BYTES_A_SECOND
    process = start_program(_PROGRAM, str(seconds))
    file = Hdf5File(process, seconds, budget)
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        file._exchange(struct.pack("<Q", len(data)), data)
        del data  # which may be gigabytes
        yield file
    finally:
        timer.cancel()
        process.kill()
        process.communicate()  # closes what led there, and waits
