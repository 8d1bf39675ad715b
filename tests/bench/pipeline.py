"""A pipeline: `client.map` beside the same work in a plain tf.data loop of this process, and what small items gain.

Photographs: crops of 224x224x3, uint8, through ResNet's first layer, one at a time, shared memory allowed. Both sides
take turns of some hundred items each, and the ratio is that of neighbouring turns; on a machine that does other things
too, the processor time that an item takes (of both processes together) says more. The resident memory of the server is
read after each turn; that of this process is TensorFlow's too, and tells nothing of map (tests.endurance.batch tells
it). Small items: the workload W1, sent together and each by itself.

Linux: it reads /proc. The exit status is 1 if an output is wrong, or the server grew.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import convserve
import convserve._rpc.map_items
from convserve.bench.workloads import with_weights
from tests.bench import record, tables
from tests.support.processes import processor_s, status
from tests.support.servers.server_process import RunningServer, running_server

MAX_GROWTH_BYTES = 64_000_000
_SIDE = 224
_LAYER = with_weights(
    convserve.Conv2D(64, 7, strides=2, padding="same", activation="relu", data_format="channels_last", dtype="float32"),
    (1, _SIDE, _SIDE, 3),
)
_SMALL_SHAPE = (1, 32, 32, 3)
_SMALL = with_weights(
    convserve.Conv2D(16, 3, padding="same", activation="relu", data_format="channels_last", dtype="float32"),
    _SMALL_SHAPE,
)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = record.parser("pipeline", __doc__)
    parser.add_argument("--items", type=int, help="photographs through map (10000)")
    parser.add_argument("--per-turn", type=int, default=250, help="photographs in one turn of a side (250)")
    parser.add_argument("--no-shared-memory", action="store_true", help="move tensors through the connection")
    arguments = parser.parse_args()
    items = arguments.items or (1000 if arguments.quick else 10_000)
    shared = not arguments.no_shared_memory
    result = record.begun("pipeline", arguments, path="shared memory" if shared else "gRPC")
    in_process = _in_process()
    with (
        running_server(*(("--shared-memory",) if shared else ())) as server,
        convserve.Client(server.target, shared_memory=shared) as client,
    ):
        for result["photographs"] in _photographs(in_process, server, client, items, arguments.per_turn):
            record.write(arguments, result)
        result["small"] = _small(client, 500 if arguments.quick else 2000)
        record.write(arguments, result)
    print(_shown(result))
    photographs = result["photographs"]
    grown = photographs["server_grown_bytes"] > MAX_GROWTH_BYTES
    return 1 if grown or photographs["wrong"] else 0


def _photograph() -> Any:
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file).convert("RGB"))


_PHOTOGRAPH = _photograph()


def _place(number: int) -> tuple[int, int]:
    """Returns where the crop of this number begins."""
    rows, columns = (size - _SIDE for size in _PHOTOGRAPH.shape[:2])
    return number * 7 % rows, number * 13 % columns


def _crops(numbers: range) -> Iterator[Any]:
    for number in numbers:
        row, column = _place(number)
        yield _PHOTOGRAPH[row : row + _SIDE, column : column + _SIDE]


def _in_process() -> Callable[[range], Iterator[Any]]:
    """Returns what computes crops by number in this process, as one would with tf.data."""
    import tensorflow as tf

    photograph = tf.constant(_PHOTOGRAPH)
    kernel, bias = tf.constant(_LAYER.kernel), tf.constant(_LAYER.bias)
    rows, columns = (size - _SIDE for size in _PHOTOGRAPH.shape[:2])

    def computed(number: Any) -> Any:
        row, column = tf.cast(number * 7 % rows, tf.int32), tf.cast(number * 13 % columns, tf.int32)
        x = tf.cast(photograph[tf.newaxis, row : row + _SIDE, column : column + _SIDE], tf.float32)
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 2, "SAME"), bias))[0]

    def outputs(numbers: range) -> Iterator[Any]:
        data = tf.data.Dataset.range(numbers.start, numbers.stop)
        # AUTOTUNE would compute one at a time in some turns, which takes twice as long.
        computing = data.map(computed, num_parallel_calls=os.cpu_count()).prefetch(tf.data.AUTOTUNE)
        return iter(computing.as_numpy_iterator())

    return outputs


def _photographs(
    in_process: Callable[[range], Iterator[Any]],
    server: RunningServer,
    client: convserve.Client,
    items: int,
    per_turn: int,
) -> Iterator[dict[str, Any]]:
    """Yields the result after each turn."""
    layer = client.put(_LAYER)

    def mapped(numbers: range) -> Iterator[Any]:
        return client.map(layer, _crops(numbers))

    first = range(min(per_turn, 50))  # warms both up, and is looked at in full
    pairs = zip(mapped(first), in_process(first), strict=True)
    wrong = sum(not np.allclose(ours, theirs, rtol=1e-4, atol=1e-3) for ours, theirs in pairs)
    turns: list[dict[str, Any]] = []

    def processors_s() -> float:
        return processor_s(os.getpid()) + processor_s(server.process.pid)

    for begin in range(0, items, per_turn):
        numbers = range(begin, min(begin + per_turn, items))
        before = processors_s()
        seconds, ours = _timed(mapped(numbers))
        between = processors_s()
        theirs_seconds, theirs = _timed(in_process(numbers))
        after = processors_s()
        wrong += sum(abs(a - b) > 1e-3 + 1e-4 * abs(b) for a, b in zip(ours, theirs, strict=True))
        turns.append(
            {
                "items": len(numbers),
                "per_s": round(len(numbers) / seconds, 1),
                "in_process_per_s": round(len(numbers) / theirs_seconds, 1),
                "ratio": round(theirs_seconds / seconds, 3),
                "processor_ms": round((between - before) * 1e3 / len(numbers), 2),
                "in_process_processor_ms": round((after - between) * 1e3 / len(numbers), 2),
                "server_bytes": status(server.process.pid, "VmRSS"),
            }
        )
        yield {
            "items": sum(each["items"] for each in turns),
            "wrong": int(wrong),
            "ratio": round(statistics.median(each["ratio"] for each in turns), 3),
            "server_grown_bytes": _growth([each["server_bytes"] for each in turns]),
            "turns": turns,
        }


def _timed(outputs: Iterator[Any]) -> tuple[float, list[float]]:
    """Returns how long all outputs took, and a number of each, which is all that stays of them."""
    began = time.perf_counter()
    middles = [float(y[60, 60].sum()) for y in outputs]
    return time.perf_counter() - began, middles


def _growth(sizes: list[int]) -> int:
    """Returns how much more there was in the last quarter of the turns than in the second, when all was warm."""
    quarter = max(1, len(sizes) // 4)
    return int(statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter] or sizes[:1]))


def _small(client: convserve.Client, items: int, rounds: int = 5) -> dict[str, Any]:
    """Returns items per second of W1: sent together, each in a call of its own, and in a loop that waits for each."""
    layer = client.put(_SMALL)
    images = [np.random.default_rng(seed).random(_SMALL_SHAPE, dtype=np.float32) for seed in range(16)]
    inputs = [images[number % len(images)] for number in range(items)]
    together = convserve._rpc.map_items.MAX_TOGETHER

    def mapped(most: int) -> Iterator[Any]:
        convserve._rpc.map_items.MAX_TOGETHER = most
        return client.map(layer, inputs)

    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "together_per_s": lambda: mapped(together),
        "alone_per_s": lambda: mapped(1),
        "loop_per_s": lambda: (layer(x) for x in inputs),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, outputs in ways.items():
            began = time.perf_counter()
            assert sum(1 for _ in outputs()) == items
            found[name].append(items / (time.perf_counter() - began))
    convserve._rpc.map_items.MAX_TOGETHER = together
    pairs = zip(found["together_per_s"], found["alone_per_s"], strict=True)
    return {
        "items": items,
        **{name: round(statistics.median(rates)) for name, rates in found.items()},
        "gain": round(statistics.median(a / b for a, b in pairs), 2),
    }


def _shown(result: dict[str, Any]) -> str:
    photographs, small = result["photographs"], result["small"]
    rows = [
        [f"{each['items']}", f"{each['per_s']:.0f}", f"{each['in_process_per_s']:.0f}", f"{each['ratio']:.2f}",
         f"{each['processor_ms']:.1f}", f"{each['in_process_processor_ms']:.1f}",
         f"{each['server_bytes'] / 1e6:.0f}"]
        for each in photographs["turns"]
    ]  # fmt: skip
    head = ["photographs", "map, items/s", "tf.data, items/s", "ratio", "processor, ms", "tf.data, ms",
            "server, MB"]  # fmt: skip
    return "\n".join(
        [
            tables.table(head, rows),
            f"ratio {photographs['ratio']:.2f} of {photographs['items']} photographs, {photographs['wrong']} wrong; "
            f"the server grew by {photographs['server_grown_bytes'] / 1e6:.1f} MB",
            f"small items: {small['together_per_s']} items/s, each alone {small['alone_per_s']}, in a loop "
            f"{small['loop_per_s']}; together is {small['gain']:.1f} times alone",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
