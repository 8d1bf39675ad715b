"""The threads of a blocking `map`."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import convserve


def test_a_thread_that_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with convserve.Client() as client:
        outputs = client.map(convserve.Conv2D(1, 1), [np.zeros((1, 2, 2, 1), "f4")])
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            next(outputs)
