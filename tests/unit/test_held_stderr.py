"""What is written to stderr while TensorFlow starts."""

from __future__ import annotations

import os
import tempfile

import pytest

from convserve_server.engine.startup import held_stderr


def test_it_is_held_back_and_what_comes_after_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with held_stderr():
        os.write(2, b"noise")
    os.write(2, b"news")
    assert capfd.readouterr().err == "news"


def test_it_is_shown_where_the_start_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        with held_stderr():
            os.write(2, b"why")
            raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        start()
    assert capfd.readouterr().err == "why"


def test_it_needs_no_folder_that_can_be_written_to(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as container:
        container.setattr(tempfile, "tempdir", "/nonexistent")
        with held_stderr():
            os.write(2, b"noise")
    assert capfd.readouterr().err == ""
