"""The journal of a batch: what it says is so, whenever its writer died."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convserve.batch.journal import NAME, Identity, Journal, PartialOutput
from convserve.errors import InvalidRequestError

IDENTITY = Identity("/photos", ["ab" * 32], {"format": "npy", "output_dtype": None, "input_range": [0.0, 1.0]})
BEGUN = PartialOutput("big", "7:1", (9, 2, 2, 1), "float32", 4)


def opened(
    folder: Path, resume: bool = True, identity: Identity = IDENTITY, lies: set[str] | frozenset[str] = frozenset()
) -> Journal:
    """Opens a journal in which the lines about the keys in `lies` do not hold any more."""
    return Journal(folder, identity, lambda key, _: key not in lies, resume=resume)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the journal of a run that ended in the middle."""
    journal = opened(tmp_path / "out", resume=False)
    journal.note_done("a.npy", "3:1", "a", 128)
    journal.note_failed("b.npy", "3:2", "Expected this. Received that.")
    journal.note_begun("big.npy", BEGUN)
    journal.note_part("big.npy", 4)
    journal.note_part("big.npy", 0)
    journal.close()
    return tmp_path / "out"


def test_a_run_that_goes_on_knows_what_is_done(folder: Path) -> None:
    journal = opened(folder)
    assert journal.done == {"a.npy"}
    assert journal.failed == {"b.npy": "Expected this. Received that."}
    assert journal.begun == {"big.npy": PartialOutput("big", "7:1", (9, 2, 2, 1), "float32", 4, {0, 4})}
    journal.note_done("big.npy", "7:1", "big", 99)
    journal.note_done("b.npy", "3:2", "b", 99)
    journal.close()
    journal = opened(folder)
    assert (journal.done, journal.failed, journal.begun) == ({"a.npy", "b.npy", "big.npy"}, {}, {})
    journal.close()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_last_line_is_cut_off(folder: Path, cut: int) -> None:
    """The last line is `{"part":"big.npy","start":0}`, which tells that the first rows are done."""
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    journal = opened(folder)
    assert path.read_bytes() == whole
    assert 0 not in journal.begun["big.npy"].starts
    journal.note_done("c.npy", "3:3", "c", 128)
    journal.close()
    journal = opened(folder)
    assert journal.done == {"a.npy", "c.npy"}
    journal.close()


def test_a_journal_whose_first_line_is_torn_is_begun_again(folder: Path) -> None:
    (folder / NAME).write_bytes(b'{"format":1,"fol')
    journal = opened(folder)
    assert not journal.done
    journal.close()
    assert json.loads((folder / NAME).read_text())["folder"] == "/photos"


def test_a_spoilt_line_costs_what_it_told_and_no_more(folder: Path) -> None:
    path = folder / NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * (len(lines[1]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    journal = opened(folder)
    assert journal.done == set()
    assert set(journal.failed) == {"b.npy"}
    journal.close()


def test_a_line_that_does_not_hold_any_more_counts_for_nothing(folder: Path) -> None:
    journal = opened(folder, lies={"a.npy", "b.npy", "big.npy"})
    assert (journal.done, journal.failed, journal.begun) == (set(), {}, {})
    journal.close()


def test_of_several_lines_the_last_one_counts(folder: Path) -> None:
    journal = opened(folder)
    journal.note_failed("a.npy", "4:9", "It has changed.")
    journal.note_begun("big.npy", BEGUN)
    journal.close()
    journal = opened(folder)
    assert "a.npy" not in journal.done
    assert journal.failed["a.npy"] == "It has changed."
    assert journal.begun["big.npy"].starts == set()
    journal.close()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Identity("/photos", ["cd" * 32], IDENTITY.options), "layer"),
        (Identity("/others", IDENTITY.layers, IDENTITY.options), "input"),
        (Identity("/photos", IDENTITY.layers, IDENTITY.options | {"format": "zarr"}), "format"),
        (Identity("/photos", IDENTITY.layers, IDENTITY.options | {"input_range": None}), "input_range"),
    ],
)
def test_another_run_does_not_go_on_with_it(folder: Path, other: Identity, field: str) -> None:
    before = (folder / NAME).read_bytes()
    with pytest.raises(InvalidRequestError, match="Expected what the results there were made with") as caught:
        opened(folder, identity=other)
    assert [each.field for each in caught.value.violations] == [field]
    assert (folder / NAME).read_bytes() == before


