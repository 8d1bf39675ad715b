"""Stubs generated from proto/convserve/v1 by `python proto/generate.py`; every other file here is generated."""
