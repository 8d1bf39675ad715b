"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from convserve import cli
from tests.support.servers.server_process import RunningServer, numpy_server

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Returns what makes a command's runner: given its words, that returns the exit status, stdout and stderr."""

    def runner(target: str, *command: str) -> Run:
        def run(*words: object) -> tuple[int, str, str]:
            status = cli.main([*command, *map(str, words), "--target", target])
            captured = capsys.readouterr()
            return status, captured.out, captured.err

        return run

    return runner


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    """A server of a file's own, whose layers nobody else lists."""
    with numpy_server() as running:
        yield running
