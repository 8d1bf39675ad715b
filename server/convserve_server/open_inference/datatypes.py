"""Element types by the names that the protocol has for them."""

from __future__ import annotations

from collections.abc import Sequence

from convserve.errors import FieldViolation, InvalidTensorError, short_repr
from convserve.tensors.codec import INPUT_DTYPES

DATATYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
}
"""The protocol's name of each dtype."""

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


def dtype_of(datatype: str, field: str, allowed: Sequence[str] = INPUT_DTYPES) -> str:
    """Returns the dtype that the protocol calls so.

    Raises:
        InvalidTensorError: If it is none of the `allowed` ones.
    """
    found = _DTYPES.get(datatype)
    if found is None or found not in allowed:
        names = ", ".join(DATATYPES[each] for each in allowed)
        raise InvalidTensorError(FieldViolation(field, f"Expected one of {names}. Received {short_repr(datatype)}."))
    return found
