"""Models of keras.applications whose convolutions a server computes: is `predict` what it was, and what does it cost?

    python -m tests.endurance.applications [--models ResNet50,MobileNetV2] [--timed ResNet50] [--json FILE]

Each model has weights drawn at random, and normalizations with gammas and betas drawn too and the statistics of random
pictures. Every convolution is to be remote, and outputs within 1e-4 of the largest one, with `fuse=True` and without.
Of MobileNetV2 and ResNet50 a `predict` of one picture of 224x224 is timed as well, as the least of several, for the
machine may be busy. The exit status is 1 if a model disagrees or keeps a convolution.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np

from convserve.keras import plan, report, to_remote
from convserve.keras.layers.steps import convolution_kind
from tests.support.keras.models import apart, with_random_statistics
from tests.support.servers.server_process import running_server

MODELS = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "ResNet50", "ResNet50V2", "DenseNet121", "Xception", "InceptionV3",
    "InceptionResNetV2", "EfficientNetB0", "EfficientNetV2B0", "NASNetMobile", "VGG16", "ConvNeXtTiny",
)  # fmt: skip
TIMED = ("MobileNetV2", "ResNet50")
TOLERANCE, SIZE, BATCH, REPETITIONS = 1e-4, 96, 2, 15


@dataclass(frozen=True)
class Row:
    """What came of one model.

    Attributes:
        model: Its name.
        convolutions: How many it has.
        kept: How many of them stayed local, added up over both.
        calls: Of one predict, without and with `fuse=True`.
        megabytes: That are sent and received then, likewise.
        worst: The largest difference of outputs, relative to the largest output, likewise.
        seconds: Of one predict of a picture of 224x224 by Keras, and then likewise; empty where it is not timed.
    """

    model: str
    convolutions: int
    kept: int
    calls: tuple[int, int]
    megabytes: tuple[float, float]
    worst: tuple[float, float]
    seconds: tuple[float, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether every convolution is remote, and outputs agree."""
        return self.convolutions > 0 and self.kept == 0 and max(self.worst) <= TOLERANCE

    def line(self) -> str:
        """Returns a row of a table in Markdown."""
        calls, megabytes = " to ".join(map(str, self.calls)), " to ".join(f"{each:.1f}" for each in self.megabytes)
        worst = ", ".join(f"{each:.0e}" for each in self.worst)
        return f"| {self.model} | {self.convolutions} | {self.kept} | {calls} | {megabytes} | {worst} |"


def model_of(name: str, size: int, **parameters: Any) -> Any:
    """Returns a model of keras.applications with nothing trivial in it."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make(input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None, **parameters)
    with_random_statistics(model)
    normalizations = [each for each in model._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0  # the statistics are those of the pictures
    if normalizations:
        model(pictures(size, 8, seed=1), training=True)
    return model


def pictures(size: int, number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, size, size, 3)).astype(np.float32)


def compared(name: str, model: Any, target: str, x: np.ndarray) -> Row:
    """Returns what becomes of a model on a server."""
    expected, planned = model.predict(x, verbose=0), plan(model, x.shape)
    convolutions = [each.name for each in model._flatten_layers() if convolution_kind(each)]
    worst, kept = [], 0
    for fuse in (False, True):
        remote = to_remote(model, target, timeout=600, fuse=fuse)
        found = report(remote)
        kept += len(set(convolutions) - {name for call in found.remote for name in call})
        worst.append(apart(remote.predict(x, verbose=0), expected))
    traffic = (planned.separate, planned.fused)
    return Row(
        name,
        len(convolutions),
        kept,
        calls=tuple(each.count for each in traffic),
        megabytes=tuple((each.input_bytes + each.output_bytes) / 1e6 for each in traffic),
        worst=tuple(worst),
    )


def timed(name: str, target: str) -> tuple[tuple[float, ...], Any]:
    """Returns the seconds of one predict by Keras, without and with `fuse=True`, and the plan of it."""
    model, x = model_of(name, 224), pictures(224, 1)
    seconds = []
    for each in (model, to_remote(model, target, timeout=600), to_remote(model, target, timeout=600, fuse=True)):
        each.predict(x, verbose=0)  # it is traced, and the weights go to the server
        taken = []
        for _ in range(REPETITIONS):
            began = time.perf_counter()
            each.predict(x, verbose=0)
            taken.append(time.perf_counter() - began)
        seconds.append(min(taken))
    return tuple(seconds), plan(model, x.shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--timed", default=",".join(TIMED))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = []
    print("| model | convolutions | kept | calls | MB | differences |\n|---|---|---|---|---|---|")
    with running_server() as server:
        for name in filter(None, given.models.split(",")):
            row = compared(name, model_of(name, SIZE), server.target, pictures(SIZE, BATCH))
            rows.append(row)
            print(row.line(), flush=True)
            keras.backend.clear_session()
        for name in filter(None, given.timed.split(",")):
            seconds, planned = timed(name, server.target)
            print(f"\n{name}, one picture of 224x224: Keras, remote, fused {[round(each, 4) for each in seconds]} s")
            print(planned, flush=True)
            rows = [replace(row, seconds=seconds) if row.model == name else row for row in rows]
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
