"""A batch run with a stand-in for the server: what is computed, noted, tried again and left alone."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from convserve.batch import job, runner, sources
from convserve.batch.dry_run import forecast
from convserve.batch.journal import NAME, Journal
from convserve.batch.outputs import UNFINISHED, OutputFolder
from convserve.errors import DeadlineExceededError, InternalError, MissingDependencyError, UnavailableError
from convserve.tensors.codec import Array
from tests.support.batch_runs import Run, StandIn, failing


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, inputs=10)


def test_every_input_is_computed_once(run: Run) -> None:
    run(client := StandIn())
    assert run.counts == (10, 0, 0, 0)
    assert client.seen == [number * 12.0 for number in range(10)]
    for number in range(10):
        np.testing.assert_array_equal(np.load(run.output / f"{number}.npy"), np.full((3, 4, 1), 2 * number, "f4"))
    run(again := StandIn())
    assert run.counts == (0, 10, 0, 0)
    assert again.seen == []
    assert len(run.noted) == 10


def test_what_was_not_noted_is_computed_again_and_what_is_gone_too(run: Run) -> None:
    run(StandIn())
    path = run.output / NAME
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"4.npy"' not in line))
    (run.output / "7.npy").unlink()
    (run.output / "8.npy").write_bytes(b"half")
    run(client := StandIn())
    assert client.seen == [48.0, 84.0, 96.0]
    assert run.counts == (3, 7, 0, 0)
    assert np.load(run.output / "8.npy").mean() == 16


def test_a_changed_input_is_computed_again_and_a_new_one_too(run: Run) -> None:
    run(StandIn())
    run.save("3.npy", 30, (5, 5, 1))
    run.save("new/10.npy", 10)
    run(client := StandIn())
    assert client.seen == [750.0, 120.0]
    assert np.load(run.output / "new" / "10.npy").mean() == 20


def test_failures_stop_nothing_and_are_retried_when_that_is_asked_for(run: Run) -> None:
    (run.inputs / "bad.npy").write_text("nothing")
    run.save("channels.npy", 1, (3, 4, 2))
    run.save("flat.npy", 1, (3,))
    batch = run(StandIn(failing(5, InternalError("a defect"))))
    assert run.counts == (9, 0, 4, 0)
    assert dict(batch.tally.failures)["5.npy"] == "a defect"
    assert "broken, or that is not NumPy's" in dict(batch.tally.failures)["bad.npy"]
    assert "Expected" in dict(batch.tally.failures)["channels.npy"]
    assert "shape (3,)" in dict(batch.tally.failures)["flat.npy"]

    batch = run(client := StandIn())
    assert (client.seen, run.counts) == ([], (0, 9, 4, 0))
    assert dict(batch.tally.failures)["5.npy"] == "a defect"

    run(client := StandIn(), retry_failed=True)
    assert (client.seen, run.counts) == ([60.0], (1, 9, 3, 0))
    run.save("bad.npy", 1)
    run(client := StandIn())  # it has changed, which is reason enough
    assert (client.seen, run.counts) == ([12.0], (1, 10, 2, 0))


def test_what_passes_is_tried_again_without_being_asked(run: Run) -> None:
    run(StandIn(failing(5, DeadlineExceededError("late"))))
    assert run.counts == (9, 0, 1, 0)
    run(client := StandIn())
    assert (client.seen, run.counts) == ([60.0], (1, 9, 0, 0))


def test_a_server_that_is_gone_ends_the_run_and_is_no_failure_of_items(run: Run) -> None:
    with pytest.raises(UnavailableError):
        run(StandIn(failing(5, UnavailableError("gone"))))
    assert run.counts == (5, 0, 0, 5)
    run(client := StandIn())
    assert len(client.seen) == 5
    assert run.noted == [f"{number}.npy" for number in range(10)]


def test_a_stopped_run_finishes_what_is_on_its_way(run: Run) -> None:
    def stopping(x: Array) -> Array:
        if x.flat[0] == 5:
            assert run.batch is not None
            run.batch.stop()
        return x * np.float32(2)

    run(StandIn(stopping))
    assert run.counts == (6, 0, 0, 4)
    run(StandIn())
    assert run.counts == (4, 6, 0, 0)


def test_a_missing_package_ends_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingDependencyError("pip install it")

    monkeypatch.setattr(runner, "open_array", missing)
    with pytest.raises(MissingDependencyError):
        run(StandIn())
    assert run.counts == (0, 0, 0, 10)


class TestAnArrayOfManySamples:
    """Written in parts of 4 samples."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job, "PART_BYTES", 4 * 4 * 4)

    @pytest.fixture
    def big(self, tmp_path: Path) -> Run:
        made = Run(tmp_path)
        np.save(made.inputs / "big.npy", self.x)
        return made

    x = np.arange(10, dtype=np.float32).repeat(4).reshape(10, 2, 2, 1)

    @pytest.mark.parametrize("format_name", ["npy", "npz", "zarr"])
    def test_it_becomes_one_output(self, big: Run, format_name: str) -> None:
        if format_name == "zarr":
            pytest.importorskip("zarr")
        batch = big(client := StandIn(), format_name=format_name)
        assert client.seen == [24.0, 88.0, 68.0]
        assert big.counts == (1, 0, 0, 0)
        assert batch.tally.counts.samples == 10
        assert abs(batch.tally.counts.parts) < 1e-9
        if format_name == "npy":
            np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * self.x)
        assert not (big.output / UNFINISHED).exists()
        big(again := StandIn(), format_name=format_name)
        assert again.seen == []

    @pytest.mark.parametrize("at_once", [0, 2**20])
    def test_fortrans_order_is_read_as_it_is_meant(
        self, big: Run, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sources, "_FORTRAN_BYTES", at_once)
        x = np.random.default_rng(0).random((10, 2, 2, 1), dtype=np.float32)
        np.save(big.inputs / "big.npy", np.asfortranarray(x))
        big(StandIn())
        np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * x)

    def test_a_part_that_was_written_is_not_computed_again(self, big: Run) -> None:
        with pytest.raises(UnavailableError):
            big(StandIn(failing(4, UnavailableError("gone"))))
        assert big.counts == (0, 0, 0, 1)
        assert not (big.output / "big.npy").exists()
        batch = big(client := StandIn())
        assert client.seen == [88.0, 68.0]
        assert batch.tally.counts.samples == 6
        np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * self.x)

    def test_parts_of_an_input_that_has_changed_are_not_mixed(self, big: Run) -> None:
        with pytest.raises(UnavailableError):
            big(StandIn(failing(4, UnavailableError("gone"))))
        np.save(big.inputs / "big.npy", self.x + 1)
        big(client := StandIn())
        assert len(client.seen) == 3
        np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * self.x + 2)

    def test_parts_without_their_file_are_computed_again(self, big: Run) -> None:
        with pytest.raises(UnavailableError):
            big(StandIn(failing(4, UnavailableError("gone"))))
        for each in (big.output / UNFINISHED).iterdir():
            each.unlink()
        big(client := StandIn())
        assert len(client.seen) == 3

    @pytest.mark.parametrize(("owner", "step"), [(OutputFolder, "begin"), (Journal, "note_begun")])
    def test_a_run_that_is_killed_while_it_begins_anew_calls_nothing_written(
        self, big: Run, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
    ) -> None:
        def killed(*_: object) -> None:
            raise OSError(errno.ENOSPC, "killed")

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "note_done", killed)  # the output is in its place, the file of its parts is gone
            with pytest.raises(OSError, match="killed"):
                big(StandIn())
        with monkeypatch.context() as patched:
            whole = getattr(owner, step)
            patched.setattr(owner, step, lambda *words: (whole(*words), killed()))
            with pytest.raises(OSError, match="killed"):
                big(StandIn())
        big(client := StandIn())
        assert len(client.seen) == 3
        np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * self.x)

    def test_a_part_that_fails_fails_the_array_and_keeps_the_others(self, big: Run) -> None:
        big(StandIn(failing(8, InternalError("a defect"))))
        assert big.counts == (0, 0, 1, 0)
        big(client := StandIn(), retry_failed=True)
        assert client.seen == [68.0]
        assert big.counts == (1, 0, 0, 0)
        np.testing.assert_array_equal(np.load(big.output / "big.npy"), 2 * self.x)

    def test_a_file_that_becomes_shorter_fails(self, big: Run) -> None:
        def cutting(x: Array) -> Array:
            if x.flat[0] == 0:
                with (big.inputs / "big.npy").open("r+b") as file:
                    file.truncate(200)
            return x * np.float32(2)

        batch = big(StandIn(cutting))
        assert big.counts == (0, 0, 1, 0)
        reason = batch.tally.failures[0][1]  # as the next part is read, or when the first one is to be written
        assert "it has become shorter" in reason or "It has changed" in reason


