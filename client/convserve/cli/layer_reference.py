"""How a stored layer is named on the command line: by a name, or by its digest or the beginning of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convserve.errors import FieldViolation, InvalidRequestError, LayerNotFoundError, shown

if TYPE_CHECKING:
    from convserve import Client, StoredLayer

REFERENCE = "a name, or a digest in hexadecimal, of which the first 8 characters suffice where they are unique"
"""The help text of an option that `find` reads."""

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def find(client: Client, reference: str) -> StoredLayer:
    """Returns the stored layer that a name or a digest means.

    Raises:
        LayerNotFoundError: If there is none.
        InvalidRequestError: If several digests begin so, or the text is neither.
    """
    try:
        return client.layer(reference)
    except LayerNotFoundError:
        if not _DIGEST.fullmatch(reference):
            raise
    found = [each for each in client.layers() if each.digest.hex().startswith(reference)]
    if len(found) > 1:
        text = f"Expected more of the digest. Received {shown(reference)}, with which {len(found)} digests begin."
        raise InvalidRequestError(FieldViolation("layer", text))
    if not found:
        text = f"Expected a stored layer. Received {shown(reference)}: no name, and no digest begins so."
        raise LayerNotFoundError(text, layer=reference)
    return found[0]
