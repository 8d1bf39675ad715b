"""How outputs are stored: arrays by NumPy and Zarr, and pictures."""
