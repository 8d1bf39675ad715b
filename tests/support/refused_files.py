"""Files of strangers that `importing.read` refuses whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import convserve
from convserve import importing


def refused(
    path: Path, match: str = "", kind: type[convserve.ConvserveError] = convserve.InvalidRequestError, **options: Any
) -> str:
    """Returns the text with which a whole file is refused, by an error of this kind."""
    with pytest.raises(kind) as caught:
        importing.read(path, **options)
    text = str(caught.value)
    assert text.startswith("file: Expected ")
    assert " Received " in text
    assert len(text) < 800
    assert match in text
    return text
