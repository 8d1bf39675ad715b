"""A run: inputs are read, computed, written, and noted in the journal as done."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from convserve import errors
from convserve.batch.counters import Tally
from convserve.batch.inputs import Inputs
from convserve.batch.job import Job
from convserve.batch.journal import PartialOutput
from convserve.batch.outputs import OutputFolder
from convserve.batch.prefetch import read_ahead
from convserve.batch.sources import InputArray, Source, open_array, stamp_of
from convserve.errors import ConvserveError, MissingDependencyError, short_repr
from convserve.tensors.codec import Array, Shape

if TYPE_CHECKING:
    from convserve._sync.client import Client

_WRITERS = 4
_HELD = 2 * _WRITERS  # outputs that wait to be written, at most

_ENDING = (
    errors.LayerNotFoundError,
    errors.PermissionDeniedError,
    errors.UnauthenticatedError,
    errors.UnavailableError,
    errors.UnimplementedError,
)
"""With these every other item would fail likewise: the run ends, and can go on later."""
_ALL_OUTPUTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""With these of the system's errors no other output could be written either: the run ends, and can go on later."""
_ALL_INPUTS = {errno.EMFILE, errno.ENFILE}
"""With these of the system's errors no other input could be read either: likewise."""


class _ItemError(Exception):
    """One output cannot be written, such as one with too long a name, or an input is no longer what was read."""


_PASSING = (errors.DeadlineExceededError, errors.OverloadedError, _ItemError)
"""These say nothing about the item: a run that goes on tries it again without being asked."""


@dataclass
class _Work:
    array: InputArray
    rows: int  # of a part
    written: set[int] = field(default_factory=set)  # the first rows of the parts that are written, now or before
    in_flight: int = 1  # how many are sent, and neither written nor failed; and one for the reader until all are sent
    failure: str = ""  # why it will not be finished
    is_lasting: bool = False  # whether it would fail again
    is_hopeless: bool = False  # whether its other parts would fail likewise

    @property
    def parts(self) -> int:
        """How many it has; 1 for what is written as a whole."""
        return math.ceil(self.array.shape[0] / self.rows)


