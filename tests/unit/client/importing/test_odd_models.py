"""Configurations of models in which anything may stand anywhere: each is read, skipped or refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import importing
from convserve.importing import hdf5
from tests.support.keras.archives import WEIGHTS, conv2d, model, write_archive
from tests.support.keras.graphs import (
    ARRAYS,
    NORMAL,
    X,
    as_keras_2,
    block,
    entry,
    following,
    functional,
    normalization,
    others,
)

INNER = functional(X, following(conv2d("c"), "x"), normalization("b", "c"), outputs=["b", 0, 0], name="inner")
MODELS = [
    block(),
    functional(X, as_keras_2(conv2d("c"), "x"), as_keras_2(normalization("b", axis=[3]), "c"),
               as_keras_2(entry("LeakyReLU", "l", alpha=0.1), "b"), outputs=[["l", 0, 0]]),
    model("m", *others(), normalization("b"), kind="Sequential"),
    functional(X, following(INNER, "x", "inner"), normalization("after", "inner"), following(conv2d("d"), "after"),
               outputs=[["d", 0, 0]]),
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 10**400, 1.5, float("nan"), float("inf"), "", "x", "c", "relu", "same", "causal",
    "channels_first", "mixed_float16", "\0", "a/b", [], [1], [1, 2], [[1, 2], [3, 4]], ["c", 0, 0], [["c", 0, 0]], {},
    {"class_name": "ReLU", "config": {}}, {"config": None}, "ReLU", "Conv2D", "BatchNormalization", "Functional",
    "Sequential", "RemoteChain", "RemoteConv2D", "SeparableConv1D", "ZeroPadding2D", "mine", "keras",
    "convserve.keras",
]  # fmt: skip
PLACES = ("depthwise_conv2d", "separable_conv2d", "conv1d", "separable_conv1d", "depthwise_conv1d")
GROUPS: dict[str, Any] = {
    **{place: dict(zip("012", arrays.values(), strict=False)) for place, arrays in zip(PLACES, ARRAYS.values(),
       strict=True)},
    "conv2d": WEIGHTS, "conv2d_1": WEIGHTS, "batch_normalization": NORMAL, "functional/layers/conv2d": WEIGHTS,
    "functional/layers/batch_normalization": NORMAL,
}  # fmt: skip


ARRAYS_BY_PATH = {
    f"layers/{place}/vars/{name}": np.asarray(array) for place, of in GROUPS.items() for name, array in of.items()
}


class File:
    """A file of weights that needs no process of its own."""

    def has(self, path: str) -> bool:
        return any(each.startswith(path) for each in ARRAYS_BY_PATH)

    def members(self, path: str) -> list[str]:
        return sorted({each[len(path) + 1 :].split("/")[0] for each in ARRAYS_BY_PATH if each.startswith(f"{path}/")})

    def array(self, path: str) -> Any:
        return ARRAYS_BY_PATH.get(path)

    def text(self, *_: str) -> None:
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields where something stands in a configuration."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from places(member, (*path, name))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def change(config: Any, rng: random.Random) -> None:
    """Leaves something out, doubles it, or puts a value or another part in its place."""
    known = [path for path in places(config) if path]
    *before, last = rng.choice(known)
    around, kind = at(config, tuple(before)), rng.random()
    if kind < 0.15:
        del around[last]
    elif kind < 0.25 and isinstance(around, list):
        around.insert(last, copy.deepcopy(around[last]))
    else:
        around[last] = copy.deepcopy(at(config, rng.choice(known)) if kind < 0.35 else rng.choice(VALUES))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_stands_in_a_configuration_is_read_skipped_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    @contextmanager
    def opened(*_: Any) -> Iterator[File]:
        yield File()

    monkeypatch.setattr(hdf5, "opened", opened)
    rng, read, causes = random.Random(seed), 0, []
    for _ in range(60):
        config = copy.deepcopy(MODELS[seed])
        for _ in range(rng.choice([1, 1, 2, 4])):
            change(config, rng)
        path = write_archive(tmp_path / "x.keras", config, b"")
        for folds in (True, False):
            try:
                read += bool(importing.read(path, fold_batch_norm=folds).layers)
            except convserve.InvalidArgumentError as error:
                causes.append(error.__cause__)
    assert read > 30  # most is sound but for one layer
    assert not any(causes)  # what went wrong inside, rather than was refused, is a defect
