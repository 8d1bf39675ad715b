"""A job of Ray Data's over photographs while an actor, a worker and the server are killed: is each row right, and once?

    python -m tests.many_machines ray   # makes the environment
    .venv-ray/bin/python -m tests.endurance.ray_photographs --photographs 10000

It makes the photographs, reads them with `read_images`, convolves them with `convserve.ray.Convolve` on a server that
it starts, and writes Parquet. Meanwhile it kills (SIGKILL) an actor of the stage, a worker that reads, and the server,
which it starts again on the same address a little later. The exit status is 1 if a row was lost, doubled or wrong, or
the job was over before all three were killed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet
import ray

import convserve
import convserve.ray

SIZE, BATCH = 64, 32
_AWAY_S = 3.0  # from the server's end until it starts again, which takes some more
LAYER = convserve.Layer(
    convserve.Conv2D(8, 5, strides=4, activation="relu", data_format="channels_last"),
    np.random.default_rng(1).normal(size=(5, 5, 3, 8)).astype("f4"),
    np.random.default_rng(2).normal(size=8).astype("f4"),
)


# A large picture, gradients with noise, of which each photograph is another part.
_WHOLE = (
    np.indices((512, 512)).sum(0)[..., None] // np.array([5, 6, 8])
    + np.random.default_rng(0).integers(0, 50, (512, 512, 3))
).astype(np.uint8)


def photograph(number: int) -> Any:
    """Returns a picture that is like no other, of up to 200,000."""
    y, x = divmod(number, _WHOLE.shape[1] - SIZE)
    return _WHOLE[y : y + SIZE, x : x + SIZE]


class Counted(convserve.ray.Convolve):
    """The stage, which notes each batch: its process, rows, and that process' memory."""

    def __init__(self, log: str, **options: Any) -> None:
        super().__init__(**options)
        self._log = log

    def __call__(self, batch: Any) -> Any:
        made = super().__call__(batch)
        with open(self._log, "a") as log:  # one write of a line is whole
            log.write(f"{os.getpid()} {len(batch['image'])} {memory_mb(os.getpid())}\n")
        return made


def memory_mb(process: int | str) -> int:
    """Returns a process' resident memory."""
    line = next(each for each in Path(f"/proc/{process}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


class Server:
    """A server of its own process, which can be killed and started again on its address."""

    def __init__(self, folder: Path) -> None:
        self._store, self.address = folder / "layers", "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "convserve", "serve", "--device", "cpu", "--store", str(self._store)]
        self.process = subprocess.Popen(
            [*command, "--listen", self.address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.address = line.split()[-1]
            if line.startswith("ready"):
                return
        raise RuntimeError("the server ended")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def workers(title: str) -> list[int]:
    """Returns this job's processes that do something now by the title that Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith(f"ray::{title}") and _is_ours(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def _is_ours(process: int) -> bool:
    """Returns whether a process descends from this one; another job's on this machine does not."""
    while process > 1 and process != os.getpid():
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == os.getpid()


def batches(log: Path) -> list[tuple[int, int, int]]:
    """Returns what the stage noted: process, rows and memory of each batch."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


class Kills(threading.Thread):
    """Kills a worker that reads with the first rows, an actor after a tenth of them, and the server after a third.

    Attributes:
        killed: What was killed while the job was under way.
    """

    def __init__(self, log: Path, photographs: int, server: Server) -> None:
        super().__init__()
        self._log, self._photographs, self._server = log, photographs, server
        self.killed: list[str] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        for share, kill in (
            (0.0, lambda: self._worker("a worker", "ReadImage")),
            (0.1, lambda: self._worker("an actor", "MapWorker")),
            (0.33, self._restart),
        ):
            while sum(rows for _, rows, _ in batches(self._log)) <= share * self._photographs:
                if self.is_over.wait(0.05):
                    return
            kill()

    def _worker(self, what: str, title: str) -> None:
        while not self.is_over.wait(0.01):
            if processes := workers(title):
                os.kill(processes[0], signal.SIGKILL)
                self.killed.append(what)
                return

    def _restart(self) -> None:
        self._server.kill()
        self.killed.append("the server")
        self.is_over.wait(_AWAY_S)
        self._server.start()


def rows(folder: Path) -> Iterator[tuple[int, Any]]:
    """Yields the number of each photograph that was written, and its features."""
    for file in sorted(folder.rglob("*.parquet")):
        table = pyarrow.parquet.read_table(file)
        for chunk in table.to_batches():
            features = chunk.column("features").to_numpy_ndarray()  # Ray's own type, of tensors
            yield from zip((int(Path(str(path)).stem) for path in chunk.column("path")), features, strict=True)


def check(folder: Path, photographs: int) -> dict[str, int]:
    """Returns how many rows are right, lost, doubled and wrong, by Keras of this process."""
    layer, seen, wrong = LAYER.to_keras(), collections.Counter[int](), 0
    written = rows(folder)
    while part := [each for _, each in zip(range(256), written, strict=False)]:
        images = np.stack([photograph(number) for number, _ in part]).astype("f4")
        expected = np.asarray(layer(images))
        for (number, features), truth in zip(part, expected, strict=True):
            seen[number] += 1
            wrong += not np.allclose(features, truth, rtol=1e-4, atol=1e-2)
    once = sum(count == 1 for count in seen.values())
    lost = photographs - len(seen)
    return {"once": once, "lost": lost, "doubled": len(seen) - once, "wrong": wrong}


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.ray_photographs", description=__doc__)
    parser.add_argument("--photographs", type=int, default=10_000)
    photographs = parser.parse_args().photographs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, log, written = folder / "photographs", folder / "batches", folder / "features"
        pictures.mkdir()
        for number in range(photographs):
            PIL.Image.fromarray(photograph(number)).save(pictures / f"{number:06}.png", compress_level=1)
        print(f"made {photographs} photographs", flush=True)
        server = Server(folder)
        ray.init(num_cpus=4, object_store_memory=400 * 2**20, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        kills = Kills(log, photographs, server)
        began = time.monotonic()
        try:
            kills.start()
            images = ray.data.read_images(
                str(pictures), include_paths=True, mode="RGB", override_num_blocks=max(8, photographs // 100)
            )
            options = {"layers": LAYER, "server": server.address, "log": str(log)}
            actors = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
            done = images.map_batches(Counted, fn_constructor_kwargs=options, batch_size=BATCH, compute=actors)
            done.write_parquet(str(written))
        finally:
            kills.is_over.set()
            kills.join()
            server.kill()
        seconds = time.monotonic() - began
        noted = batches(log)
        for share in (0.25, 0.5, 0.75, 1):
            part = noted[: max(1, round(share * len(noted)))]
            latest = {process: memory for process, _, memory in part[-20:]}
            print(f"after {share:4.0%} of the batches: {', '.join(f'{each} MB' for each in latest.values())}")
        found = check(written, photographs)
    print(
        json.dumps(
            {"photographs": photographs, "seconds": round(seconds, 1), "killed": kills.killed, **found}, indent=2
        )
    )
    is_right = found == {"once": photographs, "lost": 0, "doubled": 0, "wrong": 0}
    return 0 if is_right and len(kills.killed) == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
