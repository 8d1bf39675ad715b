"""Zip archives from strangers: a known member is read into memory; nothing is ever extracted to a path."""

from __future__ import annotations

import zipfile

from convserve.errors import short_repr
from convserve.importing.untrusted import Budget, refusal


def read_member(archive: zipfile.ZipFile, name: str, budget: Budget) -> bytes:
    """Returns a member's bytes, whose checksum was right.

    Raises:
        KeyError: If there is none.
        InvalidRequestError: If it is compressed in an unusual way, or larger than the budget.
    """
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refusal(
            "an archive that is stored or deflated", f"{short_repr(name)} with compression {info.compress_type}"
        )
    budget.spend(info.file_size, f"the member {short_repr(name)}")
    with archive.open(info) as opened:
        # With a size, zipfile unpacks no more than that; without one it would unpack all there is before it cuts it off
        # at the size that was declared. More than declared shows as a wrong checksum.
        return opened.read(info.file_size + 1)
