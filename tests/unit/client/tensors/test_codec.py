"""The tensor codec: every array that numpy can make arrives as its values, and bytes from a stranger are checked."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve import InvalidTensorError, MissingDependencyError
from convserve.tensors import codec
from convserve.tensors.codec import (
    FLOAT_DTYPES,
    INPUT_DTYPES,
    decode,
    encode,
    numpy_dtype,
    standard_array,
    standard_dtype,
)
from convserve.v1 import tensor_pb2

ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "uint8": 1, "int8": 1}
DTYPES = pytest.mark.parametrize("dtype", INPUT_DTYPES)


def some(dtype, shape=(2, 3, 4, 5)):
    """Returns an array of many different values."""
    return (np.arange(np.prod(shape)).reshape(shape) - 7).astype(numpy_dtype(dtype))


def message(dtype="float32", shape=(2, 3), data=None):
    number = codec.dtype_number(dtype) if isinstance(dtype, str) else dtype
    return tensor_pb2.Tensor(dtype=number, shape=shape, data=bytes(24) if data is None else data)


def refusal(call, *arguments, **keywords):
    """Returns the text of the one violation that a call raises."""
    with pytest.raises(InvalidTensorError) as caught:
        call(*arguments, **keywords)
    (violation,) = caught.value.violations
    assert violation.field == "x"
    assert violation.description.startswith("Expected ")
    assert "Received " in violation.description
    return violation.description


# The dtypes


def test_the_table_of_dtypes_is_the_contracts():
    assert {name: codec.itemsize(name) for name in INPUT_DTYPES} == ITEMSIZES
    numbers = {tensor_pb2.Dtype.Name(codec.dtype_number(name)) for name in INPUT_DTYPES}
    assert numbers == set(tensor_pb2.Dtype.keys()) - {"DTYPE_UNSPECIFIED"}
    assert set(FLOAT_DTYPES) == {name for name in INPUT_DTYPES if "float" in name}
    assert codec.dtype_number(None) == tensor_pb2.DTYPE_UNSPECIFIED


@DTYPES
def test_a_dtype_has_its_name_number_and_size(dtype):
    assert numpy_dtype(dtype).name == dtype
    assert numpy_dtype(dtype).itemsize == codec.itemsize(dtype)
    assert codec.dtype_name(codec.dtype_number(dtype), "x") == dtype


@pytest.mark.parametrize("number", [0, 7, -1, 2**31 - 1, -(2**31)])
def test_an_unknown_number_of_a_dtype_is_refused(number):
    assert f"Received {number}." in refusal(codec.dtype_name, number, "x")


def test_a_dtype_that_is_not_allowed_is_refused_by_name():
    text = refusal(codec.dtype_name, tensor_pb2.DTYPE_UINT8, "x", FLOAT_DTYPES)
    assert text == "Expected a dtype out of float32, float16, bfloat16, float64. Received uint8."


class Named:
    """Another library's dtype, such as TensorFlow's."""

    name = "bfloat16"


@pytest.mark.parametrize(
    ("given_dtype", "name"),
    [
        ("float16", "float16"),
        (np.float64, "float64"),
        (np.dtype(">f4"), "float32"),
        (float, "float64"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        (Named(), "bfloat16"),
    ],
)
def test_a_dtype_may_be_given_in_any_form_that_names_it(given_dtype, name):
    assert standard_dtype(given_dtype, "x", INPUT_DTYPES) == name


@pytest.mark.parametrize(
    "wrong", [None, "", "float", "int32", np.int64, 5, object(), ("f4", -1), {"a": 1}, "x" * 10**6]
)
def test_what_is_no_dtype_of_ours_is_refused(wrong):
    assert len(refusal(standard_dtype, wrong, "x", INPUT_DTYPES)) < 400


# Arrays of callers


@DTYPES
def test_an_array_in_standard_layout_is_taken_as_it_is(dtype):
    array = some(dtype)
    assert np.shares_memory(standard_array(array, "x"), array)
    array.flags.writeable = False
    assert np.shares_memory(standard_array(array, "x"), array)


LAYOUTS = {
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "transposed": lambda array: array.transpose(3, 1, 0, 2),
    "strided": lambda array: array[:, ::2, 1:, ::-1],
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
    "big-endian and transposed": lambda array: array.astype(array.dtype.newbyteorder(">")).T,
    "0-d": lambda array: array[1, 2, 3, 4],
    "1 x 1": lambda array: array[:1, :1, :1, :1],
}


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_array_in_any_layout_arrives_as_its_values(dtype, layout):
    given_array = layout(some(dtype))
    taken = standard_array(given_array, "x")
    assert taken.flags.c_contiguous
    sent = encode(taken)
    arrived = decode(tensor_pb2.Tensor.FromString(sent.SerializeToString()), "x")
    assert arrived.dtype == numpy_dtype(dtype)
    assert arrived.shape == given_array.shape
    assert np.array_equal(arrived.astype("f8"), given_array.astype("f8"))
    assert not arrived.flags.writeable


@given(st.sampled_from(INPUT_DTYPES), st.lists(st.integers(1, 4), max_size=8), st.randoms(use_true_random=False))
def test_every_bit_arrives(dtype, shape, random):
    elements = random.randbytes(int(np.prod(shape)) * codec.itemsize(dtype))  # NaN with payloads among them
    array = np.frombuffer(elements, numpy_dtype(dtype)).reshape(shape)
    sent = encode(standard_array(array, "x"))
    assert sent.data == elements
    assert decode(sent, "x").tobytes() == elements
    assert decode(codec.head_of(array), "x", elements=memoryview(elements)).tobytes() == elements


def test_lists_and_scalars_are_arrays_too():
    assert standard_array([[1.5, 2.0]], "x").dtype == np.dtype("<f8")
    assert standard_array([np.float32(1)], "x").dtype == np.dtype("<f4")
    assert standard_array(np.float16(3), "x").shape == ()
    assert standard_array(2.5, "x").shape == ()


HIDDEN = np.ma.masked_array(np.float32([1, -9999]), mask=[False, True])


class Elsewhere:
    """An array of another library, with what it calls its mask, if anything."""

    def __init__(self, values, **attributes):
        self.values = values
        self.__dict__ |= attributes

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.mark.parametrize(
    "masked",
    [
        *(HIDDEN, [HIDDEN, HIDDEN], [[1.0, (2.0, np.ma.masked)]], np.ma.masked, HIDDEN[::-1]),
        *(Elsewhere(np.float32([1, 2]), mask=np.array([0, 1])), Elsewhere(HIDDEN), Elsewhere(HIDDEN, mask=True)),
    ],
)
def test_values_that_a_mask_hides_are_refused(masked):
    assert "give it the values to compute with, such as by .filled(0)" in refusal(standard_array, masked, "x")


def test_numbers_in_a_list_are_not_asked_for_masks_one_by_one(monkeypatch):
    asked = []
    check = codec.check_unmasked
    monkeypatch.setattr(codec, "check_unmasked", lambda value, field: asked.append(value) or check(value, field))
    standard_array(np.zeros((10, 300)).tolist(), "x")
    assert len(asked) < 30


def test_a_mask_that_hides_nothing_loses_nothing():
    for mask in (np.ma.nomask, [False, False]):
        masked = np.ma.masked_array(np.float32([1, 2]), mask=mask)
        assert type(standard_array(masked, "x")) is np.ndarray
        assert standard_array([masked], "x").tolist() == [[1, 2]]
        assert standard_array(Elsewhere(masked), "x").tolist() == [1, 2]
    for mask in (None, True, lambda: True, np.array([False, False])):
        assert standard_array(Elsewhere(np.float32([1, 2]), mask=mask), "x").tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("kind", [np.matrix, np.recarray, type("Own", (np.ndarray,), {})])
def test_subclasses_of_arrays_are_their_values(kind):
    taken = standard_array(np.float32([[1, 2], [3, 4]]).view(kind), "x")
    assert (type(taken), taken.tolist()) == (np.ndarray, [[1, 2], [3, 4]])


def test_a_list_that_holds_itself_is_refused():
    endless: list[object] = [1.0]
    endless.append(endless)
    refusal(standard_array, endless, "x")


class Refusing:
    """An array of another library that does not give itself to numpy."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (np.array([1, 2]), "Received dtype int64; convert it first, for example with .astype('float32')."),
        ([[1], [2]], "Received dtype int64; convert it first, for example with numpy.asarray(x, 'float32')."),
        ("photo.jpg", "Received 'photo.jpg'. Read the file first"),
        (Path("photo.jpg"), "Received PosixPath('photo.jpg'). Read the file first"),
        (SimpleNamespace(output=1), "Received SimpleNamespace: dtype object. Its .output is an array."),
        ([True], "dtype bool"),
        ([1j], "dtype complex128"),
        (np.zeros(2, "u2"), "dtype uint16"),
        (np.zeros(2, "M8[s]"), "dtype datetime64[s]"),
        (np.zeros(2, [("a", "f4")]), "dtype void32"),
        (["a"], "Received list: dtype str"),
        (None, "Received NoneType: dtype object."),
        (object(), "Received object: dtype object."),
        (np.array([1.0, None]), "dtype object"),
        ({"a": 1}, "dtype object"),
        ([[1.0], [1.0, 2.0]], "Received list: "),
        (Refusing(TypeError("it is on a GPU")), "Received Refusing: it is on a GPU."),
        (Refusing(RuntimeError("it requires grad")), "Received Refusing: it requires grad."),
        (np.zeros((2, 0, 3), "f4"), "Received shape (2, 0, 3)."),
        ([], "Received shape (0,)."),
        (np.zeros((1,) * 9, "f4"), "Received 9: shape"),
    ],
)
def test_what_is_no_tensor_is_refused(wrong, received):
    assert received in refusal(standard_array, wrong, "x")


