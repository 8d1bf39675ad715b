"""Computing in parts what does not fit into memory at once."""
