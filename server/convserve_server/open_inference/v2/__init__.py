"""Stubs generated from proto/convserve_server/open_inference/v2; every other file here is generated."""
