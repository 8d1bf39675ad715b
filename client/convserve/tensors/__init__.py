"""Tensors as bytes: dtypes, framing, shared memory. No network."""
