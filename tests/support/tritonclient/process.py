"""Triton's own client as tests call it: in its own environment and process, with the names that it has in Python.

The environment is .venv-tritonclient, which `make test` makes.
"""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.repository import ROOT

PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
KINDS = ("blocking", "awaited")


class InferenceServerError(Exception):
    """tritonclient raised its InferenceServerException.

    Attributes:
        status: The gRPC status that it names, such as NOT_FOUND; None if the client itself refused.
        message: Its text.
    """

    def __init__(self, status: str | None, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = None if status is None else status.removeprefix("StatusCode.")
        self.message = message


class TritonClient:
    """An InferenceServerClient elsewhere. What is not defined here is its own method, under its own name.

    Attributes:
        kind: "blocking", or "awaited" for that of asyncio.
    """

    def __init__(self, kind: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.kind = kind
        self._process, self._log = process, log

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._ordered, "caller", "call", name)

    def infer(
        self, model_name: str, inputs: dict[str, Any], outputs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Calls `infer`.

        Args:
            model_name: The model's.
            inputs: Each an array, or (region, bytes, offset, shape, datatype) where it lies in shared memory.
            outputs: Those asked for, each None or (region, bytes, offset); None for all.
            options: `infer`'s own.

        Returns:
            The response's head as JSON, and the outputs that came with it under "arrays".

        Raises:
            InferenceServerError: If the client raises it.
        """
        return self._ordered("caller", "infer", model_name, inputs, outputs, **options)

    def async_infer(self, *arguments: Any, **options: Any) -> Any:
        """As `infer`, with what the callback of a blocking client is given."""
        return self._ordered("caller", "async_infer", *arguments, **options)

    def stream(self, *requests: dict[str, Any]) -> list[Any]:
        """Returns the answers to requests over a stream, in their order: as of `infer`, or an error's text."""
        return self._ordered("caller", "stream", *(((), request) for request in requests))

    def message(self, method: str, request: dict[str, Any]) -> Any:
        """Returns the answer to a message that need not be one of the client's, both as JSON."""
        return self._ordered("stub", "call", method, request)

    def infer_message(self, request: dict[str, Any]) -> Any:
        """As `infer`, for a message."""
        return self._ordered("stub", "infer", request)

    def stream_messages(self, *requests: dict[str, Any]) -> list[Any]:
        """As `stream`, for messages."""
        return self._ordered("stub", "stream", *requests)

    def region(self, method: str, name: str, *arguments: Any) -> Any:
        """Creates, writes to, reads or destroys system shared memory with `tritonclient.utils.shared_memory`."""
        return self._ordered("regions", method, name, *arguments)

    def _ordered(self, whose: str, method: str, *arguments: Any, **options: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((whose, method, arguments, options), self._process.stdin)
            self._process.stdin.flush()
            kind, *answer = pickle.load(self._process.stdout)  # noqa: S301 (from tests/support/tritonclient/caller.py)
        except (BrokenPipeError, EOFError):
            raise AssertionError(f"tritonclient's process ended:\n{self._log.read_text()}") from None
        if kind == "defect":
            raise AssertionError(answer[0])
        if kind == "error":
            raise InferenceServerError(*answer)
        return answer[0]


@contextmanager
def triton_client(kind: str, target: str) -> Iterator[TritonClient]:
    """Starts tritonclient, blocking or awaited, with a server; ends it afterwards."""
    assert PYTHON.exists(), f"Expected tritonclient's environment in {PYTHON.parents[1]}: `make test` makes it."
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        # -I: nothing of ours is found there, whatever PYTHONPATH says here.
        command = [PYTHON, "-I", Path(__file__).with_name("caller.py"), kind, target]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            yield TritonClient(kind, process, Path(log.name))
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=60) == 0, Path(log.name).read_text()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
