"""All that strangers can do, at once and for as long as one likes, beside one polite caller.

    python -m tests.endurance.siege --seconds 3600

The server has the memory, threads and descriptors of a small container: a control group where this user may make one,
else the limits of its process, which count data that it has reserved instead of memory. Each attack is a process of its
own, which goes on whatever it is answered, at a lower priority than the server, as both have the same processors. The
polite caller makes a small call after the other, and now and then a large one. The exit status is 1 if the server died,
a call of the polite caller failed for good or was answered wrongly, or nobody was answered for a minute.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from convserve import Client, Conv2D, ConvserveError, RetryRule, activations, cli
from tests.endurance import fuzz, starvation
from tests.support.processes import descriptors, ended_afterwards, status
from tests.support.raw.silent import SilentConnections
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer, running_server

_ONCE = RetryRule(attempts=1)
_WEDGED_S = 60.0
_GROUPS = Path("/sys/fs/cgroup")


@dataclass
class Siege:
    """What came of it. Times are in milliseconds.

    Attributes:
        contained: Whether a control group bounded the server.
        calls: The polite caller's small calls, each answered rightly.
        p50: Their latency, retries among it.
        p99: Likewise.
        worst: Likewise.
        large: Its large calls, each answered rightly.
        large_p50: Their latency.
        failed: Its calls that failed, and answers that were wrong.
        peak_bytes: The most memory that the server had.
        peak_threads: The most threads that were seen.
        peak_descriptors: The most descriptors that were seen.
        restarts: How often each attack was started.
        alive: Whether the server still runs.
    """

    contained: bool
    calls: int = 0
    p50: float = np.inf
    p99: float = np.inf
    worst: float = np.inf
    large: int = 0
    large_p50: float = np.inf
    failed: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    peak_threads: int = 0
    peak_descriptors: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    alive: bool = True


def siege(seconds: float, memory: int, threads: int, files: int) -> Siege:
    """Besieges a server of its own."""
    with ExitStack() as stack:
        groups = stack.enter_context(_groups(memory, threads))
        limits = {resource.RLIMIT_NOFILE: files} | ({} if groups else {resource.RLIMIT_DATA: memory})
        server = stack.enter_context(
            running_server(
                *("--shared-memory", "--metrics", "127.0.0.1:0"),
                program=("tests.endurance.siege", "--serve-in", *map(str, groups), "--"),
                limits=limits,
            )
        )
        found = Siege(contained=bool(groups))
        attackers = {name: _attacker(stack, name, server) for name in ATTACKS}
        starts, latencies, large = Counter(ATTACKS), [], []
        end = time.monotonic() + seconds
        with Client(server.target, timeout=_WEDGED_S) as client:
            while time.monotonic() < end and server.process.poll() is None:
                _time(latencies, found.failed, lambda: client.conv2d(_SMALL, kernel=_KERNEL), _SMALL_OUTPUT)
                if len(latencies) % 50 == 0:
                    _time(large, found.failed, lambda: client.conv2d(_LARGE, kernel=_KERNEL), _LARGE_OUTPUT)
                with suppress(OSError):  # it may have ended
                    found.peak_threads = max(found.peak_threads, status(server.process.pid, "Threads"))
                    found.peak_descriptors = max(found.peak_descriptors, descriptors(server.process.pid))
                for name, process in attackers.items():
                    if process.poll() is not None:
                        starts[name] += 1
                        attackers[name] = _attacker(stack, name, server)
                time.sleep(0.02)
        found.alive = server.process.poll() is None
        found.peak_bytes = _peak(groups) or (status(server.process.pid, "VmHWM") if found.alive else 0)
        if not found.alive:
            found.failed.append(server.log.read_text()[-2000:])
    found.calls, found.large, found.restarts = len(latencies), len(large), dict(starts)
    if latencies:
        found.p50, found.p99, found.worst = (float(np.percentile(latencies, at)) for at in (50, 99, 100))
    if large:
        found.large_p50 = float(np.median(large))
    return found


_KERNEL = np.ones((3, 3, 3, 4), "f4")
_SMALL, _SMALL_OUTPUT = np.ones((1, 8, 8, 3), "f4"), np.full((1, 6, 6, 4), 27, "f4")
_LARGE, _LARGE_OUTPUT = np.ones((4, 300, 300, 3), "f4"), np.full((4, 298, 298, 4), 27, "f4")


def _time(latencies: list[float], failed: list[str], call: Callable[[], np.ndarray], expected: np.ndarray) -> None:
    began = time.perf_counter()
    try:
        if not np.array_equal(call(), expected):
            failed.append("a wrong answer")
    except ConvserveError as error:
        failed.append(f"{type(error).__name__}: {error}"[:300])
    latencies.append(1000 * (time.perf_counter() - began))


def _attacker(stack: ExitStack, name: str, server: RunningServer) -> subprocess.Popen[str]:
    command = [
        "nice",
        sys.executable,
        "-m",
        "tests.endurance.siege",
        "--attack",
        name,
        "--target",
        server.target,
        "--metrics",
        server.metrics,
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return stack.enter_context(ended_afterwards(command, text=True, cwd=ROOT, **pipes))


# The attacks. Each goes on until its process is ended, or ends and is started anew.


def _silent_connections(target: str, metrics: str) -> None:
    for speaks in (True, False):
        with SilentConnections(target, speaks=speaks) as connections:
            connections.open(450)
            time.sleep(20)


def _slow_scrapes(target: str, metrics: str) -> None:
    host, port = urlsplit(metrics).hostname, urlsplit(metrics).port
    with ExitStack() as stack:
        for _ in range(64):
            scrape = stack.enter_context(socket.create_connection((host, port), 5))
            scrape.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        time.sleep(5)


def _memory_sockets(target: str, metrics: str) -> None:
    with Client(target, timeout=5) as client, ExitStack() as stack:
        address = "\0" + client.info().shared_memory_address
        for _ in range(300):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(1)
            connection.connect(address)
        time.sleep(5)


def _random_messages(target: str, metrics: str) -> None:
    known = fuzz.corpus()
    for number in range(1000):
        fuzz.send_changed(target, known, int(time.time()), number)


def _calls(*calls: Callable[[Client], object]) -> Callable[[str, str], None]:
    """Returns an attack that makes calls, whatever they are answered."""

    def attack(target: str, metrics: str) -> None:
        with Client(target, timeout=2, retry=_ONCE) as client:
            while True:
                for call in calls:
                    with suppress(ConvserveError):
                        call(client)

    return attack


def _new_parameters(client: Client) -> None:
    slope = np.random.default_rng().uniform(0.1, 0.3)
    client.conv2d(_SMALL, kernel=_KERNEL, activation=activations.LeakyReLU(negative_slope=slope))


def _new_names(client: Client) -> None:
    kernel = np.random.default_rng().random((3, 3, 3, 4), "f4")
    client.put(Conv2D(4, 3, use_bias=False), kernel=kernel, name=f"siege/{time.time_ns()}" + 180 * "x")


_PIXEL = np.ones((1, 4, 4, 8), "f4")
_WHOLE = np.ones((8, 512, 512, 8), "f4")

_ATTACKS: dict[str, Callable[[str, str], None]] = {
    "silent connections": _silent_connections,
    "slow scrapes": _slow_scrapes,
    "memory sockets": _memory_sockets,
    "random messages": _random_messages,
    "far taps": _calls(
        lambda client: client.conv2d(_PIXEL, 8, 3, groups=8, dilation_rate=10_000, padding="same"),
        lambda client: client.conv2d(_PIXEL, 8, 3, groups=4, dilation_rate=2**30, padding="same"),
    ),
    "large kernels": _calls(
        lambda client: client.convolve(64 * [Conv2D(1, 439, padding="same", kernel_initializer="ones")], _SMALL)
    ),
    "large tensors, given up": _calls(lambda client: client.conv2d(_WHOLE, 32, 3, padding="same")),
    "new parameters": _calls(_new_parameters),
    "new names": _calls(_new_names),
}
ATTACKS = (*_ATTACKS, *starvation.ATTACKS)


def _attack(name: str, target: str, metrics: str) -> None:
    if name in _ATTACKS:
        _ATTACKS[name](target, metrics)
    else:
        sys.argv[1:] = ["--attack", name, "--target", target, "--connections", "2", "--calls", "50"]
        starvation.main()


# The container.


@contextmanager
def _groups(memory: int, threads: int) -> Iterator[list[Path]]:
    """Makes control groups with limits, as Linux has them in version 2 or 1; yields none where that is not allowed."""
    if (_GROUPS / "cgroup.controllers").exists():
        limits = {_GROUPS: {"memory.max": memory, "memory.swap.max": 0, "pids.max": threads}}
    else:
        limits = {
            _GROUPS / "memory": {"memory.limit_in_bytes": memory},
            _GROUPS / "pids": {"pids.max": threads},
        }
    made: list[Path] = []
    try:
        for parent, values in limits.items():
            group = parent / f"convserve-siege-{time.time_ns()}"
            group.mkdir()
            made.append(group)
            for name, value in values.items():
                with suppress(FileNotFoundError):  # there is no swap
                    (group / name).write_text(str(value))
    except OSError:
        _remove(made)
        made = []
    try:
        yield made
    finally:
        _remove(made)


def _remove(groups: list[Path]) -> None:
    for group in groups:
        with suppress(OSError):
            group.rmdir()


def _peak(groups: list[Path]) -> int:
    for group in groups:
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with suppress(OSError):
                return int((group / name).read_text())
    return 0


def _serve(groups: list[str], arguments: list[str]) -> int:
    for group in groups:
        Path(group, "cgroup.procs").write_text("0")
    return cli.main(["serve", *arguments])


def main() -> int:
    """Runs it; returns the exit status."""
    if sys.argv[1:2] == ["--serve-in"]:
        divide = sys.argv.index("--")
        return _serve(sys.argv[2:divide], sys.argv[divide + 1 :])
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.siege", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--memory", type=int, default=3_000_000_000, help="bytes that the server may have")
    parser.add_argument("--threads", type=int, default=600)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--attack", choices=ATTACKS, help="make this attack alone, on --target")
    parser.add_argument("--target")
    parser.add_argument("--metrics")
    arguments = parser.parse_args()
    if arguments.attack:
        _attack(arguments.attack, arguments.target, arguments.metrics)
        return 0
    found = siege(arguments.seconds, arguments.memory, arguments.threads, arguments.files)
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.alive and not found.failed else 1


if __name__ == "__main__":
    sys.exit(main())
