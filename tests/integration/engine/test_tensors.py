"""What the engine uses of TensorFlow that TensorFlow does not promise: these tests are the first to fail."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, Layer
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import numpy_dtype
from convserve_server.layer_store.durable.files import LayerFiles
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from convserve_server.memory.aligned import aligned_constant


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def tensors(tf: Any) -> Any:
    from convserve_server.engine import tensors

    return tensors


def test_the_op_of_a_function_call_takes_a_concrete_function_and_its_captured_inputs(tf: Any, tensors: Any) -> None:
    captured = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([])], autograph=False)
    def function(x: Any, y: Any) -> list[Any]:
        return [x * captured + y, tf.cast(tf.shape(x), tf.int64)]

    call = tensors.direct_call(function.get_concrete_function())
    for size in (1, 5):
        x = tf.range(size, dtype=tf.float32)
        for found, expected in zip(call([x, tf.constant(1.0)]), function(x, tf.constant(1.0)), strict=True):
            np.testing.assert_array_equal(found, expected)
    captured.assign(3.0)
    assert float(call([x, tf.constant(0.0)])[0][1]) == 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16", "uint8", "int8"])
def test_arrays_and_tensors_share_their_memory(tensors: Any, dtype: str) -> None:
    array = aligned_empty((3, 5), numpy_dtype(dtype))
    array[...] = 7
    for given in (array, aligned_constant(array)):
        back = tensors.to_array(tensors.to_tensor(given, on_gpu=False), dtype, on_gpu=False)
        assert (back.dtype, back.shape, back.flags.writeable) == (array.dtype, (3, 5), False)
        assert np.shares_memory(back.view("u1"), array.view("u1"))


def test_memory_lives_as_long_as_what_is_on_it(tensors: Any) -> None:
    array = aligned_empty((1000,), "f4")
    array[...] = 7
    memory, tensor = weakref.ref(array.base), tensors.to_tensor(aligned_constant(array), on_gpu=False)
    del array
    back = tensors.to_array(tensor, "float32", on_gpu=False)
    del tensor
    gc.collect()
    assert memory() is not None
    assert (back == 7).all()
    del back
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "mixed_float16"])
@pytest.mark.parametrize("durable", [False, True])
def test_a_stored_layer_is_computed_with_where_it_is(
    tf: Any, tensors: Any, tmp_path: Path, dtype: str, durable: bool
) -> None:
    config = Conv2D(8, 3, data_format="channels_last", dtype=dtype)
    given = Layer(config, np.ones((3, 3, 4, 8)), np.ones(8))
    # With a folder and no memory for layers it comes from its file.
    store = LayerStore(0, LayerFiles(tmp_path, 2**30)) if durable else LayerStore(2**30)
    store.put(given, Move("a"))
    stored = store.layer("a")
    for weight in (stored.kernel, stored.bias):
        assert weight is not None
        assert not weight.flags.writeable
        tensor = tensors.weight_to_tensor(weight, on_gpu=False)
        assert tensor.dtype.name == weight.dtype.name
        bits = tf.bitcast(tensor, tf.uint16) if dtype == "bfloat16" else tensor
        assert np.shares_memory(tensors.to_array(bits, weight.dtype.name, on_gpu=False).view("u1"), weight.view("u1"))