def test_why_integers_are_no_input_though_they_are_weights():
    with pytest.raises(InvalidTensorError, match=r"^input: .*An input is sent as it is; weights are converted\.$"):
        standard_array([1], "input")


# Bytes of strangers


def test_a_tensor_is_an_array_on_its_own_bytes():
    data = np.arange(6, dtype="<f4").tobytes()
    array = decode(codec.head_of(some("float32", (2, 3))), "x", elements=data)
    assert np.shares_memory(array, np.frombuffer(data, "u1"))
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_tensor_without_dimensions_is_a_scalar():
    assert decode(message(shape=(), data=np.float32(5).tobytes()), "x").item() == 5


@DTYPES
@pytest.mark.parametrize("more", [-1, 1])
def test_a_byte_too_many_or_too_few_is_refused(dtype, more):
    size = 6 * ITEMSIZES[dtype]
    text = f"Expected {size} bytes, as shape (2, 3) and dtype {dtype} need. Received {size + more} bytes."
    assert refusal(decode, message(dtype, data=bytes(size + more)), "x") == text
    assert refusal(decode, message(dtype, data=b""), "x", elements=memoryview(bytes(size + more))) == text


@pytest.mark.parametrize(
    ("shape", "received"),
    [
        ((0, 3), "Expected every dimension to be at least 1. Received shape (0, 3)."),
        ((2, -3), "Received shape (2, -3)."),
        ((-2, -3), "Received shape (-2, -3)."),
        ((-(2**63), 1), "Received shape (-9223372036854775808, 1)."),
        ((2**40, 2**40, 1, 1), "Expected at most 2**63 - 1 elements. Received shape"),
        ((2**62, 2), "Expected at most 2**63 - 1 elements."),
        ((2**63 - 1, 2**63 - 1), "Expected at most 2**63 - 1 elements."),
        ((2**32, 2**32), "Expected at most 2**63 - 1 elements."),  # 0 in 64 bits
        ((2**63 - 1,), "Expected 36893488147419103228 bytes"),
        ((2**62, 1), "Expected 18446744073709551616 bytes"),  # 0 in 64 bits
        ((1,) * 9, "Expected at most 8 dimensions. Received 9: shape (1, 1, 1, 1, 1, 1, 1, 1, 1)"),
        ((0,) * 10**6, "Expected at most 8 dimensions. Received 1000000: shape"),
    ],
)
def test_a_shape_that_lies_is_refused(shape, received):
    for data in (b"", bytes(24)):
        text = refusal(decode, message(shape=shape, data=data), "x")
        assert received in text
        assert len(text) < 300


