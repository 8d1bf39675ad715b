"""The other frameworks' processes, seen from `gpu`: started, asked and ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.record import ROOT

_CUDA_LIBRARY = re.compile(r"lib(cudnn|cublas|cudart|cufft|cusolver|cusparse|cupti|nvrtc|nvJitLink|nccl)\w*\.so")


class WorkerError(Exception):
    """A worker could not be started, or not do what it was asked for; the text says why."""


class Worker:
    """A process that computes layers with a framework."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it.

        Raises:
            WorkerError: If it ends before it can say what it is.
        """
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`__exit__` closes it)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env=dict(environment),
        )  # fmt: skip
        try:
            self.about = self.ask("about")
        except WorkerError:
            self.close()
            raise

    def ask(self, what: str, **job: Any) -> dict[str, Any]:
        """Returns what it answers.

        Raises:
            WorkerError: If it failed or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **job}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = [each for each in self._log.read().splitlines() if each.strip()]
            raise WorkerError(said[-1][:200] if said else f"it ended with status {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise WorkerError(answer["failure"])
        return answer

    def close(self) -> None:
        """Ends it."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it ended with something unread
                pipe.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self.close()


def environment_for_torch(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns an environment without what was set up for TensorFlow.

    Both frameworks look for a cuDNN by the same name. So folders with libraries of CUDA's, and folders of Python
    packages among which is TensorFlow, are taken out of the paths; the driver's folder stays.
    """
    kept = dict(environment)
    for variable, foreign in (("LD_LIBRARY_PATH", _has_cuda_library), ("PYTHONPATH", _has_tensorflow)):
        if variable in kept:
            folders = [each for each in kept[variable].split(":") if each and not foreign(Path(each))]
            kept[variable] = ":".join(folders)
            if not folders:
                del kept[variable]
    return kept


def _has_cuda_library(folder: Path) -> bool:
    driver = "libnvidia-ml.so.1", "libcuda.so.1"
    if not folder.is_dir() or any((folder / name).exists() for name in driver):
        return False
    return any(_CUDA_LIBRARY.match(each.name) for each in folder.iterdir())


def _has_tensorflow(folder: Path) -> bool:
    return (folder / "tensorflow").is_dir()
