"""Every Conv2D of five well-known models against Keras: the same layer and weights here and on a server.

    python tests/agreement.py [--models ResNet50,InceptionV3] [--json FILE]

Each layer gets an input of the shape that it has in its model, batch 1, normally distributed. Service and Keras agree
where the outputs' largest difference is at most 1e-5 of the largest output. Layers with equal configuration and input
shape are computed once and counted each. The exit status is 1 if a layer disagrees, and its name is printed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, `tests` is found from here

import numpy as np

import convserve
from tests.support.keras.truth import disagreement, keras
from tests.support.servers.server_process import running_server

MODELS = ("ResNet50", "MobileNetV2", "EfficientNetB0", "InceptionV3", "DenseNet121")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A layer as it stands in a model.

    Attributes:
        name: The model's and the layer's name.
        layer: The layer, with its weights.
        input_shape: Of its input in the model, with a batch of 1.
        count: How many layers of the model have this configuration and input shape.
    """

    name: str
    layer: Any
    input_shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Row:
    """A model's line in the table."""

    model: str
    layers: int
    distinct: int
    worst: float
    worst_layer: str
    seconds: float
    disagreeing: tuple[str, ...]


def cases(model_name: str) -> list[Case]:
    """Returns the distinct `keras.layers.Conv2D` of a model of `keras.applications` with random weights."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, model_name)(weights=None)
    found: dict[str, list[Any]] = {}
    for layer in model.layers:
        if type(layer) is keras.layers.Conv2D:  # not its subclasses, such as DepthwiseConv2D
            config = {**layer.get_config(), "name": None}
            found.setdefault(json.dumps([config, layer.input.shape[1:]], sort_keys=True), []).append(layer)
    return [
        Case(f"{model_name}.{same[0].name}", same[0], (1, *same[0].input.shape[1:]), len(same))
        for same in found.values()
    ]


def worst_ratio(client: convserve.Client, case: Case) -> float:
    """Returns the disagreement of service and Keras over one layer; infinity where shapes or dtypes differ."""
    x = np.random.default_rng(0).standard_normal(case.input_shape, dtype=np.float32)
    expected = np.asarray(case.layer(x))
    found = client.convolve(convserve.Layer.from_keras(case.layer), x).output
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    return disagreement(found, expected)


def rows(client: convserve.Client, models: Sequence[str]) -> Iterator[Row]:
    """Yields each model's line."""
    for model in models:
        started = time.monotonic()
        distinct = cases(model)
        ratios = {case.name: worst_ratio(client, case) for case in distinct}
        worst = max(ratios, key=lambda name: ratios[name])
        yield Row(
            model=model,
            layers=sum(case.count for case in distinct),
            distinct=len(distinct),
            worst=ratios[worst],
            worst_layer=worst,
            seconds=time.monotonic() - started,
            disagreeing=tuple(name for name, ratio in ratios.items() if not ratio <= TOLERANCE),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a layer disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)
    models = given.models.split(",")
    if not set(models) <= set(MODELS):
        parser.error(f"--models: Expected some of {', '.join(MODELS)}. Received {given.models}.")
    print(f"{'model':<16}{'layers':>7}{'distinct':>10}{'worst ratio':>13}{'seconds':>9}  layer with the worst ratio")
    done = []
    with running_server() as server, convserve.Client(server.target) as client:
        info = client.info()
        for row in rows(client, models):
            done.append(row)
            figures = f"{row.layers:>7}{row.distinct:>10}{row.worst:>13.1e}{row.seconds:>9.1f}"
            print(f"{row.model:<16}{figures}  {row.worst_layer}", flush=True)
    disagreeing = [name for row in done for name in row.disagreeing]
    layers, worst = sum(row.layers for row in done), max(row.worst for row in done)
    versions = f"convserve {info.version}, TensorFlow {info.tensorflow_version}, Keras {info.keras_version}"
    print(f"{versions}: {layers} layers, worst ratio {worst:.1e}, allowed {TOLERANCE:.0e}")
    if given.json:
        figures = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": versions,
            "tolerance": TOLERANCE,
            "models": [vars(row) for row in done],
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    for name in disagreeing:
        print(f"{name} disagrees with Keras", file=sys.stderr)
    return 1 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
