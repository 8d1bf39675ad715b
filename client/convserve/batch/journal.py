"""What is done, in a file of one JSON object per line to which lines are only added.

A line is written after what it tells has happened, so what it tells is true whenever the run is killed; what happened
without a line is done again, and so is an output that has not the size that its line says. The first line says what the
run is, and a run with another layer or other options is refused.

    {"format": 1, "folder": "/photos", "layers": ["3f1b..."], "options": {"format": "npy", ...}}
    {"done": "a/1.jpg", "stamp": "48213:17...", "output": "a/1", "size": 1728128}
    {"failed": "a/2.jpg", "stamp": "93:17...", "reason": "Expected a picture ..."}
    {"begun": "big.npy", "output": "big", "stamp": ..., "shape": [...], "dtype": "float32", "rows": 16}
    {"part": "big.npy", "start": 16}
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convserve.errors import FieldViolation, InvalidRequestError, short_repr
from convserve.files.reading import open_file
from convserve.tensors.codec import Shape

NAME = "journal.jsonl"
"""The file's name in the folder for outputs."""
_FORMAT = 1
_SYNC_S = 1.0  # how much of the journal, and so of the work, a power failure may cost

_BEGINNING = b'{"format":'

IsDone = Callable[[str, dict[str, Any]], bool]
"""Whether a line about an input, of this key, still holds: whether input and output are as the line says."""


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on."""

    folder: str  # of the inputs
    layers: list[str]  # their digests, in hexadecimal
    options: dict[str, Any]  # on which outputs and their names depend

    def check_same(self, other: Identity) -> None:
        """Raises InvalidRequestError, with all differences, if this run does not go on with `other`, which is there."""
        pairs: dict[str, tuple[Any, Any]] = {
            "layer": (", ".join(other.layers), ", ".join(self.layers)),
            "input": (other.folder, self.folder),
        }
        pairs |= {name: (other.options.get(name), value) for name, value in self.options.items()}
        differences: list[FieldViolation] = []
        for name, (before, now) in pairs.items():
            if before != now:
                expected = f"what the results there were made with, {short_repr(before)}"
                received = f"{short_repr(now)}: give another --output"
                differences += InvalidRequestError.for_field(name, expected, received).violations
        if differences:
            raise InvalidRequestError(*differences)


@dataclass
class PartialOutput:
    """An output that comes in parts."""

    output: str  # its name without suffix
    stamp: str  # the input's stamp when it began
    shape: Shape
    dtype: str
    rows: int  # of a part
    starts: set[int] = field(default_factory=set)  # the first rows of the parts that are done


class Journal:
    """The journal of one folder, which no other process writes meanwhile. Any thread may call its methods."""

    def __init__(
        self, folder: Path, identity: Identity, is_done: IsDone, *, resume: bool, read_only: bool = False
    ) -> None:
        """Opens the journal of a folder for outputs, which is made if need be, or only reads what is there.

        Raises InvalidRequestError if the folder has results and the run is not to `resume`, or has something else in
        it, or results of another layer or other options; or if another process writes there.
        """
        path = folder / NAME
        if folder.is_dir() and not path.exists() and any(folder.iterdir()):
            expected = "a new or empty folder, or one with results of `convserve batch`"
            raise _refused(expected, f"{short_repr(str(folder))}, which has something else in it")
        self._lock = threading.Lock()
        self._length = 0
        self._has_results = False  # whether it tells of any, though nothing of what it tells may hold any more
        self._synced = time.monotonic()
        self.done: set[str] = set()  # the keys of inputs of which a line says that they are done, and that are
        self.failed: dict[str, str] = {}  # reasons by the keys of inputs that failed lastingly
        self.begun: dict[str, PartialOutput] = {}  # the outputs that come in parts and are not finished, by key
        self._file = -1
        self._is_read_only = read_only
        if read_only and not path.exists():
            return
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            self._lock_out_others(folder)
            before = self._read(path, is_done)
            if before is not None and self._has_results and not resume:
                expected = "a folder without results, or --resume to go on with them"
                raise _refused(expected, f"{short_repr(str(folder))}, which has some")
            if before is not None and resume:
                identity.check_same(before)
            elif not read_only:
                self._begin(identity)
        except BaseException:
            self.close()
            raise

    def note_done(self, key: str, stamp: str, output: str, size: int) -> None:
        """Notes that an output is there."""
        self._add({"done": key, "stamp": stamp, "output": output, "size": size})
        self.begun.pop(key, None)

    def note_failed(self, key: str, stamp: str, reason: str) -> None:
        """Notes that an input failed, and would fail again."""
        self._add({"failed": key, "stamp": stamp, "reason": reason})

    def note_begun(self, key: str, begun: PartialOutput) -> None:
        """Notes, durably, that an output begins that comes in parts: none of those noted before counts any more."""
        line = {"begun": key, **asdict(begun)}
        del line["starts"]
        self._add(line)
        os.fsync(self._file)
        self.begun[key] = begun

    def note_part(self, key: str, start: int) -> None:
        """Notes that a part of an output is done."""
        self._add({"part": key, "start": start})

    def sync(self) -> None:
        """Makes the lines durable."""
        with suppress(OSError):  # it was closed meanwhile
            os.fsync(self._file)

    def close(self) -> None:
        """Makes the lines durable, and lets others write."""
        if self._file >= 0:
            try:
                os.fsync(self._file)
            finally:
                os.close(self._file)
                self._file = -1

    def _lock_out_others(self, folder: Path) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has none; there nobody looks
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            received = f"{short_repr(str(folder))}, where one runs"
            raise _refused("a folder where no other `convserve batch` runs", received) from error

    def _begin(self, identity: Identity) -> None:
        os.ftruncate(self._file, 0)
        self._length = 0
        self.done, self.failed, self.begun = set(), {}, {}
        self._add({"format": _FORMAT, **asdict(identity)})
        os.fsync(self._file)

    def _add(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                written = os.write(self._file, text)
                if written < len(text):  # a disk with room for half a line
                    written += os.write(self._file, text[written:])
            except OSError:
                os.ftruncate(self._file, self._length)  # what follows is not to be added to half a line
                raise
            self._length += written
            now = time.monotonic()
            if now - self._synced > _SYNC_S:
                os.fsync(self._file)
                self._synced = now

    def _read(self, path: Path, is_done: IsDone) -> Identity | None:
        """Reads what is there, and cuts off a last line that was not finished; returns whose it is."""
        identity = None
        with open(os.dup(self._file), "rb") as file:
            for text in file:
                if not text.endswith(b"\n"):
                    break
                self._length += len(text)
                self._has_results = identity is not None
                try:
                    line = json.loads(text)
                    if identity is not None:
                        self._take(line, is_done)
                    elif line["format"] != _FORMAT:
                        raise ValueError(f"format {short_repr(line['format'])}, of another version of convserve")
                    else:
                        layers = [str(digest) for digest in line["layers"]]
                        identity = Identity(str(line["folder"]), layers, dict(line["options"]))
                except Exception as error:  # of bytes that make no sense: RecursionError, too
                    if identity is None:
                        received = f"{short_repr(str(path))}: {error}"
                        raise _refused("a journal of `convserve batch`", received) from error
                    # A line that a power failure spoilt: its work is done again.
        if not self._is_read_only:
            os.ftruncate(self._file, self._length)
        return identity

    def _take(self, line: dict[str, Any], is_done: IsDone) -> None:
        """Takes over what a line says; of several about an input the last one counts."""
        if "part" in line:
            begun, start = self.begun.get(line["part"]), int(line["start"])
            if begun is not None and start in range(0, begun.shape[0], begun.rows):
                begun.starts.add(start)
            return
        key = str(line.get("done") or line.get("failed") or line["begun"])
        holds = is_done(key, line)
        if "failed" not in line:
            self.begun.pop(key, None)
        if "begun" not in line:
            self.done.discard(key)
            self.failed.pop(key, None)
        if not holds:
            return
        if "done" in line:
            self.done.add(key)
        elif "failed" in line:
            self.failed[key] = str(line["reason"])
        else:
            shape, rows = tuple(map(int, line["shape"])), int(line["rows"])
            if rows < 1:
                raise ValueError(f"parts of {rows} rows")
            self.begun[key] = PartialOutput(line["output"], line["stamp"], shape, line["dtype"], rows)


def has_journal(folder: str) -> bool:
    """Whether a folder is one for outputs, of whatever run."""
    with suppress(OSError), open_file(os.path.join(folder, NAME)) as file:
        return file.read(len(_BEGINNING)) == _BEGINNING
    return False


def _refused(expected: str, received: str) -> InvalidRequestError:
    return InvalidRequestError.for_field("output", expected, received)
