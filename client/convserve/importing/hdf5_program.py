"""Reads one HDF5 file for another process: a program of its own, as damaged bytes can make libhdf5 loop or crash.

    python hdf5_program.py SECONDS

It ends after so many seconds. Standard input has the file, 8 bytes of its length before it, and then a question a line:
in JSON, the name of a function below and its arguments. Each answer is a line of JSON, {"answer": ...} or
{"error": TEXT}, the first when the file is open; an array's elements follow theirs. Nothing of convserve is imported,
which would take longer than everything else here.
"""

from __future__ import annotations

import faulthandler
import io
import json
import struct
import sys
from typing import Any

import numpy as np


def describe(root: Any, path: str) -> dict[str, Any]:
    """Returns what there is under a path; of an array, whatever decides whether it is read."""
    kind, member = _find(root, path)
    if kind != "array":
        return {"kind": kind}
    creation = member.id.get_create_plist()
    return {
        "kind": kind,
        "shape": member.shape,
        "dtype": member.dtype.str,
        "is_bfloat16": member.dtype == np.dtype("V2") or _texts(member.attrs.get("dtype")) == ["bfloat16"],
        "is_elsewhere": bool(member.external or member.is_virtual),
        "filters": [creation.get_filter(index)[0] for index in range(creation.get_nfilters())],
    }


def members(root: Any, path: str) -> list[str]:
    """Returns the names in a group; none if there is no group."""
    kind, member = _find(root, path)
    return list(member) if kind == "group" else []


def texts(root: Any, path: str, name: str) -> list[str] | None:
    """Returns the texts in an attribute, or None if there is no such attribute."""
    _, member = _find(root, path)
    return _texts(member.attrs[name]) if name in member.attrs else None


def elements(root: Any, path: str) -> np.ndarray[Any, Any]:
    """Returns an array's bytes."""
    _, array = _find(root, path)
    return np.ascontiguousarray(array[()]).reshape(-1).view(np.uint8)


def _find(root: Any, path: str) -> tuple[str, Any]:
    """Returns what there is under a path, "" being the outermost group; a link if one is on the way."""
    import h5py

    member = root
    for name in path.split("/") if path else ():
        link = member.get(name, getlink=True) if isinstance(member, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            return ("nothing" if link is None else "link"), link
        member = member[name]
    return ("array" if isinstance(member, h5py.Dataset) else "group"), member


def _texts(value: Any) -> list[str]:
    """Returns the texts in an attribute's value; none if it has other things, such as the numbers of an empty list."""
    listed = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    return [text.decode() if isinstance(text, bytes) else text for text in listed if isinstance(text, bytes | str)]


def _send(message: dict[str, Any], follows: Any = b"") -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.write(follows)
    sys.stdout.buffer.flush()


def main() -> None:
    """Answers until there are no more questions, or something is wrong."""
    faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)  # also when nobody is left to end this process
    questions = {function.__name__: function for function in (describe, members, texts, elements)}
    try:
        import h5py

        (length,) = struct.unpack("<Q", sys.stdin.buffer.read(8))
        root = h5py.File(io.BytesIO(sys.stdin.buffer.read(length)), "r")
        _send({"answer": None})
        for line in sys.stdin.buffer:
            name, *arguments = json.loads(line)
            answer = questions[name](root, *arguments)
            if name == "elements":
                _send({"answer": None}, answer)
            else:
                _send({"answer": answer})
    except Exception as error:  # whatever a reader stumbles over in a damaged file
        _send({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    main()