class Batch:
    """One run over many inputs; `tally` says how much is done."""

    def __init__(self, job: Job, on_failure: Callable[[str, str], None] = lambda *_: None) -> None:
        """Prepares a run; `on_failure` is called with key and reason of each item that fails."""
        self.job, self._on_failure = job, on_failure
        self._outputs, self._journal = job.outputs, job.journal
        self._stopping = False
        self._error: Exception | None = None
        self._lock = threading.Lock()  # of works, which several writers may finish
        self._room = threading.BoundedSemaphore(_HELD)
        self._sent: dict[int, tuple[_Work, int, int]] = {}  # by number: work, first row, bytes of the input
        self.tally = Tally(len(job.inputs.names))

    def stop(self) -> None:
        """Lets `run` end when what is in flight is done. A signal's handler may call it."""
        self._stopping = True

    def run(self, client: Client) -> None:
        """Computes what is to be computed, until all is done or failed, or `stop` was called.

        Raises ConvserveError if the server cannot be used, OSError if outputs cannot be written; what is done is noted.
        """
        self._clear()
        self.tally.add(items=len(self.job.inputs.unread))
        for name, reason in self.job.inputs.unread.items():
            self._report_failure(name, reason)
        with ThreadPoolExecutor(_WRITERS, "convserve-write") as writers:
            answers = client.map(
                self.job.layers, self._tensors(), as_completed=True, errors="return", output_dtype=self.job.output_dtype
            )
            with closing(answers):
                for number, answer in answers:
                    self._take(number, answer, writers)
                    if self._error is not None:
                        break
        if self._error is not None:
            raise self._error
        self._clear()

    def _take(self, number: int, answer: Array | ConvserveError, writers: ThreadPoolExecutor) -> None:
        work, start, input_bytes = self._sent.pop(number)
        if isinstance(answer, _ENDING):
            self._end(answer)
        elif isinstance(answer, ConvserveError):
            self._fail(work, answer)
            self._release(work)
        else:
            self.tally.add(input_bytes=input_bytes, output_bytes=answer.nbytes)
            self._room.acquire()  # so that outputs do not gather where the disk is slower than the server
            writers.submit(self._write, work, start, answer).add_done_callback(lambda _: self._room.release())

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self.stop()

    def _tensors(self) -> Iterator[Array]:
        """Yields the parts of inputs, as they are sent."""
        number = 0
        for opened in read_ahead(self._to_be_opened()):
            work = opened.result()
            if work is None:
                continue
            for start in range(0, work.array.shape[0], work.rows):
                if self._stopping or work.is_hopeless:
                    break
                if start in work.written:
                    continue
                try:
                    x = work.array.read(start, min(start + work.rows, work.array.shape[0]))
                except Exception as error:  # whatever it is, it is this input's
                    if _is_every_input(error):
                        self._end(error)
                    else:
                        self._fail(work, error)
                    break
                with self._lock:
                    work.in_flight += 1
                self._sent[number] = (work, start, x.nbytes)
                number += 1
                yield x
                del x  # it is in flight, and nothing here holds it longer than that
            self._release(work)

    def _to_be_opened(self) -> Iterator[tuple[int, Callable[[], _Work | None]]]:
        """Yields, for each array that is not done, the size of its file and what opens it."""
        for name in self.job.inputs.names:
            if self._stopping:
                return
            if self._is_known(name):
                continue
            try:
                sources = self.job.sources(name)
            except Exception as error:
                if _is_every_input(error):
                    self._end(error)
                    return
                self._report_failure(name, self.job.reason_of(error), stamp_of(self.job.inputs.path(name)))
                continue
            self.tally.add(items=len(sources) - 1)
            for source in sources:
                if not self._is_known(source.key):
                    yield source.file_bytes, partial(self._open, source)

    def _is_known(self, key: str) -> bool:
        """Counts an item that an earlier run has finished, or that failed there and is not to be tried again."""
        if self.job.is_done(key):
            self.tally.add(skipped=1)
        elif (reason := self.job.failure(key)) is not None:
            self._report_failure(key, reason)
        else:
            return False
        return True

    def _open(self, source: Source) -> _Work | None:
        """Opens an array, in a thread, or notes why that fails."""
        try:
            array = open_array(source, self.job.reading)
            samples = array.shape[0]
            one, rows = self.job.divided(array)
            if rows == samples:
                return _Work(array, rows)
            begun = self._begun(source, (samples, *one.output_shape[1:]), one.output_dtype, rows)
            work = _Work(array, begun.rows, begun.starts)
            self.tally.add(parts=len(work.written) / work.parts)
            return work
        except Exception as error:  # whatever it is, it is this input's
            if isinstance(error, OSError) or _is_every_input(error):  # OSError: of all outputs
                self._end(error)
            else:
                stamp = None if isinstance(error, _PASSING) else source.stamp
                self._report_failure(source.key, self.job.reason_of(error), stamp)
        return None

    def _begun(self, source: Source, shape: Shape, dtype: str, rows: int) -> PartialOutput:
        """Returns the output of an array that is written in parts: one that was begun, or a new one."""
        begun = PartialOutput(source.stem, source.stamp, shape, dtype, rows)
        before = self._journal.begun.get(source.key)
        is_same = before is not None and replace(before, rows=rows, starts=set()) == begun
        if before is not None and is_same and self._outputs.has_begun(source.stem, shape, dtype):
            return before
        # First the line: else a run that is killed between the two leaves an empty file and lines that call it written.
        self._journal.note_begun(source.key, begun)
        with self._one_output(source):
            self._outputs.begin(source.stem, shape, dtype, rows)
        return begun

    def _write(self, work: _Work, start: int, output: Array) -> None:
        """Writes a part, in a thread."""
        source = work.array.source
        samples = 1 if work.array.is_sample else len(output)
        try:
            try:
                with self._one_output(source):
                    if work.parts == 1:
                        size = self._outputs.write(source.stem, output)
                    else:
                        self._outputs.write_rows(source.stem, start, output)
            except _ItemError as error:
                self._fail(work, error)
            else:
                work.written.add(start)
                if work.parts == 1:
                    self._journal.note_done(source.key, source.stamp, source.stem, size)
                    self.tally.add(samples=samples, done=1, file_bytes=size)
                else:
                    self._journal.note_part(source.key, start)
                    self.tally.add(samples=samples, parts=1 / work.parts)
            self._release(work)
        except Exception as error:  # whatever it is, the run's own thread raises it
            self._end(error)

    @contextmanager
    def _one_output(self, source: Source) -> Iterator[None]:
        """Turns what is raised when one array's output is written into an error of this one, if it is no other's."""
        if not source.is_unchanged:
            raise _ItemError("It has changed since it was read. --resume computes it again.")
        try:
            yield
        except MissingDependencyError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _ALL_OUTPUTS:
                raise
            path, reason = str(self._outputs.path(source.stem)), getattr(error, "strerror", None) or error
            raise _ItemError(f"{short_repr(path)} cannot be written: {reason}.") from error

    def _fail(self, work: _Work, error: Exception) -> None:
        with self._lock:
            work.failure = work.failure or self.job.reason_of(error)
            work.is_lasting |= not isinstance(error, _PASSING)
            # What the server refuses for one part it refuses for all.
            work.is_hopeless |= work.is_lasting or isinstance(error, _ItemError)

    def _release(self, work: _Work) -> None:
        """Counts a part as written or failed, or all as sent; the last one finishes the array."""
        with self._lock:
            work.in_flight -= 1
            if work.in_flight or (len(work.written) < work.parts and not work.failure):
                return
        source = work.array.source
        if not work.failure and work.parts > 1:
            try:
                with self._one_output(source):
                    size = self._outputs.finish(source.stem)
                self._journal.note_done(source.key, source.stamp, source.stem, size)
                self.tally.add(done=1, parts=-1, file_bytes=size)
            except _ItemError as error:
                self._fail(work, error)
        if work.failure:
            self._report_failure(source.key, work.failure, source.stamp if work.is_lasting else None)
            self.tally.add(parts=-len(work.written) / work.parts)

    def _report_failure(self, key: str, reason: str, stamp: str | None = None) -> None:
        """Counts a failure; notes one that would happen again, for which the input's stamp is given."""
        if stamp is not None:
            self._journal.note_failed(key, stamp, reason)
        self.tally.add_failure(key, reason)
        self._on_failure(key, reason)

    def _clear(self) -> None:
        self._outputs.clear({job.output for job in self._journal.begun.values()})


def is_done(inputs: Inputs, outputs: OutputFolder, key: str, line: dict[str, Any]) -> bool:
    """Whether a line of the journal still holds: the input is what it was, and the output is there."""
    if stamp_of(inputs.path(key)) != line["stamp"]:
        return False
    return "done" not in line or outputs.size(line["output"]) == line["size"]


def _is_every_input(error: Exception) -> bool:
    cause = error.__cause__
    return isinstance(error, MissingDependencyError) or (isinstance(cause, OSError) and cause.errno in _ALL_INPUTS)
