"""Which signals ask a program to stop. The command line and the server take the same ones."""

from __future__ import annotations

import signal


def stop_signals() -> set[signal.Signals]:
    """Returns SIGINT, SIGTERM and SIGHUP, which Windows has not; but for a SIGHUP that is ignored, as by `nohup`."""
    numbers = {signal.SIGINT, signal.SIGTERM}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.add(signal.SIGHUP)
    return numbers
