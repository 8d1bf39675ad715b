"""bfloat16 without ml_dtypes: its bits are the upper half of a float32's."""

from __future__ import annotations

from convserve.tensors.codec import Array


def float32_of_bits(bits: Array) -> Array:
    """Returns the float32 numbers, exactly, that little-endian 16-bit integers mean as bfloat16."""
    return (bits.astype("<u4") << 16).view("<f4")
