"""`convserve batch` over many photographs while client and server are killed in turn: is each done, once and right?

    python -m tests.endurance.batch --items 10000 --kills 5

Photographs are crops of the one that matplotlib ships. In each round the client is killed (kill -9) and started again
with --resume, and the server is killed under it and started again on the same address. Afterwards every output is
compared with Keras, bit by bit, which holds because all numbers are small integers. `--compare` also times an
uninterrupted run and the same work in a tf.data loop in one process. The exit status is 1 if an item was lost, doubled
or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import cbook
from PIL import Image

from convserve import Client, Conv2D
from convserve.files.images import read_image
from tests.support import processes
from tests.support.servers.server_process import RunningServer, Serve, running_server

KERNEL = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 4)).astype("f4")
LAYER = Conv2D(4, 3, strides=2, padding="same", use_bias=False, data_format="channels_last")
_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Batches:
    """What came of it.

    Attributes:
        items: How many there were.
        client_kills: How often the client was killed.
        server_kills: How often the server was killed.
        right: How many have an output that is Keras'.
        lost: How many have none.
        doubled: How many the journal has as done more than once.
        wrong: How many have another output.
        strange_files: How many files there are in the output folder that nobody expects.
        client_mib: The client's memory in tenths of its longest run, the most in each, in MiB.
        grown_bytes: By how much the client's memory grew from the first half of its longest run to the second.
    """

    items: int
    client_kills: int
    server_kills: int
    right: int
    lost: int
    doubled: int
    wrong: int
    strange_files: int
    client_mib: tuple[int, ...]
    grown_bytes: int


def make_photographs(folder: Path, items: int, side: int) -> None:
    """Writes crops, in folders of a thousand."""
    photo = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    rng = np.random.default_rng(0)
    for number in range(items):
        left, top = rng.integers(0, photo.width - side), rng.integers(0, photo.height - side)
        path = folder / f"{number // 1000:02}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + side, top + side)).save(path, quality=90)


class _Client:
    """`convserve batch` in a process of its own, whose memory is looked at."""

    def __init__(self, folder: Path, target: str, *options: str) -> None:
        words = ("batch", str(folder / "photos"), "--layer", "trial", "-o", str(folder / "out"), "--resume", "--quiet")
        self.log = (folder / "client.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "convserve", *words, "--target", target, *options],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.memory: list[int] = []
        self._journal = folder / "out" / "journal.jsonl"

    def wait_for(self, done: int) -> bool:
        """Waits until so many items are noted as done; returns False if the client ends before."""
        return self._wait(lambda: _noted(self._journal) >= done)

    def wait(self) -> int:
        """Waits for the client's end, and returns its exit status."""
        self._wait(lambda: False)
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + _TIMEOUT_S
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < end
            try:
                self.memory.append(processes.status(self.process.pid, "VmRSS"))
            except (AssertionError, OSError):  # it has ended meanwhile
                break
            time.sleep(0.02)
        return condition()


def _noted(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b'{"done"')
    except FileNotFoundError:
        return 0


