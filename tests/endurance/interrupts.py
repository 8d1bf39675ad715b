"""`convserve batch` that is interrupted twice, at random moments, while its server does not answer: does it always end?

    python -m tests.endurance.interrupts --times 200

Each time the server is stopped (SIGSTOP) somewhere in a run, and two signals follow within 0 to 300 ms. The exit status
is 1 if a process was still there after --bound seconds, ended with a status that no signal explains, or printed a
traceback. The seconds that the slowest took are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from convserve import Client, Conv2D
from tests.support.servers.server_process import Serve, running_server
from tests.support.waiting import eventually

_LAYER = Conv2D(4, 3, use_bias=False, data_format="channels_last")
_ITEMS = 2000


@dataclass
class Interrupts:
    """What came of it.

    Attributes:
        times: How many processes were interrupted.
        slowest_s: The most seconds that one took to end after its second signal.
        defects: What went wrong, a line for each process.
    """

    times: int = 0
    slowest_s: float = 0.0
    defects: list[str] = field(default_factory=list)


def interrupt_often(times: int, bound_s: float = 60.0, seed: int = 0, *, serve: Serve = running_server) -> Interrupts:
    """Interrupts so many runs, each in a process of its own."""
    chance, outcome = random.Random(seed), Interrupts()
    with tempfile.TemporaryDirectory() as name, serve() as server:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(_ITEMS):
            np.save(folder / "in" / f"{number:04}.npy", np.zeros((40, 40, 3), np.uint8))
        with Client(server.target) as client:
            client.put(_LAYER, kernel=np.ones((3, 3, 3, 4), "f4"), name="trial")
        for trial in range(times):
            output = folder / f"out{trial}"
            words = ("batch", str(folder / "in"), "-o", str(output), "--layer", "trial", "--target", server.target)
            process = subprocess.Popen(
                [sys.executable, "-m", "convserve", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            eventually(lambda: _has_begun(output) or process.poll() is not None, 120)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
            server.process.send_signal(signal.SIGSTOP)
            try:
                _interrupt(process, chance, bound_s, outcome)
            finally:
                server.process.send_signal(signal.SIGCONT)
    return outcome


def _has_begun(output: Path) -> bool:
    journal = output / "journal.jsonl"
    return journal.exists() and b'{"done"' in journal.read_bytes()


def _interrupt(process: subprocess.Popen[str], chance: random.Random, bound_s: float, outcome: Interrupts) -> None:
    first, second = (chance.choice((signal.SIGINT, signal.SIGTERM)) for _ in range(2))
    process.send_signal(first)
    while _is_pending(process.pid, first):  # the system makes one signal of two of a kind that are pending at once
        time.sleep(0.0005)
    gap_s = chance.choice((0, chance.uniform(0, 0.001), chance.uniform(0, 0.05), 0.3))
    time.sleep(gap_s)
    sent = time.monotonic()
    process.send_signal(second)
    outcome.times += 1
    trial = f"{outcome.times}: {first.name}, {second.name} after {gap_s * 1e3:.2f} ms"
    try:
        _, err = process.communicate(timeout=bound_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        outcome.defects.append(f"{trial}: still there after {bound_s:g} s")
        return
    outcome.slowest_s = max(outcome.slowest_s, round(time.monotonic() - sent, 2))
    # A run may be over before the first arrives, and the second may come when Python is about to end.
    if process.returncode not in (128 + first, 128 + second, -second, 0) or "Traceback" in err:
        outcome.defects.append(f"{trial}: {process.returncode}: {err}")


def _is_pending(pid: int, number: signal.Signals) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("ShdPnd:") and int(line.split()[1], 16) >> (number - 1) & 1 for line in lines)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.interrupts", description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--bound", type=float, default=60.0)
    arguments = parser.parse_args()
    outcome = interrupt_often(arguments.times, arguments.bound)
    print(json.dumps(asdict(outcome), indent=2))
    return 1 if outcome.defects else 0


if __name__ == "__main__":
    sys.exit(main())
