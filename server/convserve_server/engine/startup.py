"""Starts TensorFlow without its noise. It is imported by `load_engine`, not with this module."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convserve_server.convolver import Engine


def load_engine(device: str, tf32: bool, *, verbose: bool) -> Engine:
    """Returns the TensorFlow engine on a device.

    Args:
        device: "auto", "cpu" or "gpu:N".
        tf32: Whether TensorFloat-32 may be used.
        verbose: Whether TensorFlow may log as it likes. What its C++ side writes before is for `held_stderr`.

    Raises:
        SettingsError: If there is no such device.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if not verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from convserve_server.engine.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(device, tf32)


@contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and shows it only if the block fails.

    TensorFlow's C++ side writes there before any of its own settings can stop it, and gRPC's whatever its settings.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
