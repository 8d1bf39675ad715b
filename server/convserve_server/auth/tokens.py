"""The tokens that callers show: which there are, whose they are, and what each allows.

A file of tokens has a line per token: NAME TOKEN PERMISSIONS. It is looked at with every call, so that a token that is
taken out of it is refused from then on. Of tokens only digests are kept, and texts never have one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

from convserve_server.auth.identity import PERMISSIONS, Identity
from convserve_server.auth.reloaded_files import ReloadedFiles
from convserve_server.settings import TOKEN, WHAT_A_TOKEN_IS, SettingsError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}"
_LINE = f"NAME TOKEN PERMISSIONS, the permissions out of {', '.join(PERMISSIONS)} with commas between them"

Digests = dict[bytes, Identity]


class Tokens:
    """All tokens of a server."""

    def __init__(self, path: str = "", token: str = "") -> None:
        """Reads the file, if any. A further token allows everything. SettingsError if the file is wrong or missing."""
        self._by_variable = {_digest(token): Identity("token", frozenset(PERMISSIONS))} if token else {}
        self._file = ReloadedFiles([path], lambda: _read(path), "--tokens-file") if path else None

    def __bool__(self) -> bool:
        """Returns whether there are any, without which everybody may call."""
        return bool(self._by_variable) or self._file is not None

    def caller(self, token: str) -> Identity | None:
        """Returns whose token it is, or None. It takes as long for each wrong one."""
        digest, caller = _digest(token), None
        for known, identity in (self._by_variable | (self._file.content() if self._file else {})).items():
            if hmac.compare_digest(known, digest):
                caller = identity
        return caller


def parse(text: str) -> Digests:
    """Returns the tokens of a file's text.

    Raises a ValueError that says which line is wrong, and shows no word of it that may be a token in the wrong place.
    """
    digests: Digests = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            digest, caller = _parse_line(number, words)
            if digest in digests:
                raise _wrong(number, "a token that no line before has", "the same again")
            digests[digest] = caller
    if not digests:
        raise ValueError(f"Expected at least one line: {_LINE}. Received none, with which nobody could call.")
    return digests


def _parse_line(number: int, words: Sequence[str]) -> tuple[bytes, Identity]:
    if len(words) != 3:
        raise _wrong(number, _LINE, f"{len(words)} word{'s' if len(words) > 1 else ''}")
    name, token, permissions = words
    if not re.fullmatch(_NAME, name):
        raise _wrong(number, "a name of up to 100 letters, digits, '.', '_', '-' and '@' first", "another word")
    if not re.fullmatch(TOKEN, token):
        raise _wrong(number, f"a token of {WHAT_A_TOKEN_IS} as the second word", "another word")
    allowed = frozenset(permissions.split(","))
    if strange := sorted(allowed - set(PERMISSIONS)):
        # A longer word may be a token.
        received = repr(strange[0]) if len(strange[0]) < 16 else "a longer word"
        raise _wrong(number, f"permissions out of {', '.join(PERMISSIONS)} as the third word", received)
    return _digest(token), Identity(name, allowed)


def _wrong(number: int, expected: str, received: str) -> ValueError:
    return ValueError(f"line {number}: Expected {expected}. Received {received}.")


def _read(path: str) -> Digests:
    try:
        return parse(Path(path).read_text(encoding="ascii"))
    except OSError as error:
        why = f"Expected a file that can be read. Received {path}: {error.strerror}."
    except UnicodeDecodeError:  # whose text shows what is in the file
        why = f"Expected a file of ASCII text. Received {path}, which has other bytes."
    except ValueError as error:
        why = f"{path}: {error}"
    raise SettingsError(f"--tokens-file: {why}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