def test_an_array_without_samples_fails_and_stops_nothing(run: Run) -> None:
    run.save("none.npy", 0, (0, 3, 4, 1))
    run.save("flat.npy", 0, (2, 0, 4, 1))
    batch = run(StandIn())
    assert run.counts == (10, 0, 2, 0)
    reasons = dict(batch.tally.failures)
    assert set(reasons) == {"none.npy", "flat.npy"}
    assert "(0, 3, 4, 1)" in reasons["none.npy"]


def test_archives_and_zarr_have_an_output_for_each_array(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    run = Run(tmp_path)
    np.savez(run.inputs / "one.npz", np.full((3, 4, 1), 1, "f4"))
    np.savez(run.inputs / "two.npz", u=np.full((2, 3, 4, 1), 2, "f4"), v=np.full((3, 4), 3, "f4"))
    group = zarr.create_group(str(run.inputs / "z.zarr"))
    for name, value in (("a", 4), ("b/c", 5)):
        group.create_array(name, shape=(5, 3, 4, 1), dtype="f4", chunks=(2, 3, 4, 1))[:] = value
    batch = run(StandIn())
    found = {
        str(each.relative_to(run.output)): (np.load(each).shape, float(np.load(each).mean()))
        for each in run.output.rglob("*.npy")
    }
    assert found == {
        "one.npy": ((3, 4, 1), 2),
        "two/u.npy": ((2, 3, 4, 1), 4),
        "two/v.npy": ((3, 4, 1), 6),
        "z/a.npy": ((5, 3, 4, 1), 8),
        "z/b/c.npy": ((5, 3, 4, 1), 10),
    }
    assert batch.tally.counts.items == 5
    run(again := StandIn())
    assert (again.seen, run.counts) == ([], (0, 5, 0, 0))


def test_a_dry_run_looks_at_every_array_of_an_archive_as_a_run_does(tmp_path: Path) -> None:
    run = Run(tmp_path)
    np.savez(run.inputs / "three.npz", a=np.zeros(3, "f4"), b=np.zeros((2, 3, 4, 1), "f4"), c=np.zeros((3, 4), "f4"))
    with closing((made := run.job()).journal):
        coming = forecast(made)
    assert (coming.items, coming.samples, [key for key, _ in coming.failures]) == (2, 3, ["three.npz:a"])
    run(StandIn())
    assert run.counts == (2, 0, 1, 0)
    with closing((made := run.job()).journal):
        again = forecast(made)
    assert (again.items, again.skipped, again.failures) == (0, 2, coming.failures)


def test_names_in_archives_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    np.savez(run.inputs / "x.npz", **{"../../away": np.zeros((3, 4, 1), "f4"), "b": np.zeros((3, 4, 1), "f4")})
    batch = run(StandIn())
    assert run.counts == (0, 0, 1, 0)
    assert "an array whose name can be a file's" in batch.tally.failures[0][1]
    assert not list(tmp_path.rglob("away*"))