def batch_often_killed(items: int, kills: int, side: int = 224, *, serve: Serve = running_server) -> Batches:
    """Runs it: in each of `kills` rounds the client is killed, and then the server."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        make_photographs(folder / "photos", items, side)
        address = f"unix://{folder}/socket"

        def started() -> RunningServer:
            options = ("--listen", address, "--shared-memory", "--store", str(folder / "store"))
            return stack.enter_context(serve(*options))

        server = started()
        with Client(address) as client:
            client.put(LAYER, kernel=KERNEL, name="trial")
        runs = [_Client(folder, address)]
        client_kills = server_kills = 0
        moments = sorted(random.Random(0).sample(range(1, items), 2 * kills))
        for number, moment in enumerate(moments):
            if not runs[-1].wait_for(moment):
                break
            if number % 2 == 0:
                runs[-1].kill()
                client_kills += 1
                runs.append(_Client(folder, address))
            else:
                server.process.kill()
                server.process.wait()
                server_kills += 1
                server = started()
        status = runs[-1].wait()
        runs[-1].log.close()
        assert status == 0, (folder / "client.log").read_text()
        memory = max((each.memory for each in runs), key=len)
        return Batches(
            items=items,
            client_kills=client_kills,
            server_kills=server_kills,
            **_compared(folder, items),
            client_mib=tuple(int(max(each) / 2**20) for each in np.array_split(memory, 10) if len(each)),
            grown_bytes=max(memory[len(memory) // 2 :]) - max(memory[len(memory) // 4 : len(memory) // 2 + 1]),
        )


def _keras() -> Callable[[Any], Any]:
    import keras

    layer = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, data_format="channels_last")
    layer.build((None, None, None, 3))
    layer.set_weights([KERNEL])
    return layer


def _compared(folder: Path, items: int) -> dict[str, int]:
    """Compares every output with Keras', and the journal with the outputs."""
    layer = _keras()
    found: Counter[str] = Counter()
    names = sorted((folder / "photos").rglob("*.jpg"))
    assert len(names) == items
    for path in names:
        output = folder / "out" / path.relative_to(folder / "photos").with_suffix(".npy")
        if not output.exists():
            found["lost"] += 1
            continue
        truth = np.asarray(layer(read_image(path).astype(np.float32)))[0]
        found["right" if np.array_equal(np.load(output), truth) else "wrong"] += 1
    lines = map(json.loads, (folder / "out" / "journal.jsonl").read_text().splitlines())
    done = Counter(line["done"] for line in lines if "done" in line)
    assert len(done) == items - found["lost"]
    files = {each.name for each in (folder / "out").rglob("*") if each.is_file()}
    strange = len(files) - found["right"] - found["wrong"] - len({"journal.jsonl", "report.json"} & files)
    return {
        "right": found["right"],
        "lost": found["lost"],
        "wrong": found["wrong"],
        "doubled": sum(1 for count in done.values() if count > 1),
        "strange_files": strange,
    }


def compare_speed(items: int, side: int = 224) -> dict[str, float]:
    """Returns items per second of an uninterrupted run, and of a tf.data loop in one process that does the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photographs(folder / "photos", items, side)
        with running_server("--listen", f"unix://{folder}/socket", "--shared-memory") as server:
            with Client(server.target) as client:
                client.put(LAYER, kernel=KERNEL, name="trial").__call__(np.zeros((1, side, side, 3), "u1"))
            run = _Client(folder, server.target)
            assert run.wait() == 0
            run.log.close()
        report = json.loads((folder / "out" / "report.json").read_text())
        script = f"from tests.endurance.batch import tf_data_loop; tf_data_loop({str(folder)!r})"
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        seconds = float(answer.stdout.split()[-1])
    batch, loop = items / report["seconds"], items / seconds
    return {"batch_per_s": round(batch, 1), "tf_data_per_s": round(loop, 1), "ratio": round(batch / loop, 3)}


def tf_data_loop(folder: str) -> None:
    """Does the same work in this process: reads, decodes, computes, writes; prints the seconds."""
    import tensorflow as tf

    source, target = Path(folder) / "photos", Path(folder) / "loop"
    names = sorted(map(str, source.rglob("*.jpg")))
    layer = tf.function(_keras(), reduce_retracing=True)

    def read(name: Any) -> Any:
        return name, tf.cast(tf.io.decode_jpeg(tf.io.read_file(name), channels=3), tf.float32)[tf.newaxis]

    data = tf.data.Dataset.from_tensor_slices(names).map(read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    layer(next(iter(data))[1])
    start = time.perf_counter()
    for name, x in data:
        path = (target / Path(name.numpy().decode()).relative_to(source)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, layer(x).numpy()[0])
    print(time.perf_counter() - start)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.batch", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments.compare:
        print(json.dumps(compare_speed(arguments.items, arguments.side)))
    found = batch_often_killed(arguments.items, arguments.kills, arguments.side)
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.right == found.items and not (found.doubled or found.strange_files) else 1


if __name__ == "__main__":
    sys.exit(main())