def test_results_are_not_written_over(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="or --resume to go on"):
        opened(folder, resume=False)


def test_results_of_which_nothing_holds_any_more_are_not_written_over_either(folder: Path) -> None:
    """So are those of another folder of inputs, whose names lead nowhere in this one."""
    before = (folder / NAME).read_bytes()
    with pytest.raises(InvalidRequestError, match="or --resume to go on"):
        opened(folder, resume=False, lies={"a.npy", "b.npy", "big.npy"})
    assert (folder / NAME).read_bytes() == before


def test_a_run_that_did_nothing_is_no_hindrance(tmp_path: Path) -> None:
    opened(tmp_path / "out", resume=False).close()
    other = Identity("/others", IDENTITY.layers, IDENTITY.options)
    opened(tmp_path / "out", resume=False, identity=other).close()
    opened(tmp_path / "out", identity=other).close()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.npy").touch()
    with pytest.raises(InvalidRequestError, match="which has something else in it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"format":2}\n',
        "[]\n",
        "hello\n",
        '{"format":1}\n',
        "[" * 100_000 + "\n",
        '{"format":1,"folder":"","layers":[],"options":7}\n',
    ],
)
def test_a_file_that_is_no_such_journal_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InvalidRequestError, match="Expected a journal of `convserve batch`"):
        opened(tmp_path)
    assert (tmp_path / NAME).read_text() == text


def test_two_runs_do_not_write_to_one_folder(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from convserve.batch.journal import Identity, Journal\n"
        "try: Journal(Path(sys.argv[1]), Identity('', [], {}), lambda *_: True, resume=True)\n"
        "except ValueError as error: print(error)\n"
    )
    journal = opened(folder)
    told = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    journal.close()
    assert "where no other `convserve batch` runs" in told
    told = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    assert "Expected what the results there were made with" in told


def test_keys_of_any_bytes_survive(folder: Path) -> None:
    strange = "a\nb/\udcff.npy"  # a name of a file that is no UTF-8
    journal = opened(folder)
    journal.note_done(strange, "1:1", strange, 1)
    journal.close()
    journal = opened(folder)
    assert strange in journal.done
    journal.close()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"part":"big.npy","start":1}',
        '{"part":"big.npy","start":12}',
        '{"part":"big.npy","start":-4}',
        '{"part":"big.npy","start":[0]}',
        '{"part":["big.npy"],"start":0}',
        '{"part":"another","start":0}',
        '{"begun":"c","output":"c","stamp":"","shape":[9,2,2,1],"dtype":"float32","rows":0}',
        '{"begun":"c","output":"c","stamp":"","shape":[9,2,2,1],"dtype":"float32","rows":-1}',
        '{"begun":"c","output":"c","stamp":"","shape":"x","dtype":"float32","rows":1}',
        '{"done":null}',
        '{"failed":"c"}',
        "null",
        '"done"',
        "\udcff\udcfe",
    ],
)
def test_a_line_that_makes_no_sense_costs_nothing_else(folder: Path, line: str) -> None:
    with (folder / NAME).open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    journal = opened(folder)
    assert (journal.done, set(journal.failed)) == ({"a.npy"}, {"b.npy"})
    assert journal.begun == {"big.npy": PartialOutput("big", "7:1", (9, 2, 2, 1), "float32", 4, {0, 4})}
    journal.close()


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_journal_that_was_cut_anywhere_is_gone_on_with(folder: Path, cut: int) -> None:
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:cut])
    journal = opened(folder)
    journal.note_done("c.npy", "3:3", "c", 128)
    journal.close()
    journal = opened(folder)
    assert "c.npy" in journal.done
    journal.close()