@pytest.mark.parametrize("dtype", [0, 7, -1])
def test_a_tensor_of_no_known_dtype_is_refused(dtype):
    assert f"Received {dtype}." in refusal(decode, message(dtype), "x")


def test_a_tensor_of_a_dtype_that_is_not_allowed_is_refused():
    assert "Received int8." in refusal(decode, message("int8", data=bytes(6)), "x", FLOAT_DTYPES)


# Without ml_dtypes


def test_bfloat16_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(codec, "_bfloat16", codec._bfloat16.__wrapped__)  # what it found is not kept
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for call in (lambda: numpy_dtype("bfloat16"), lambda: decode(message("bfloat16", data=bytes(12)), "x")):
        with pytest.raises(MissingDependencyError, match=r"convserve\[bfloat16\]"):
            call()
    assert decode(message("float16", data=bytes(12)), "x").shape == (2, 3)
    assert standard_dtype("bfloat16", "x", INPUT_DTYPES) == "bfloat16"


def test_the_client_is_imported_without_ml_dtypes():
    program = """
import sys
sys.modules["ml_dtypes"] = None
import convserve, convserve.tensors.codec
try:
    convserve.tensors.codec.numpy_dtype("bfloat16")
except ImportError as error:
    print(type(error).__name__, convserve.Conv2D(1, 1, dtype="bfloat16").compute_dtype)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("MissingDependencyError bfloat16\n", "")
