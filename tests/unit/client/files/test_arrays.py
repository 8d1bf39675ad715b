"""Arrays in .npy and .npz files: what is read, what is refused, what is written."""

import ast
import io
import os
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from convserve.errors import InvalidRequestError, InvalidTensorError
from convserve.files import cgroups, reading
from convserve.files.arrays import NpyFile, load_array, names_in, save_array
from convserve.files.inputs import read_input


def refusal(function, *arguments, **options):
    """Returns the only violation of a call that must be refused."""
    with pytest.raises(InvalidTensorError) as caught:
        function(*arguments, **options)
    (violation,) = caught.value.violations
    assert violation.description.startswith("Expected ")
    assert " Received " in violation.description
    return violation


def test_npy_comes_back_as_it_was_saved(tmp_path):
    array = np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4)
    np.save(tmp_path / "x.npy", array)
    loaded = load_array(tmp_path / "x.npy")
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, array)


def test_npz_with_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "x.npz", only=np.ones((2, 3)))
    assert load_array(tmp_path / "x.npz").shape == (2, 3)


def test_npz_with_several_arrays_is_chosen_from_by_name(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", first=np.zeros(1), second=np.ones(2))
    np.testing.assert_array_equal(load_array(f"{tmp_path}/x.npz:second"), [1, 1])
    assert "with 2 arrays (first, second)" in refusal(load_array, tmp_path / "x.npz").description
    assert "x.npz:first'" in refusal(load_array, tmp_path / "x.npz").description
    assert "Received 'third'" in refusal(load_array, f"{tmp_path}/x.npz:third").description


def test_names_that_end_as_files_do_are_not_mistaken(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a": np.zeros(1), "a.npy": np.ones(2), "b.npy": np.ones(3)})
    for name, size in (("a", 1), ("a.npy", 2), ("b.npy", 3)):
        assert load_array(f"{tmp_path}/x.npz:{name}").shape == (size,)


def test_an_empty_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz")
    assert "with 0 arrays (none)" in refusal(load_array, tmp_path / "x.npz").description


def test_a_colon_elsewhere_in_the_path_is_part_of_it(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    np.save(folder / "x.npy", np.ones(3))
    assert load_array(folder / "x.npy").shape == (3,)


def test_python_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        assert "an array of Python objects" in refusal(load_array, tmp_path / name).description


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("kind", ["text", "empty", "cut"])
def test_broken_files_are_refused_without_advice_to_unpickle(tmp_path, name, kind):
    whole = io.BytesIO()
    (np.save if name == "x.npy" else np.savez)(whole, np.ones((50, 50)))
    (tmp_path / name).write_bytes({"text": b"not an array", "empty": b"", "cut": whole.getvalue()[:-500]}[kind])
    assert "pickle" not in refusal(load_array, tmp_path / name).description


def test_a_member_of_an_archive_that_is_damaged_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", np.arange(1000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[500] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(content)
    assert "broken" in refusal(load_array, tmp_path / "x.npz").description


def test_a_missing_file_and_a_folder_are_told_in_the_systems_words(tmp_path):
    assert "No such file" in refusal(load_array, tmp_path / "x.npy").description
    assert "directory" in refusal(load_array, tmp_path).description


def test_the_field_is_the_callers(tmp_path):
    assert refusal(load_array, tmp_path / "k.npy", "kernel").field == "kernel"
    assert refusal(load_array, tmp_path / "k.npy").field == "input"


@pytest.mark.parametrize(
    ("shape", "data_format", "expected"),
    [
        ((5, 6), "channels_last", (1, 5, 6, 1)),
        ((5, 6), "channels_first", (1, 1, 5, 6)),
        ((5, 6, 3), "channels_last", (1, 5, 6, 3)),
        ((3, 5, 6), "channels_first", (1, 3, 5, 6)),
        ((2, 5, 6, 3), "channels_last", (2, 5, 6, 3)),
    ],
)
def test_axes_that_were_left_out_are_added(tmp_path, shape, data_format, expected):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert read_input(tmp_path / "x.npy", data_format).shape == expected


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5)])
def test_other_ranks_are_refused(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert f"shape {shape}" in refusal(read_input, tmp_path / "x.npy").description


def test_saving_keeps_the_name_as_given(tmp_path):
    save_array(tmp_path / "y.data", np.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["y.data"]


def test_bfloat16_is_saved_as_float32_without_loss(tmp_path):
    array = np.array([1.0, 1 / 3, 3e38], dtype=ml_dtypes.bfloat16)
    save_array(tmp_path / "y.npy", array)
    loaded = load_array(tmp_path / "y.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.astype(ml_dtypes.bfloat16), array)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"can be written.*No such file"):
        save_array(tmp_path / "no" / "y.npy", np.ones(3))


def npy(header: str, data: bytes = bytes(96)) -> bytes:
    """Returns a file with this header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin1") + data


BROKEN = {
    "a bracket that is not closed": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), \n"),
    "a text that is not closed": npy("{'descr': '<f4, 'fortran_order': False, 'shape': (2, 3, 4), }\n"),
    "brackets in brackets": npy("(" * 9000),
    "too long": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }" + " " * 20000),
    "a zero in it": npy("{'descr': '<f4\0', 'fortran_order': False, 'shape': (2, 3, 4), }\n"),
    "no bytes": b"",
    "half a head": b"\x93NUM",
    "a size beyond all": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ", 3, 4), }\n"),
    "a size below zero": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3, 4), }\n"),
    "elements without size": npy("{'descr': '|V0', 'fortran_order': False, 'shape': (2, 3, 4), }\n"),
    "a list for a shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3, 4], }\n"),
    "a list for it all": npy("[1, 2]\n"),
    "Python objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (12,), }\n"),
    "version 9": npy("{}").replace(b"\x01\x00", b"\x09\x00", 1),
    "cut short": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }\n", bytes(95)),
    "something behind it": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }\n", bytes(97)),
}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_numpys_format_is_read(tmp_path, version):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.ones((1, 2, 3, 4), "f4"), version)
    assert load_array(tmp_path / "x.npy").shape == NpyFile(tmp_path / "x.npy").shape == (1, 2, 3, 4)


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [load_array, NpyFile])
def test_a_damaged_file_is_refused_by_name_and_by_whoever_reads_it(tmp_path, data, read):
    (tmp_path / "x.npy").write_bytes(data)
    described = refusal(read, tmp_path / "x.npy").description
    assert str(tmp_path / "x.npy") in described
    assert "pickle" not in described


def test_a_second_array_behind_the_first_is_not_left_out(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, np.zeros(3))
        np.save(file, np.zeros(3))
    assert "something follows the array" in refusal(load_array, tmp_path / "x.npy").description


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive, archive.open("a.npy", "w") as member:
        np.save(member, np.ones(3))
    for read in (names_in, load_array, lambda path: load_array(f"{path}:a")):
        assert "different names" in refusal(read, tmp_path / "x.npz").description


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    for read in (load_array, NpyFile, names_in):
        assert "a pipe or a device" in refusal(read, tmp_path / "x.npy").description


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "u1", "<f8"])
@pytest.mark.parametrize("shape", [(7, 3, 2, 4), (5,), (4, 2), (3, 0, 2), ()])
def test_rows_are_those_of_the_array(tmp_path, order, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    file = NpyFile(tmp_path / "x.npy")
    assert (file.shape, file.dtype) == (shape, np.dtype(dtype))
    for start in range(shape[0] if shape else 0):
        for stop in range(start, shape[0] + 1):
            rows = file.rows(start, stop)
            np.testing.assert_array_equal(rows, array[start:stop])
            assert rows.flags.c_contiguous


@pytest.mark.parametrize("order", "CF")
def test_rows_of_a_file_that_has_become_shorter_are_refused_and_kill_nobody(tmp_path, order):
    """A mapping of it would: its pages are gone, though the part that is read was there when it was opened."""
    path = tmp_path / "x.npy"
    np.save(path, np.ones((4, 1000, 1000), order=order))
    file = NpyFile(path)
    os.truncate(path, file.offset + 8_000_000)
    assert "it has become shorter" in refusal(lambda: file.rows(0, 4)).description
    path.unlink()
    assert "No such file" in refusal(lambda: file.rows(0, 4)).description


@pytest.fixture
def small_memory(monkeypatch):
    """Makes the memory one of 4 MB, so that an input may take 1 MB."""
    monkeypatch.setattr(reading, "memory_bytes", lambda: 4_000_000)


@pytest.mark.usefixtures("small_memory")
def test_what_would_take_too_much_memory_is_refused_before_it_does(tmp_path):
    small, large = np.zeros((100, 100)), np.zeros((400, 400))
    np.savez_compressed(tmp_path / "x.npz", small=small, large=large)  # two kilobytes
    assert load_array(f"{tmp_path}/x.npz:small").shape == (100, 100)
    assert "a quarter of the memory" in refusal(load_array, f"{tmp_path}/x.npz:large").description
    np.save(tmp_path / "x.npy", small)
    assert load_array(tmp_path / "x.npy").shape == (100, 100)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(10**12)  # of which the disk has almost nothing
    assert "a quarter of the memory" in refusal(load_array, tmp_path / "x.npy").description


@pytest.mark.usefixtures("small_memory")
def test_an_archive_may_be_larger_than_the_memory_if_its_arrays_are_not(tmp_path):
    np.savez(tmp_path / "x.npz", **{str(number): np.zeros((100, 100)) for number in range(20)})
    assert len(names_in(tmp_path / "x.npz")) == 20
    assert load_array(f"{tmp_path}/x.npz:7").shape == (100, 100)


def test_the_memory_is_that_of_the_machine_or_less():
    assert 2**20 < reading.memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_limit_of_the_service_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "_CGROUPS", tmp_path)
    (tmp_path / "cgroup").write_text("0::/system.slice/batch.service\n")
    (tmp_path / "system.slice" / "batch.service").mkdir(parents=True)
    (tmp_path / "system.slice" / "batch.service" / "memory.max").write_text("4000000\n")
    (tmp_path / "system.slice" / "memory.max").write_text("max\n")
    assert reading.memory_bytes.__wrapped__() == 4_000_000


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_array(folder / "x.npy"),
        lambda folder: load_array(folder / "x.npz"),
        lambda folder: NpyFile(folder / "x.npy").rows(0, 1),
        lambda folder: load_array(folder / "odd.npy"),
    ],
)
def test_what_cpythons_parser_fails_with_in_threads_is_tried_again(tmp_path, monkeypatch, load):
    x = np.arange(6, dtype="f4").reshape(1, 2, 3, 1)
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "x.npz", x=x)
    header = b"\x93NUMPY\x01\x00F\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 2L, 3L, 1L)}"
    (tmp_path / "odd.npy").write_bytes(header.ljust(80) + x.tobytes())  # Python 2's, which is parsed twice
    whole, failures = ast.literal_eval, [SystemError("AST constructor recursion depth mismatch")] * 9

    def failing(text):
        if failures:
            raise failures.pop()
        return whole(text)

    monkeypatch.setattr(ast, "literal_eval", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        np.testing.assert_array_equal(load(tmp_path), x)
    assert not failures
    failures += [SystemError("AST constructor recursion depth mismatch")] * 10
    assert "broken" in refusal(load, tmp_path).description


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, np.ones(4, "f4"))
    path.write_bytes(path.read_bytes().replace(b"(4,)", b"(9000000000,)"))
    monkeypatch.setattr(np, "empty", None)
    assert "broken" in refusal(load_array, path).description


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4), (2**19,)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">f8", "?", "c16", "f4,i2", "U3"])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_an_array_is_what_numpy_loads(tmp_path, save, dtype, order, shape):
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    values = np.random.default_rng(0).integers(0, 2, shape)
    array = np.asarray(np.broadcast_to(values, shape).astype(dtype), order=order)
    save(path, array)
    loaded = load_array(path)
    np.testing.assert_array_equal(loaded, array)
    assert (loaded.dtype, loaded.shape, loaded.flags.f_contiguous) == (array.dtype, shape, array.flags.f_contiguous)
    assert loaded.flags.writeable
