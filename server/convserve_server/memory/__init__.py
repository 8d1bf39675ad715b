"""The memory of this machine, and buffers in it."""
